"""One writer per run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
import weakref
from pathlib import Path

from multibackend.errors import CheckpointError, CheckpointWarning

__all__ = ["LOCK", "Lock"]

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_MOST_TEXT = 1000


class Lock:
    """An advisory lock (`flock`) on the file `.lock` of a directory, with the holder's process and host as its text.

    The operating system gives it back when the process ends, however it ends, so a killed run leaves nothing to clear
    away; the text of a dead holder means nothing. On a network file system a lock holds between hosts only if the
    server supports it (NFS since Linux 2.6.12 with its lock service running); where locking is not supported at all, a
    `CheckpointWarning` says so and the run goes on without.

    Raises:
        CheckpointError: another writer, in this process or another, holds it; the message says who.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self.descriptor)
            raise
        self._release = weakref.finalize(self, os.close, self.descriptor)  # also if nobody closes the store
        self._release.atexit = False
        _HELD.add(self)

    def check(self) -> None:
        """Raise `CheckpointError` if the lock is not held, or the run directory is not the one it was taken on."""
        if not self._release.alive:
            raise CheckpointError(f"the lock of {self.path.parent} was given back: it is closed", path=self.path.parent)
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            raise CheckpointError(
                f"the run directory {self.path.parent} has vanished, or its {LOCK}: something removed it while the run "
                f"was going on ({error})",
                path=self.path.parent,
            ) from error
        if not os.path.samestat(there, os.fstat(self.descriptor)):
            raise CheckpointError(
                f"the run directory {self.path.parent} was replaced by another while the run was going on",
                path=self.path.parent,
            )

    def release(self) -> None:
        """Let another writer in; the file stays, since removing it could let in two."""
        self._release()

    def _take(self) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                warnings.warn(
                    f"{self.path.parent} is on a file system without locks ({error}): make sure that no other run "
                    "writes there",
                    CheckpointWarning,
                    stacklevel=4,
                )
                return
            raise CheckpointError(
                f"another run writes in {self.path.parent}: {self._holder()}. Choose another run directory, or end it",
                path=self.path.parent,
            ) from error
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _holder(self) -> str:
        try:
            text = json.loads(os.pread(self.descriptor, _MOST_TEXT, 0))
            pid, host = int(text["pid"]), str(text["host"])[:100]
        except (OSError, ValueError, TypeError, KeyError):
            return "a process that did not leave its name"
        if (pid, host) == (os.getpid(), socket.gethostname()):
            return "this very process, whose other trainer for this directory is still open"
        return f"process {pid} on {host!r}"


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child, such as a data loader's worker: it must not hold the lock on when the run is killed."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_forget)
