"""The checkpoints of one run, for its writer: saved in the background, the old ones pruned."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from multibackend.checkpoint.contents import CheckpointKey, Contents, checkpoint_name, parse_name
from multibackend.checkpoint.disk import Disk, explain
from multibackend.checkpoint.listing import CHECKPOINTS, list_checkpoints, newest_valid
from multibackend.checkpoint.lock import Lock
from multibackend.checkpoint.reading import read_manifest
from multibackend.checkpoint.retention import Retention
from multibackend.checkpoint.writing import SAVING, TRASH, remove_checkpoint, write_checkpoint
from multibackend.errors import CheckpointError, CheckpointWarning

__all__ = ["CheckpointStore", "Handle"]

_METRIC = "metric"  # the manifest's field with the value that retention goes by


class Handle:
    """A save that may still be going on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = threading.Event()
        self._error: CheckpointError | None = None
        self._raised = False  # whether somebody has been told of the error

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> Path:
        """Wait until the checkpoint is on the device, and return its path.

        Raises:
            CheckpointError: the save failed, or it is not done after `timeout` seconds.
        """
        if not self._done.wait(timeout):
            raise CheckpointError(f"the checkpoint {self.path} is not written after {timeout} s", path=self.path)
        if self._error is not None:
            self._raised = True
            raise self._error
        return self.path


