"""The checkpoints of a run: order, retention, the lock, background saves and what is left behind."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import assert_same_contents, contents

from multibackend.checkpoint import CheckpointStore, list_checkpoints, newest_checkpoint, read_checkpoint
from multibackend.checkpoint.disk import Disk
from multibackend.errors import CheckpointError, CheckpointWarning, ConfigurationError


def names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.list()]


def save_all(store: CheckpointStore, *updates: int, **metrics: float) -> None:
    for update in updates:
        store.save(contents(update), metric=metrics.get(f"u{update}")).wait()


def spoil(path: Path, file: str = "parameters.safetensors") -> None:
    data = bytearray((path / file).read_bytes())
    data[-1] ^= 1
    (path / file).write_bytes(data)


class GatedDisk(Disk):
    """Writing waits until the gate is opened; `broken` then fails it."""

    def __init__(self) -> None:
        self.gate, self.broken = threading.Event(), False

    def write(self, descriptor: int, data: Any) -> None:
        assert self.gate.wait(30)
        if self.broken:
            raise OSError(28, "No space left on device")
        super().write(descriptor, data)


def test_save_and_find(tmp_path: Path) -> None:
    """The newest comes back with all that it holds; without any there is none."""
    with CheckpointStore(tmp_path / "new" / "run") as store:
        assert store.newest() is None
        path = store.save(contents(7)).wait()
        assert store.newest() == path == newest_checkpoint(tmp_path / "new" / "run")
        assert_same_contents(read_checkpoint(path), contents(7))
    assert list_checkpoints(tmp_path / "nothing here") == []


def test_age_goes_by_update_then_micro_batch(tmp_path: Path) -> None:
    """Also beyond the eight digits of a name, where the alphabet would say otherwise."""
    with CheckpointStore(tmp_path, keep_last=None) as store:
        for update, micro_batches in ((9, 0), (9, 1), (9, 10), (10, 0), (10**8, 0)):
            store.save(contents(update, micro_batches=micro_batches)).wait()
        expected = ["update-00000009", "update-00000009-micro-1", "update-00000009-micro-10", "update-00000010"]
        assert names(store) == [*expected, "update-100000000"]


def test_going_back_starts_a_new_generation(tmp_path: Path) -> None:
    """After a return to update 2, its successors count as newer than the abandoned 3 and 4, also after a restart."""
    with CheckpointStore(tmp_path, keep_last=3) as store:
        save_all(store, 2, 3, 4)
        newest = store.save(contents(3, seed=1)).wait()
        assert newest.name == "update-00000003.1"
        assert names(store) == ["update-00000002", "update-00000004", "update-00000003.1"]  # 3 is replaced
    with CheckpointStore(tmp_path, keep_last=3) as store:
        assert store.newest() == newest
        save_all(store, 4)
        assert names(store) == ["update-00000002", "update-00000003.1", "update-00000004.1"]


def test_the_same_update_twice(tmp_path: Path) -> None:
    """The second takes the place of the first, once it is complete."""
    with CheckpointStore(tmp_path) as store:
        save_all(store, 5)
        path = store.save(contents(5, seed=1)).wait()
        assert store.list() == [path]
        assert_same_contents(read_checkpoint(path), contents(5, seed=1))


def test_keep_last_and_every(tmp_path: Path) -> None:
    """The last two, and multiples of 4 between windows for good."""
    with CheckpointStore(tmp_path, keep_last=2, keep_every=4) as store:
        save_all(store, *range(1, 8))
        store.save(contents(8, micro_batches=1)).wait()
        save_all(store, 9, 10)
        assert names(store) == ["update-00000004", "update-00000009", "update-00000010"]


@pytest.mark.parametrize(("mode", "best"), [("min", (2, 5)), ("max", (1, 4))])
def test_keep_best(tmp_path: Path, mode: str, best: tuple[int, int]) -> None:
    """Two by the metric besides the last one, also across a restart; NaN and none are never best."""
    values = {"u1": 9.0, "u2": 1.0, "u3": 4.0, "u4": 8.0, "u5": 2.0, "u6": float("nan")}
    options: dict[str, Any] = {"keep_last": 1, "keep_best": 2, "best_metric": "loss", "best_mode": mode}
    with CheckpointStore(tmp_path, **options) as store:
        save_all(store, 1, 2, 3, **values)
    with CheckpointStore(tmp_path, **options) as store:
        save_all(store, 4, 5, 6, 7, **values)
        assert [int(name[7:]) for name in names(store)] == [*best, 7]
    with CheckpointStore(tmp_path, **{**options, "best_metric": "accuracy"}) as store:
        save_all(store, 8, u8=0.5)  # the values of another metric rank nothing
        assert [int(name[7:]) for name in names(store)] == [8]


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": 0},
        {"keep_last": 1.5},
        {"keep_best": -1},
        {"keep_best": 1},
        {"keep_every": 0},
        {"best_mode": "most"},
        {"best_metric": ""},
    ],
)
def test_bad_rules(tmp_path: Path, options: dict[str, Any]) -> None:
    """All are refused before anything is made."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        CheckpointStore(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    """With a warning for each that names the file; they take no valid one's place in retention and are not removed."""
    with CheckpointStore(tmp_path, keep_last=3) as store:
        save_all(store, 1, 2, 3)
        spoil(store.list()[2])
        spoil(store.list()[1], "manifest.json")
        with pytest.warns(CheckpointWarning) as caught:
            assert store.newest() == store.list()[0]
        texts = [str(warning.message) for warning in caught]
        assert ["update-00000003" in text and "parameters.safetensors" in text for text in texts] == [True, False]
        assert ["update-00000002" in text and "manifest.json" in text for text in texts] == [False, True]
        save_all(store, 4, 5)
        assert [int(name[7:]) for name in names(store)] == [1, 2, 3, 4, 5]
        save_all(store, 6)
        assert [int(name[7:]) for name in names(store)] == [2, 3, 4, 5, 6]


