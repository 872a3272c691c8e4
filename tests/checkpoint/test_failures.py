"""Full disks, missing permissions, vanished directories: clear errors, and what was saved before is intact."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import assert_same_contents, contents

from multibackend.checkpoint import (
    CheckpointStore,
    Handle,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from multibackend.checkpoint.disk import Disk
from multibackend.errors import CheckpointError, CheckpointWarning

WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
    errno.EIO: "input/output error",
    errno.ENOENT: "vanished",
    errno.EFBIG: "ulimit -f",
    errno.EMFILE: "Too many open files",
}


class FailingDisk(Disk):
    """The call of that number raises that error, once."""

    def __init__(self) -> None:
        self.calls, self.failing, self.error = 0, -1, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.failing:
            raise OSError(self.error, os.strerror(self.error))

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write(self, descriptor: int, data: Any) -> None:
        self._count()
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._count()  # and no waiting for a device

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


def calls_of_a_save(folder: Path) -> int:
    disk = FailingDisk()
    with CheckpointStore(folder, keep_last=1, disk=disk) as store:
        store.save(contents(1)).wait()
        before = disk.calls
        store.save(contents(2)).wait()
    return disk.calls - before


def failure(store: CheckpointStore, handle: Handle) -> str:
    """What the save failed with; empty if it did not."""
    try:
        handle.wait()
        store.check()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("error", WORDS, ids=errno.errorcode.get)
def test_any_call_may_fail(tmp_path: Path, error: int) -> None:
    """At every call of a save and its pruning: the error says why, nothing is lost, the next save is as ever."""
    total = calls_of_a_save(tmp_path / "counted")
    assert total >= 14
    told = 0
    for failing in range(total):
        run_dir, disk = tmp_path / str(failing), FailingDisk()
        with CheckpointStore(run_dir, keep_last=1, disk=disk) as store:
            store.save(contents(1)).wait()
            disk.error, disk.failing = error, disk.calls + failing
            handle = store.save(contents(2))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                message = failure(store, handle)
            told += bool(message)
            (text,) = [message] if message else [str(warning.message) for warning in caught]  # an old one stays
            assert all(words in text for words in (WORDS[error], os.strerror(error), str(run_dir)))
            newest = newest_checkpoint(run_dir)
            assert newest is not None
            found = read_checkpoint(newest)
            assert_same_contents(found, contents(found.update))
            store.save(contents(3)).wait()
            assert store.newest() == store.list()[-1]
        CheckpointStore(run_dir).close()
        assert not [path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
    assert told >= total - 4


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python with that code after the usual imports."""
    start = (
        "import os, resource, sys\nfrom pathlib import Path\nfrom support.checkpoints import contents\n"
        "from multibackend.checkpoint import CheckpointStore, read_checkpoint, write_checkpoint\n"
        "from multibackend.errors import CheckpointError\nrun_dir = Path(sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_real_limit_on_files(tmp_path: Path) -> None:
    """The operating system itself refuses the bytes half-way through a file."""
    done = child(
        """
store = CheckpointStore(run_dir)
store.save(contents(1)).wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save(contents(2, size=1_000_000)).wait()
except CheckpointError as error:
    print(error)
""",
        tmp_path,
    )
    assert "the file would be larger than is allowed here" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000001"]
    assert_same_contents(read_checkpoint(list_checkpoints(tmp_path)[0]), contents(1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where the tests may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    """The half-written save gives its space back, so that smaller ones fit again."""
    with CheckpointStore(small_disk / "run") as store:
        store.save(contents(1, size=100_000)).wait()
        with pytest.raises(CheckpointError, match="the disk is full"):
            store.save(contents(2, size=300_000)).wait()
        path = store.save(contents(3, size=100_000)).wait()
        assert store.newest() == path
        assert_same_contents(read_checkpoint(store.list()[0]), contents(1, size=100_000))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="changes the user")
def test_permission_denied() -> None:
    """Neither opening a run nor writing a checkpoint in another user's directory; reading is allowed."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = write_checkpoint(folder / "mine", contents(1))
        done = child(
            """
os.setgid(65534), os.setuid(65534)
print(read_checkpoint(run_dir / "mine").update)
for act in (lambda: CheckpointStore(run_dir), lambda: write_checkpoint(run_dir / "x", contents(1))):
    try:
        act()
    except CheckpointError as error:
        print(error)
""",
            folder,
        )
        assert done.stdout.count("permission denied; check who owns the directory") == 2, done
        assert done.stdout.startswith("1\n")
        (path / "optimizer.safetensors").chmod(0)
        done = child("os.setgid(65534), os.setuid(65534)\nread_checkpoint(run_dir)", path)
        assert "CheckpointError" in done.stderr
        assert "optimizer.safetensors cannot be read" in done.stderr
    finally:
        shutil.rmtree(folder)


def test_a_vanished_run(tmp_path: Path) -> None:
    """Removed, or replaced by another, while the run was going on: it is not quietly made anew."""
    run_dir = tmp_path / "run"
    with CheckpointStore(run_dir) as store:
        store.save(contents(1)).wait()
        shutil.rmtree(run_dir)
        with pytest.raises(CheckpointError, match="has vanished"):
            store.save(contents(2))
        assert not run_dir.exists()
        assert store.newest() is None
        with CheckpointStore(run_dir) as other, pytest.raises(CheckpointError, match="was replaced by another"):
            store.save(contents(2))
        assert other.list() == []


def test_vanished_checkpoints(tmp_path: Path) -> None:
    """Only the folder of the checkpoints is gone."""
    with CheckpointStore(tmp_path) as store:
        shutil.rmtree(tmp_path / "checkpoints")
        with pytest.raises(CheckpointError, match="checkpoints has vanished"):
            store.save(contents(1))
        assert not (tmp_path / "checkpoints").exists()


def test_one_that_somebody_removed(tmp_path: Path) -> None:
    """A checkpoint that was removed by hand is no longer pruned, nor missed."""
    with CheckpointStore(tmp_path, keep_last=2) as store:
        for update in (1, 2, 3, 4):
            shutil.rmtree(store.save(contents(update)).wait())
        assert store.list() == []


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    """Or lies below one."""
    (tmp_path / "file").write_text("mine")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=r"is a file, not a directory|exists"):
            CheckpointStore(run_dir)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("mine")
    with pytest.raises(CheckpointError):
        CheckpointStore(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").read_text() == "mine"


def test_a_linked_run_directory(tmp_path: Path) -> None:
    """The link is followed once: pointing it elsewhere later, or changing directory, moves nothing."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "link").symlink_to("one")
    with CheckpointStore(tmp_path / "link") as store:
        with pytest.raises(CheckpointError, match="another run writes"):
            CheckpointStore(tmp_path / "one")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("two")
        path = store.save(contents(1)).wait()
    assert path == tmp_path / "one" / "checkpoints" / "update-00000001"
    assert list_checkpoints(tmp_path / "link") == []


def test_a_linked_checkpoint_is_not_one_of_the_run(tmp_path: Path) -> None:
    """It is not counted, not pruned, and what it points at stays."""
    elsewhere = write_checkpoint(tmp_path / "elsewhere", contents(9))
    with CheckpointStore(tmp_path / "run", keep_last=1) as store:
        (tmp_path / "run" / "checkpoints" / "update-00000009").symlink_to(elsewhere)
        for update in (1, 2):
            store.save(contents(update)).wait()
        assert [path.name for path in store.list()] == ["update-00000002"]
        with pytest.raises(CheckpointError, match="exists already"):
            store.save(contents(9)).wait()
    assert_same_contents(read_checkpoint(elsewhere), contents(9))


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    """Files from the future and the past change neither the order nor what is kept."""
    with CheckpointStore(tmp_path, keep_last=2) as store:
        for update in (1, 2, 3):
            path = store.save(contents(update)).wait()
            os.utime(path, (4e9 - 1e9 * update, 4e9 - 1e9 * update))
        assert [path.name for path in store.list()] == ["update-00000002", "update-00000003"]
        assert store.newest() == path


def test_many_checkpoints_are_listed_quickly(tmp_path: Path) -> None:
    """Ten thousand, by their names alone; the newest is found without looking at the others."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for update in range(10_000):
        (folder / f"update-{update:08d}").mkdir()
    with CheckpointStore(tmp_path, keep_last=None) as store:
        store.save(contents(10_000)).wait()
        started = time.perf_counter()
        newest = store.newest()
        assert newest is not None
        assert newest.name == "update-00010000"
        assert time.perf_counter() - started < 2


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has none the run goes on, with a warning."""

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(CheckpointWarning, match="a file system without locks"):
        store = CheckpointStore(tmp_path)
    store.save(contents(1)).wait()
    store.close()


def test_a_manifest_that_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    """Before anything is acknowledged: here too many tensors for a header."""
    parameters = {f"layer.{n}": contents().tensors["parameters"]["layer.bias"] for n in range(30_000)}
    with pytest.raises(CheckpointError, match="values, more than"):
        write_checkpoint(tmp_path / "x", type(contents())({"parameters": parameters}, {}, 1))
    assert list(tmp_path.iterdir()) == []


def test_directories_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system knows no fsync of a directory there is nothing to wait for; a file's still counts."""
    real, refused = os.fsync, []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert_same_contents(read_checkpoint(write_checkpoint(tmp_path / "x", contents(1))), contents(1))
    assert len(refused) == 2


def test_no_more_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is then made at once."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with CheckpointStore(tmp_path) as store:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        handle = store.save(contents(1))
        assert handle.done
        assert store.newest() == handle.wait()
