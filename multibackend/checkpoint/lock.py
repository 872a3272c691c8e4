"""One writer per run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from multibackend.core.json_text import load
from multibackend.errors import CheckpointError, CheckpointWarning

__all__ = ["LOCK", "Lock"]

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_MOST_TEXT = 1000
_PATIENCE = 0.25  # seconds: a log outside of `fit` holds the lock for a write
_PAUSE = 0.005


class Lock:
    """An advisory lock (`flock`) on a directory's file `.lock`, whose text names process and host.

    The operating system gives it back when the process ends, however it ends, so a killed run
    leaves nothing to clear away; the text of a dead holder means nothing. On a network file system
    a lock holds between hosts only if the server supports it (NFS since Linux 2.6.12 with its lock
    service running); where locking is not supported at all, a `CheckpointWarning` says so and the
    run goes on without.

    Raises:
        CheckpointError: another writer, in this process or another, holds it; the message says who.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / LOCK
        # not truncated: the text is the holder's until the lock is ours
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._release = weakref.finalize(self, os.close, self._descriptor)  # also of a dropped store
        self._release.atexit = False  # the system closes it then, after whatever still saves
        _LOCKS.add(self)

    def check(self) -> None:
        """Raise `CheckpointError` if the lock is not held, or was taken on another directory."""
        if not self._release.alive:
            raise self._fault(f"the lock of {self._directory} was given back: it is closed")
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except OSError as error:
            raise self._fault(
                f"the run directory {self._directory} has vanished, or its {LOCK}: something removed it while the "
                f"run was going on ({error})"
            ) from error
        # another file of that name has a lock of its own, which another run may hold
        if not os.path.samestat(status, os.fstat(self._descriptor)):
            raise self._fault(f"the run directory {self._directory} was replaced by another while the run was going on")

    def release(self) -> None:
        """Let another writer in; the file stays, since removing it could let in two."""
        self._release()

    def _take(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._warn_of_no_locks(error)
                    return
                if time.monotonic() >= deadline:
                    raise self._fault(
                        f"another run writes in {self._directory}: {self._holder()}. "
                        "Choose another run directory, or end it"
                    ) from error
            time.sleep(_PAUSE)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def _warn_of_no_locks(self, error: OSError) -> None:
        warnings.warn(
            f"{self._directory} is on a file system without locks ({error}): make sure that no other run writes there",
            CheckpointWarning,
            stacklevel=5,  # the store's caller
        )

    def _holder(self) -> str:
        """Say who holds the lock, from a text that may be half-written, a stranger's or none."""
        try:
            holder = load(os.pread(self._descriptor, _MOST_TEXT, 0))
            pid = int(holder["pid"])
            host = str(holder["host"])[:100]
        except (OSError, ValueError, TypeError, KeyError):
            return "a process that did not leave its name"
        if (pid, host) == (os.getpid(), socket.gethostname()):
            return "this very process, whose other trainer for this directory is still open"
        return f"process {pid} on {host!r}"

    def _fault(self, problem: str) -> CheckpointError:
        return CheckpointError(problem, path=self._directory)


_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


def _release_in_child() -> None:
    # A forked child, such as a data loader's worker, shares the open file, and with it the lock,
    # which would be held on by a worker that outlives its killed run. Closing the child's copy
    # leaves the parent's lock alone.
    for lock in list(_LOCKS):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