def test_two_writers(tmp_path: Path) -> None:
    """The second is refused with the first one's name, in this process and in another; the first goes on."""
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match="this very process"):
            CheckpointStore(tmp_path)
        code = f"from multibackend.checkpoint import CheckpointStore; CheckpointStore({str(tmp_path)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"process {os.getpid()} on {socket.gethostname()!r}" in done.stderr
        save_all(store, 1)
    with CheckpointStore(tmp_path) as store:
        save_all(store, 2)


def test_a_dead_writers_lock_is_no_obstacle(tmp_path: Path) -> None:
    """Killed without warning: its text is still there, its lock is not. Damaged text is none either."""
    code = (
        f"import os; from multibackend.checkpoint import CheckpointStore; s = CheckpointStore({str(tmp_path)!r}); "
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert json.loads((tmp_path / ".lock").read_text())["pid"] != os.getpid()
    CheckpointStore(tmp_path).close()
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with CheckpointStore(tmp_path), pytest.raises(CheckpointError, match="another run writes"):
        CheckpointStore(tmp_path)


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A data loader's worker that outlives its killed run must not keep the next one out."""
    code = f"""
import os, sys, time
from multibackend.checkpoint import CheckpointStore
store = CheckpointStore({str(tmp_path)!r})
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    try:
        CheckpointStore(tmp_path).close()
    finally:
        os.kill(int(done.stdout), 9)


def test_leftovers_are_cleared_by_the_next_writer_only(tmp_path: Path) -> None:
    """Half-written and half-removed ones; readers, and writers that are turned away, touch nothing."""
    with CheckpointStore(tmp_path) as store:
        save_all(store, 1)
        leftovers = [store.list()[0].with_name(name) for name in (".saving-update-00000002-1-ab", ".trash-x")]
        for path in leftovers:
            path.mkdir()
            (path / "parameters.safetensors").write_text("half")
        assert newest_checkpoint(tmp_path) == store.newest() == store.list()[0]
        with pytest.raises(CheckpointError):
            CheckpointStore(tmp_path)
        assert all(path.exists() for path in leftovers)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "checkpoints" / ".trash-link").symlink_to(outside)
    with CheckpointStore(tmp_path) as store:
        assert not any(path.exists() for path in leftovers)
        assert outside.exists()
        assert len(store.list()) == 1


def test_saving_in_the_background(tmp_path: Path) -> None:
    """`save` returns before anything is written; a second one waits for the first; nothing shows until it is whole."""
    disk = GatedDisk()
    with CheckpointStore(tmp_path, disk=disk) as store:
        handle = store.save(contents(1))
        assert not handle.done
        assert store.list() == []
        store.check()
        with pytest.raises(CheckpointError, match=r"not written after 0.01 s"):
            handle.wait(0.01)
        threading.Timer(0.2, disk.gate.set).start()
        second = store.save(contents(2))
        assert handle.done
        assert [handle.wait(), second.wait()] == store.list()


@pytest.mark.parametrize("teller", ["save", "check", "close", "wait"])
def test_a_failed_background_save_is_told_once(tmp_path: Path, teller: str) -> None:
    """By whichever comes first; what was saved before is intact and saving goes on."""
    disk = GatedDisk()
    disk.gate.set()
    store = CheckpointStore(tmp_path, disk=disk)
    save_all(store, 1)
    disk.broken = True
    handle = store.save(contents(2))
    while not handle.done:
        pass
    tell = {"save": lambda: store.save(contents(3)), "check": store.check, "close": store.close, "wait": handle.wait}
    with pytest.raises(CheckpointError, match="the disk is full"):
        tell[teller]()
    store.check()
    assert names(store) == ["update-00000001"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["update-00000001"]
    if teller != "close":
        disk.broken = False
        save_all(store, 3)
        store.close()
    assert newest_checkpoint(tmp_path) is not None


def test_a_failure_that_is_no_errors_of_the_system_is_told_too(tmp_path: Path) -> None:
    """A bug in the writer's thread is a `CheckpointError` as well, with its cause."""

    class Bug(Disk):
        def sync_directory(self, path: Path) -> None:
            if path.name.startswith(".saving"):
                raise ZeroDivisionError("a bug")
            super().sync_directory(path)

    store = CheckpointStore(tmp_path, disk=Bug())
    handle = store.save(contents(1))
    with pytest.raises(CheckpointError, match="a bug") as caught:
        handle.wait()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    store.close()


def test_one_that_cannot_be_removed_is_a_warning(tmp_path: Path) -> None:
    """The save stands; the next call says what is left."""

    class Sticky(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.name.startswith(".trash"):
                raise PermissionError(13, "Permission denied")
            super().rename(source, target)

    with CheckpointStore(tmp_path, keep_last=1, disk=Sticky()) as store:
        save_all(store, 1)
        store.save(contents(2)).wait()
        with pytest.warns(CheckpointWarning, match="removing the checkpoint .*update-00000001 failed: permission"):
            store.check()
        assert len(store.list()) == 2


def test_an_exception_under_way_is_not_hidden(tmp_path: Path) -> None:
    """Leaving the block by an exception closes the store and keeps that exception, not the failed save's."""
    disk = GatedDisk()
    disk.gate.set()
    disk.broken = True

    def end_early() -> None:
        with CheckpointStore(tmp_path, disk=disk) as store:
            store.save(contents(1))
            raise KeyError

    with pytest.raises(KeyError):
        end_early()
    CheckpointStore(tmp_path).close()


def test_the_end_of_the_program_waits_for_the_save(tmp_path: Path) -> None:
    """An exception that ends the interpreter does not cut a background save off."""
    code = f"""
from support.checkpoints import contents
from multibackend.checkpoint import CheckpointStore
store = CheckpointStore({str(tmp_path)!r})
store.save(contents(3, size=4_000_000))
raise SystemExit(5)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 5
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert_same_contents(read_checkpoint(found), contents(3, size=4_000_000))


def test_a_handle_does_not_change_contents(tmp_path: Path) -> None:
    """The metric goes into the file, not into what the caller gave."""
    mine = contents(1)
    with CheckpointStore(tmp_path, keep_best=1, best_metric="loss") as store:
        path = store.save(mine, metric=0.5).wait()
    assert mine.extra == {}
    assert_same_contents(read_checkpoint(path), replace(mine, extra={"metric": {"name": "loss", "value": 0.5}}))


def test_a_metric_is_of_its_own_checkpoint(tmp_path: Path) -> None:
    """What was read with one and is saved without has none."""
    options: dict[str, Any] = {"keep_last": 1, "keep_best": 1, "best_metric": "loss"}
    with CheckpointStore(tmp_path, **options) as store:
        found = read_checkpoint(store.save(contents(1), metric=0.5).wait())
        store.save(replace(contents(2), extra=found.extra)).wait()
        save_all(store, 3)
        assert names(store) == ["update-00000001", "update-00000003"]


def test_a_closed_store(tmp_path: Path) -> None:
    """It refuses to save; closing again does nothing. One that is dropped without closing gives its lock back."""
    store = CheckpointStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(CheckpointError, match="it is closed"):
        store.save(contents(1))
    store = CheckpointStore(tmp_path)
    del store
    gc.collect()
    CheckpointStore(tmp_path).close()


def test_a_forked_child_cannot_save(tmp_path: Path) -> None:
    """The lock stays with the parent, who goes on."""
    code = f"""
import os
from support.checkpoints import contents
from multibackend.checkpoint import CheckpointStore
from multibackend.errors import CheckpointError
store = CheckpointStore({str(tmp_path)!r})
child = os.fork()
if child == 0:
    try:
        store.save(contents(1))
    except CheckpointError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
try:
    CheckpointStore({str(tmp_path)!r})
except CheckpointError as error:
    assert "this very process" in str(error)
else:
    raise SystemExit("the lock is gone")
store.save(contents(2)).wait()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
