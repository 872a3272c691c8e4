"""What happens in a run, as typed events. A listener is any function that takes an event.

    FitStarted  (UpdateFinished | WindowSkipped | EpochFinished | EvaluationFinished)*  FitFinished | FitFailed

A listener may end the run: it returns `Stop(reason)`. The device runs ahead of the host, so updates that were already
handed to it are still made; after an evaluation there are none. A listener that raises ends the run too, with its own
error: every other listener still hears the event, and the trainer stays usable, in the state after those updates.

>>> def stop_at_a_small_loss(event):
...     if isinstance(event, UpdateFinished) and event.record.loss < 0.01:
...         return Stop("the loss is small")
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multibackend.core.history import SkippedWindow, UpdateRecord

__all__ = [
    "Broadcast",
    "EpochFinished",
    "EvaluationFinished",
    "Event",
    "FitFailed",
    "FitFinished",
    "FitStarted",
    "Listener",
    "MicroBatchChosen",
    "SmallMicroBatch",
    "Stop",
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
    execution: str


@dataclass(frozen=True)
class MicroBatchChosen(Event):
    """`micro_batch_size="auto"` became a number: the largest within `limit` bytes, after `trials` trials (0 where the
    answer was known). `steps` of them make an update.
    """

    micro_batch_size: int
    steps: int
    limit: int
    trials: int


@dataclass(frozen=True)
class SmallMicroBatch(Event):
    """At the first `fit`: BatchNorm layers take their statistics from micro-batches that are small."""

    layers: tuple[str, ...]
    micro_batch_size: int
    message: str


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
    """An evaluation gave `metrics` after update number `update`.

    `ema` tells whether the moving average was evaluated, `scheduled` whether `fit(evaluate_every=...)` asked for it.
    """

    update: int
    metrics: Mapping[str, Any]
    ema: bool = False
    scheduled: bool = False


@dataclass(frozen=True)
class FitFinished(Event):
    """`fit` ended after `seconds`, at update number `update`; `stopped` is the reason where a listener ended it."""

    update: int
    seconds: float
    stopped: str | None = None


@dataclass(frozen=True)
class FitFailed(Event):
    """`fit` ended with an error; the trainer stays usable, in the state after update number `update`."""

    update: int
    error: str


@dataclass(frozen=True)
class Stop:
    """What a listener returns to end the run, with the reason, which becomes `FitResult.stopped`."""

    reason: str


Listener = Callable[[Event], Any]


class Broadcast:
    """Tells listeners of events; costs nothing where nobody listens.

    Attributes:
        stop: what the first listener that asked for it gave; cleared by whoever obeys it.
    """

    def __init__(self, listeners: Sequence[Listener], *, experiment: str, backend: str) -> None:
        self._listeners = tuple(listeners)
        self._common = {"experiment": experiment, "backend": backend}
        self.stop: Stop | None = None

    def __call__(self, kind: type[Event], **details: Any) -> None:
        """One event."""
        self.tell([(kind, details)])

    def tell(self, happened: Iterable[tuple[type[Event], Mapping[str, Any]]]) -> None:
        """Events in order. The error of a listener is raised once all others have heard them all."""
        if not self._listeners:
            return
        listeners, first = list(self._listeners), None
        for kind, details in happened:
            event = kind(**self._common, **details)
            for listener in tuple(listeners):
                try:
                    answer = listener(event)
                except Exception as error:
                    listeners = [other for other in listeners if other is not listener]
                    first = first or error
                    continue
                if isinstance(answer, Stop) and self.stop is None:
                    self.stop = answer
        if first is not None:
            raise first

    @contextlib.contextmanager
    def joined_by(self, listener: Listener | None) -> Iterator[None]:
        """Where one more listener hears, once if it is among them already."""
        before = self._listeners
        if listener is not None and not any(listener is other for other in before):
            self._listeners = (*before, listener)
        try:
            yield
        finally:
            self._listeners = before
