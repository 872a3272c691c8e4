"""A few of the kills that `python -m soak.kills` does by the thousand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from soak import kills
from support.checkpoints import contents

from multibackend.checkpoint import CheckpointStore, write_checkpoint


def test_kills_during_saving(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, nothing is unreadable, the next start clears up; in a process without threads."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "soak.kills", "--kills", "25", "--seed", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    inside = re.search(r"inside a save +(\d+)", done.stdout)
    assert inside is not None
    assert int(inside[1]) >= 3


def test_the_examination_can_fail(tmp_path: Path) -> None:
    """A lost, a damaged and a wrong checkpoint are each seen."""
    folder = tmp_path / "checkpoints"
    with CheckpointStore(tmp_path) as store:
        store.save(kills.contents(2)).wait()
    assert kills.examine(tmp_path, 2) == []
    assert [fault.partition(":")[0] for fault in kills.examine(tmp_path, 3)] == ["lost"]
    write_checkpoint(folder / "update-00000003", contents(3))
    assert [fault.partition(":")[0] for fault in kills.examine(tmp_path, 3)] == ["wrong"]
    os.truncate(folder / "update-00000003" / "parameters.safetensors", 9)
    assert [fault.partition(":")[0] for fault in kills.examine(tmp_path, 2)] == ["unreadable"]


@pytest.mark.parametrize("number", [0, 1])
def test_leftovers_are_counted(tmp_path: Path, number: int) -> None:
    """None without a run; one for each name with a dot."""
    (tmp_path / "checkpoints" / "update-00000001").mkdir(parents=True)
    for index in range(number):
        (tmp_path / "checkpoints" / f".saving-{index}").mkdir()
    assert kills.leftovers(tmp_path) == number
    assert kills.leftovers(tmp_path / "nothing") == 0
