"""A log with one JSON object per event and line, `log.jsonl` in the run's directory.

Every line has "event" and "time" (seconds since 1970); NaN and infinities are null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.events import Event, UpdateFinished

__all__ = ["JsonLog", "read_log"]

_FILE = "log.jsonl"
_SECONDS_BETWEEN_WRITES = 1.0


class JsonLog:
    """A listener that appends events to `log.jsonl`: updates within a second, others at once."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / _FILE
        self._lines: list[str] = []
        self._written = time.monotonic()

    def __call__(self, event: Event) -> None:
        line = {"event": type(event).__name__, "time": round(time.time(), 3)}
        line |= _plain(dataclasses.asdict(event))
        self._lines.append(json.dumps(line, allow_nan=False) + "\n")
        # a small model makes thousands of updates a second: opening a file for each would slow it
        if isinstance(event, UpdateFinished) and time.monotonic() - self._written <= _SECONDS_BETWEEN_WRITES:
            return
        # opened anew each time: no closing is needed, and a killed run keeps what was written
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(self._lines)
        self._lines = []
        self._written = time.monotonic()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Read the events of a run's log, as they were written."""
    with (directory / _FILE).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
