"""A log with one JSON object per event and line, `log.jsonl` in the run's directory.

Every line has "event" and "time" (seconds since 1970); NaN and infinities are null. There is one
writer at a time, who holds the lock of the run's directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.checkpoint.lock import LOCK, Lock
from multibackend.core.files import cause_of
from multibackend.errors import CheckpointError, FileError, LogWarning
from multibackend.events import Event, FitFinished, FitStarted, UpdateFinished

__all__ = ["JsonLog", "read_log"]

_FILE = "log.jsonl"
_BEGINNING = '{"event": '  # of every line; inside one its quotation marks would be escaped
_SECONDS_BETWEEN_WRITES = 1.0
_MOST_WAITING = 100_000  # lines, of some 300 bytes each, while none can be written
# a planted link would let the log write elsewhere
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class JsonLog:
    """A listener that appends events to `log.jsonl`: updates within a second, others at once.

    A log that cannot be written ends `fit` where it begins, or else where it has ended: until then
    its lines wait, tried again and again, with one `LogWarning`, for a training is worth more than
    its log. Nothing is written while another run holds the directory.

    Args:
        directory: of the run; made if need be.
        is_locked: whether this run holds the directory's lock; if not, the log takes it for each
            write.

    Raises:
        FileError: there is no such directory, and it cannot be made; of an event, that lines are
            missing in the file.
    """

    def __init__(self, directory: Path, is_locked: Callable[[], bool] = lambda: False) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise FileError(
                f"the run directory {directory} cannot be made: {cause_of(error)}", path=directory
            ) from error
        self._directory = directory
        self._is_locked = is_locked
        self._lines: list[str] = []
        self._lost = 0
        self._written = time.monotonic()
        self._warned = False

    def __call__(self, event: Event) -> None:
        line = {"event": type(event).__name__, "time": round(time.time(), 3), **_plain(event)}
        if len(self._lines) < _MOST_WAITING:
            self._lines.append(json.dumps(line, allow_nan=False) + "\n")
        else:
            self._lost += 1
        # a small model makes thousands of updates a second: opening a file for each would slow it
        if isinstance(event, UpdateFinished) and time.monotonic() - self._written <= _SECONDS_BETWEEN_WRITES:
            return
        self._written = time.monotonic()
        try:
            # opened anew each time: no closing is needed, and a killed run keeps what was written
            with self._locked() as is_ours:
                if is_ours:
                    _append(self._directory / _FILE, "".join(self._lines).encode("ascii"))
        except OSError as error:
            self._tell(error, event)
        else:
            self._lines = []

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the directory's lock; yields False where another run has it."""
        # where there is no lock nobody saves, and lines are appended whole
        if self._is_locked() or not os.path.lexists(self._directory / LOCK):
            yield True
            return
        try:
            lock = Lock(self._directory)
        except CheckpointError as refusal:
            self._warn(f"this run's log is not written: {refusal}")
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _tell(self, error: OSError, event: Event) -> None:
        """Raise where nothing is lost by it, else warn."""
        path = self._directory / _FILE
        problem = f"{path} cannot be written: {cause_of(error)}"
        if isinstance(event, FitStarted):
            self._lines = []
            raise FileError(f"{problem}. No update was made", path=path) from error
        if isinstance(event, FitFinished):
            missing = len(self._lines) + self._lost
            self._lines = []
            raise FileError(
                f"{problem}. {missing} events are missing in it; the training itself has ended as it should, and is "
                "saved where it was to be saved",
                path=path,
            ) from error
        self._warn(f"{problem}. The run goes on, and its events wait")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, LogWarning, stacklevel=2)


def read_log(directory: str | Path) -> list[dict[str, Any]]:
    """Read the events of a run's log, as they were written.

    Lines that are none, such as the half line of a run that was killed while it wrote, are passed
    over with a `LogWarning`.

    Raises:
        FileError: there is no log, or it cannot be read.

    >>> events = read_log("runs/digits")                                                         # doctest: +SKIP
    >>> [line["record"]["loss"] for line in events if line["event"] == "UpdateFinished"]         # doctest: +SKIP
    [2.31, 1.98, ...]
    """
    path = Path(directory) / _FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileError(
            f"there is no log at {path}; a run with run_dir={str(directory)!r} writes it", path=path
        ) from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {cause_of(error)}", path=path) from error
    events = []
    broken = []
    for number, raw in enumerate(content.split(b"\n"), start=1):
        event = _read_line(raw)
        if event is not None:
            events.append(event)
        # where an older version went on behind a half line, the later one is whole
        if raw and (event is None or raw.count(_BEGINNING.encode()) > 1):
            broken.append(number)
    if broken:
        listed = ", ".join(str(number) for number in broken[:5])
        warnings.warn(f"{path}: passed over {len(broken)} broken lines: {listed}", LogWarning, stacklevel=2)
    return events


def _read_line(raw: bytes) -> dict[str, Any] | None:
    """Return the last event of a line, of which there is but one unless it begins with half of another; else None."""
    start = max(raw.rfind(_BEGINNING.encode()), 0)
    try:
        event = json.loads(raw[start:].decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _append(path: Path, data: bytes) -> None:
    """Append to a file all of `data` or nothing, on a line of its own."""
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        size = status.st_size
        # a run that was killed while it wrote has left half a line
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Return what JSON can hold: NaN and infinities become None, dataclasses and arrays what they consist of."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    is_plain = value is None or isinstance(value, str | bool | int | float)
    return value if is_plain else repr(value)
