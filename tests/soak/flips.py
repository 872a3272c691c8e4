"""`python -m soak.flips`: every byte of a checkpoint matters.

Single-bit flips and truncations over every file, and missing, swapped, zeroed, stale, lengthened and replaced files.
Each must be found by `verify` and by `read_checkpoint`, with the file's name, and the run must fall back to the
checkpoint before it with a warning. Exits with status 1 if one goes unnoticed.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from support.checkpoints import contents, golden_contents

from multibackend.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, verify, write_checkpoint
from multibackend.errors import CheckpointError, CheckpointWarning

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Damage:
    """One thing done to a checkpoint; the error must name one of `files`."""

    kind: str
    files: tuple[str, ...]
    apply: Callable[[], None]


class Victim:
    """The newest of a run's three checkpoints, the other two of which stay as they are."""

    def __init__(self, run_dir: Path, size: int = 64) -> None:
        self.run_dir = run_dir
        for update in (1, 2, 3):
            groups = {**golden_contents().tensors, **contents(update, size=size).tensors}
            stored = replace(golden_contents(), tensors=groups, update=update, micro_batches=0)
            write_checkpoint(run_dir / "checkpoints" / f"update-{update:08d}", stored)
        self.older, self.previous, self.path = list_checkpoints(run_dir)
        self.original = {path.name: path.read_bytes() for path in sorted(self.path.iterdir())}

    def restore(self) -> None:
        shutil.rmtree(self.path)
        self.path.mkdir()
        for name, data in self.original.items():
            (self.path / name).write_bytes(data)

    def put(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def flips(self, count: int, rng: random.Random) -> Iterator[Damage]:
        """As many for each file; half of a file's in the first 4 KiB, where headers are."""
        files = list(self.original)
        for index in range(count):
            name = files[index % len(files)]
            data = self.original[name]
            last = len(data) if (index // len(files)) % 2 else min(4096, len(data))
            place, bit = rng.randrange(last), rng.randrange(8)
            yield Damage("flip", (name,), lambda n=name, p=place, b=bit: self.flip(n, p, b))

    def flip(self, name: str, place: int, bit: int) -> None:
        with (self.path / name).open("r+b") as file:
            file.seek(place)
            file.write(bytes([self.original[name][place] ^ (1 << bit)]))

    def truncations(self, count: int, rng: random.Random) -> Iterator[Damage]:
        """The ends, the edges of the length and the header, then anywhere."""
        edges = [(name, kept) for name, data in self.original.items() for kept in (0, 1, 7, 8, 9, 64, len(data) - 1)]
        files = list(self.original)
        while len(edges) < count:
            name = files[len(edges) % len(files)]
            edges.append((name, rng.randrange(len(self.original[name]))))
        for name, kept in edges[:count]:
            yield Damage("truncation", (name,), lambda n=name, k=kept: os.truncate(self.path / n, k))

    def others(self) -> Iterator[Damage]:
        """Files that are missing, zeroed, lengthened, swapped, stale or something else altogether."""
        for name, data in self.original.items():
            yield from self._of_one_file(name, data)
        for one, two in itertools.combinations(self.original, 2):
            if self.original[one] != self.original[two]:
                yield Damage("swapped", (one, two), lambda a=one, b=two: self._swap(a, b))
        yield Damage("stale", (MANIFEST,), lambda: self._stale(self.original))
        group = "parameters.safetensors"
        yield Damage("unlisted", ("other.safetensors",), lambda: self.put("other.safetensors", self.original[group]))

    def _of_one_file(self, name: str, data: bytes) -> Iterator[Damage]:
        here = self.path / name
        yield Damage("missing", (name,), here.unlink)
        yield Damage("zeroed", (name,), lambda: self.put(name, bytes(len(data))))
        yield Damage("zeroed", (name,), lambda: self.put(name, data[:-16] + bytes(16)))
        yield Damage("lengthened", (name,), lambda: self.put(name, data + b"\n"))
        yield Damage("lengthened", (name,), lambda: self.put(name, data + data))
        if (self.previous / name).read_bytes() != data:
            yield Damage("stale", (name,), lambda: self._stale([name]))
        yield Damage("link", (name,), lambda: self._replace(name, lambda: here.symlink_to(self.previous / name)))
        yield Damage("directory", (name,), lambda: self._replace(name, here.mkdir))
        yield Damage("pipe", (name,), lambda: self._replace(name, lambda: os.mkfifo(here)))

    def _swap(self, one: str, two: str) -> None:
        self.put(one, self.original[two])
        self.put(two, self.original[one])

    def _stale(self, names: dict[str, bytes] | list[str]) -> None:
        for name in names:
            self.put(name, (self.previous / name).read_bytes())

    def _replace(self, name: str, make: Callable[[], object]) -> None:
        (self.path / name).unlink()
        make()

    def outcome(self, damage: Damage) -> str:
        """ "found", or in words what went wrong; the checkpoint is whole again afterwards."""
        damage.apply()
        try:
            for check in (verify, read_checkpoint):
                try:
                    check(self.path)
                except CheckpointError as error:
                    if error.file not in damage.files or error.file not in str(error):
                        return f"{check.__name__} blames {error.file}, not {damage.files}"
                else:
                    return f"{check.__name__} did not notice {damage.kind} of {damage.files}"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = newest_checkpoint(self.run_dir)
            told = [w for w in caught if w.category is CheckpointWarning and str(self.path) in str(w.message)]
            return (
                "found" if found == self.previous and len(told) == 1 else f"no fall-back: {found}, {len(told)} warnings"
            )
        finally:
            self.restore()


def run(run_dir: Path, flips: int, truncations: int, *, size: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """(kind, outcome) of every damage, counted."""
    victim, rng = Victim(run_dir, size), random.Random(seed)
    damages = itertools.chain(victim.flips(flips, rng), victim.truncations(truncations, rng), victim.others())
    counts = collections.Counter((damage.kind, victim.outcome(damage)) for damage in damages)
    read_checkpoint(victim.path)  # and without damage it is whole
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m soak.flips", description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--size", type=int, default=5_000, help="float32 numbers in the largest tensor")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), options.flips, options.truncations, size=options.size, seed=options.seed)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:12} {count:6} {outcome}")
    missed = sum(count for (_, outcome), count in counts.items() if outcome != "found")
    print(f"{sum(counts.values())} damages, {missed} missed, {time.perf_counter() - started:.0f} s")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
