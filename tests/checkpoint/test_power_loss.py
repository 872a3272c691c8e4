"""Power that fails between any two steps loses nothing; leaving out any one of the fsyncs would."""

from pathlib import Path

import pytest
from soak.power import RecordingDisk, outcomes


class Careless(RecordingDisk):
    """Leaves out the fsync of one kind of thing, and records that it does."""

    def __init__(self, root: Path, without: str) -> None:
        super().__init__(root)
        self.without = without

    def sync(self, descriptor: int) -> None:
        if self.without != "file":
            super().sync(descriptor)

    def sync_directory(self, path: Path) -> None:
        kind = "temporary directory" if path.name.startswith(".saving") else "parent of the run"
        if path.name == "checkpoints":
            kind = "removed name" if "/.trash" in str(self.steps[-1][-1]) else "new name"
        if kind != self.without:
            super().sync_directory(path)


def test_power_loss(tmp_path: Path) -> None:
    """At every step of three saves, the last place saved again, and a return to an earlier one, with pruning."""
    found = list(outcomes(tmp_path / "power", updates=3, states=8, seed=0))
    assert len(found) > 400
    assert set(found) == {""}


@pytest.mark.parametrize(
    ("without", "found"),
    [
        ("file", "damaged"),
        ("temporary directory", "damaged"),
        ("new name", "lost"),
        ("removed name", "damaged"),
        ("parent of the run", "lost"),
    ],
)
def test_every_fsync_is_needed(tmp_path: Path, without: str, found: str) -> None:
    """Each one that is left out shows as what it protects from, so the states do cover it."""
    disk = Careless(tmp_path / "power" / "recorded", without)
    faults = outcomes(tmp_path / "power", updates=3, states=12, seed=0, disk=disk)
    assert any(f": {found}" in fault for fault in faults)  # ends at the first one