class CheckpointStore:
    """The checkpoints of one run directory, for the one run that writes there.

    Opening it makes the directory, takes its lock and clears away what killed saves have left. One
    save is in flight at most; another waits for it. A save counts once its handle's `wait()` has
    returned: then it survives the process and the machine.

    Args:
        run_dir: the run's directory; checkpoints lie in "checkpoints" in it.
        keep_last, keep_best, best_metric, best_mode, keep_every: see `Retention`.
        disk: the file system, for tests.

    Raises:
        CheckpointError: another run writes there, or the directory cannot be used.
        ConfigurationError: a rule of retention is wrong.

    >>> with CheckpointStore("runs/digits", keep_last=2) as store:                   # doctest: +SKIP
    ...     store.save(contents).wait()
    PosixPath('/.../runs/digits/checkpoints/update-00000120')
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        keep_last: int | None = 3,
        keep_best: int = 0,
        best_metric: str | None = None,
        best_mode: str = "min",
        keep_every: int | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.retention = Retention(
            keep_last=keep_last,
            keep_best=keep_best,
            best_metric=best_metric,
            best_mode=best_mode,
            keep_every=keep_every,
        )
        self._disk = disk or Disk()
        # once, here: neither a change of directory nor a link that is turned elsewhere moves a run
        self.run_dir = _resolved(run_dir)
        self._folder = self.run_dir / CHECKPOINTS
        self._current: Handle | None = None
        self._notes: list[str] = []  # what the background thread has to say, kept for the next call
        self._damaged: set[str] = set()
        self._metrics: dict[str, float | None] = {}
        try:
            self._disk.make_directories(self.run_dir)
            self._lock = Lock(self.run_dir)
            self._prepare()
        except OSError as error:
            raise explain(error, "opening the run directory", self.run_dir) from error

    def save(self, contents: Contents, *, metric: float | None = None, background: bool = True) -> Handle:
        """Save, then remove what retention does not keep.

        Args:
            contents: its arrays must not change until the save is done: a snapshot of the caller's.
            metric: the value that `keep_best` goes by.
            background: write in a thread; else return when the checkpoint is on the device.

        Raises:
            CheckpointError: the save before this one failed (this one is then not begun), or with
                `background=False` this one.
        """
        self.check(wait=True)
        self._lock.check()
        if not self._folder.is_dir():
            raise CheckpointError(
                f"{self._folder} has vanished: something removed it during the run", path=self.run_dir
            )
        contents = self._with_metric(contents, metric)
        handle = Handle(self._folder / self._next_name(contents))
        self._current = handle
        if background:
            self._start(handle, contents)
        else:
            self._run(handle, contents)
            self.check()
        return handle

    def check(self, *, wait: bool = False) -> None:
        """Raise what a save in the background has failed with, once; `wait` for its end first."""
        if wait:
            self._wait()
        while self._notes:
            warnings.warn(self._notes.pop(0), CheckpointWarning, stacklevel=2)
        handle = self._current
        if handle is not None and handle.done:
            self._current = None
            if not handle._raised:
                handle.wait()

    def newest(self) -> Path | None:
        """Find the newest valid checkpoint; damaged ones are warned of, and never pruned."""
        self._wait()
        return newest_valid(self.list(), self._damaged.add)

    def list(self) -> list[Path]:
        """List the complete checkpoints, oldest first, by their names alone."""
        return list_checkpoints(self.run_dir)

    @property
    def is_locked(self) -> bool:
        """Whether this store holds its directory, which is where it was."""
        try:
            self._lock.check()
        except CheckpointError:
            return False
        return True

    def close(self) -> None:
        """Wait for the save in flight, give the lock back, and raise what the save failed with."""
        self._wait()
        self._lock.release()
        self.check()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.close()
            return
        with contextlib.suppress(CheckpointError):  # the exception that is under way says more
            self.close()

    def _prepare(self) -> None:
        """Clear away what killed saves and removals have left, which only the lock's holder may."""
        try:
            self._disk.make_directories(self._folder)
            for entry in list(os.scandir(self._folder)):
                if entry.name.startswith((SAVING, TRASH)) and entry.is_dir(follow_symlinks=False):
                    self._disk.remove_tree(Path(entry.path))
            if self.retention.keep_best:
                self._metrics = {path.name: self._saved_metric(path) for path in self.list()}
        except BaseException:
            self._lock.release()
            raise

    def _wait(self) -> None:
        if self._current is not None:
            self._current._done.wait()

    def _start(self, handle: Handle, contents: Contents) -> None:
        # not a daemon: an exception elsewhere that ends the program does not cut off a save
        thread = threading.Thread(target=self._run, args=(handle, contents), name="multibackend-checkpoint")
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is about to end
            self._run(handle, contents)

    def _run(self, handle: Handle, contents: Contents) -> None:
        """Write and prune; nobody sees a thread's exception, so it is kept for the next call."""
        path = handle.path
        try:
            write_checkpoint(path, contents, self._disk)
            if self.retention.keep_best:
                self._metrics[path.name] = _metric_value(contents.extra, self.retention.best_metric)
            self._prune(path)
        except CheckpointError as error:
            handle._error = error
        except Exception as error:
            handle._error = CheckpointError(f"writing the checkpoint {path} failed: {error!r}", path=path)
            handle._error.__cause__ = error
        finally:
            handle._done.set()

    def _prune(self, latest: Path) -> None:
        """Remove what no rule keeps; what cannot be removed is told, and does not spoil the save."""
        try:
            # a damaged one takes no sound one's place, and parts of it may still be of use
            sound = [path for path in self.list() if path.name not in self._damaged]
        except CheckpointError as error:
            self._notes.append(str(error))
            return
        # of two checkpoints of one place the later stays, whatever the rules say
        place = _key(latest).place
        replaced = [path for path in sound if path != latest and _key(path).place == place]
        others = [path for path in sound if path not in replaced]
        for path in [*replaced, *self.retention.surplus(others, self._metrics)]:
            self._metrics.pop(path.name, None)
            try:
                remove_checkpoint(path, self._disk)
            except CheckpointError as error:
                self._notes.append(str(error))

    def _next_name(self, contents: Contents) -> str:
        place = (contents.update, contents.micro_batches)
        checkpoints = self.list()
        if not checkpoints:
            return checkpoint_name(*place)
        newest = _key(checkpoints[-1])
        generation = newest.generation
        if place <= newest.place:  # the run went back, or saves the same place again
            generation += 1
        return checkpoint_name(*place, generation)

    def _with_metric(self, contents: Contents, metric: float | None) -> Contents:
        """Put the metric into the contents; one that they were read with is another save's, and goes."""
        extra = {name: value for name, value in contents.extra.items() if name != _METRIC}
        if metric is not None:
            value = float(metric) if math.isfinite(metric) else None  # JSON holds no other, and no rule ranks them
            extra[_METRIC] = {"name": self.retention.best_metric, "value": value}
        return replace(contents, extra=extra)

    def _saved_metric(self, path: Path) -> float | None:
        try:
            return _metric_value(read_manifest(path).extra, self.retention.best_metric)
        except CheckpointError:
            return None  # whether it can be used is `newest`'s business


def _resolved(run_dir: str | Path) -> Path:
    try:
        return Path(os.path.realpath(run_dir))
    except (OSError, ValueError) as error:
        raise explain(error, "finding the run directory", run_dir) from error


def _metric_value(extra: Mapping[str, Any], name: str | None) -> float | None:
    """Return the value of the metric of that name that a checkpoint was saved with, if any."""
    metric = extra.get(_METRIC)
    if not isinstance(metric, Mapping) or metric.get("name") != name:
        return None
    value = metric.get("value")
    # the manifest may be a stranger's: JSON's true is an int to Python
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _key(path: Path) -> CheckpointKey:
    key = parse_name(path.name)
    assert key is not None, "only names of checkpoints are listed"
    return key
