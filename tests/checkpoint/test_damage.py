"""A few hundred of the damages that `python -m soak.flips` does by the ten thousand, and how each is told."""

import random
from pathlib import Path

import pytest
from soak.flips import MANIFEST, Victim, run
from support.checkpoints import contents

from multibackend.checkpoint import read_checkpoint, verify, write_checkpoint
from multibackend.errors import CheckpointError


def test_every_byte_matters(tmp_path: Path) -> None:
    """Flips, truncations, missing, swapped, zeroed, stale, replaced files: found, named, and the run falls back."""
    counts = run(tmp_path, 300, 60, size=64, seed=1)
    assert {outcome for _, outcome in counts} == {"found"}
    assert counts["flip", "found"] == 300
    assert counts["truncation", "found"] == 60
    assert {kind for kind, _ in counts} >= {"missing", "swapped", "zeroed", "stale", "link", "pipe", "unlisted"}


def test_every_byte_of_a_manifest(tmp_path: Path) -> None:
    """One bit of each, the digest's own bytes included, and the manifest is named."""
    path = write_checkpoint(tmp_path / "here", contents(3))
    original = (path / MANIFEST).read_bytes()
    for place in range(len(original)):
        flipped = bytearray(original)
        flipped[place] ^= 1 << place % 8
        (path / MANIFEST).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=MANIFEST):
            verify(path)


def test_the_digests_are_told(tmp_path: Path) -> None:
    """What was expected and what was found."""
    path = write_checkpoint(tmp_path / "here", contents(3))
    expected = verify(path).files["optimizer.safetensors"].xxh3_128
    data = bytearray((path / "optimizer.safetensors").read_bytes())
    data[70] ^= 4
    (path / "optimizer.safetensors").write_bytes(data)
    with pytest.raises(
        CheckpointError, match=f"digest of its bytes is [0-9a-f]{{32}}, and {expected} was written"
    ) as e:
        read_checkpoint(path)
    assert (e.value.path, e.value.file) == (str(path), "optimizer.safetensors")


def test_a_damage_that_goes_unnoticed_would_be_counted(tmp_path: Path) -> None:
    """The counting itself can fail: a damage that changes nothing, and one that blames another file."""
    victim = Victim(tmp_path)
    first = next(victim.flips(1, random.Random(0)))
    harmless = type(first)("flip", first.files, lambda: None)
    misnamed = type(first)("flip", ("other",), first.apply)
    assert "did not notice" in victim.outcome(harmless)
    assert "blames" in victim.outcome(misnamed)
    assert victim.outcome(first) == "found"
