"""What saving asks of a file system, in one place: a test records the order and pulls the plug."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from multibackend.core.files import cause_of
from multibackend.errors import CheckpointError

__all__ = ["Disk", "explain"]

_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves data in the drive's cache
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP}  # some network and user-space file systems


class Disk:
    """Calls of the operating system, none with a promise of its own; the order makes the promise."""

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> int:
        # exclusive: nothing that lies there is written over, nor through where it is a link
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: Any) -> None:
        unwritten = memoryview(data)
        while unwritten:
            # the system takes at most 2 GiB at once, and less where a signal cuts in
            count = os.write(descriptor, unwritten)
            unwritten = unwritten[count:]

    def sync(self, descriptor: int) -> None:
        """Wait until the bytes of a file, or the names in a directory, are on the device."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        else:
            os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all in it; links are removed, never followed."""
        shutil.rmtree(path)

    def write_file(self, path: Path, pieces: Iterable[Any]) -> None:
        """Write a new file with those bytes, all of them on the device when this returns."""
        descriptor = self.create(path)
        try:
            for piece in pieces:
                self.write(descriptor, piece)
            self.sync(descriptor)
        finally:
            self.close(descriptor)

    def make_directories(self, path: Path) -> None:
        """Make a directory and those missing above it, and bring their names to the device."""
        missing = []
        directory = path
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        # from the top: each name is safe before anything is put below it
        for directory in reversed(missing):
            with suppress(FileExistsError):  # another process was quicker
                self.make_directory(directory)
            self.sync_directory(directory.parent)


def explain(error: OSError | ValueError, doing: str, path: object) -> CheckpointError:
    """Say what an operating system's error means for a checkpoint."""
    return CheckpointError(f"{doing} {path} failed: {cause_of(error)}", path=path)
