"""What happens in a run, as typed events. A listener is any function that takes an event.

>>> def print_loss(event):
...     if isinstance(event, UpdateFinished):
...         print(event.record.update, event.record.loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multibackend.history import SkippedWindow, UpdateRecord

__all__ = [
    "Broadcast",
    "EpochFinished",
    "EvaluationFinished",
    "Event",
    "FitFinished",
    "FitStarted",
    "Listener",
    "UpdateFinished",
    "WindowSkipped",
]


@dataclass(frozen=True)
class Event:
    """What every event has: the experiment's name and the backend."""

    experiment: str
    backend: str


@dataclass(frozen=True)
class FitStarted(Event):
    """`fit` begins at update number `update`; it ends at `updates`, an estimate where epochs decide.

    `updates` is None where epochs decide and the data do not tell how many examples they have.
    """

    update: int
    updates: int | None
    device: str
    strategy: str


@dataclass(frozen=True)
class UpdateFinished(Event):
    """An update was made. Several may arrive together: results are read from the device at intervals."""

    record: UpdateRecord


@dataclass(frozen=True)
class WindowSkipped(Event):
    """A window made no update."""

    skipped: SkippedWindow


@dataclass(frozen=True)
class EpochFinished(Event):
    """All windows of epoch number `epoch` (0 for the first) have run."""

    epoch: int
    update: int


@dataclass(frozen=True)
class EvaluationFinished(Event):
    """`evaluate` gave `metrics` after update number `update`."""

    update: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FitFinished(Event):
    """`fit` ended after `seconds`, at update number `update`."""

    update: int
    seconds: float


Listener = Callable[[Event], None]


class Broadcast:
    """Tells listeners of events; costs nothing where nobody listens."""

    def __init__(self, listeners: Sequence[Listener], *, experiment: str, backend: str) -> None:
        self._listeners = tuple(listeners)
        self._common = {"experiment": experiment, "backend": backend}

    def __call__(self, kind: type[Event], *, each: Iterable[Any] | None = None, **details: Any) -> None:
        """One event of a kind with `details`; or one per record of `each`."""
        if not self._listeners:
            return
        for fields in [details] if each is None else ({"record": record} for record in each):
            event = kind(**self._common, **fields)
            for listener in self._listeners:
                listener(event)
