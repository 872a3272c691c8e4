"""What happens in a run, as typed events. A listener is any function that takes an event.

    FitStarted
    RunDescribed?   (a trainer's first call of `fit`)
    Remark*
    (UpdateFinished | WindowSkipped | EpochFinished | EvaluationFinished)*
    FitFinished | FitFailed

A `Watcher` hears `UpdatesFinished`, of many updates at once, in place of each `UpdateFinished`.

A listener may end the run: it returns `Stop(reason)`. The device runs ahead of the host, so updates
that were already handed to it are still made; after an evaluation there are none. A listener that
raises ends the run too, with its own error: every other listener still hears the event, and the
trainer stays usable, in the state after those updates.

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
from multibackend.core.user_code import add_origin, name_of

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
    "Remark",
    "RunDescribed",
    "SmallMicroBatch",
    "Stop",
    "UpdateFinished",
    "UpdatesFinished",
    "Watcher",
    "WindowSkipped",
]


@dataclass(frozen=True)
class Event:
    """What every event has: the experiment's name and the backend."""

    experiment: str
    backend: str


@dataclass(frozen=True)
class FitStarted(Event):
    """`fit` begins at update number `update` and ends at `updates`, estimated where epochs decide.

    `updates` is None where epochs decide and the data do not tell how many examples they have.
    `initial` tells where the run's first parameters came from, as `Experiment(initial=...)` does.
    """

    update: int
    updates: int | None
    device: str
    execution: str
    initial: str = "native"


@dataclass(frozen=True)
class MicroBatchChosen(Event):
    """`micro_batch_size="auto"` became a number: the largest within `limit` bytes, after `trials`
    trials (0 where the answer was known). `steps` of them make an update.
    """

    micro_batch_size: int
    steps: int
    limit: int
    trials: int


@dataclass(frozen=True)
class SmallMicroBatch(Event):
    """At the first `fit`: BatchNorm layers take their statistics from small micro-batches."""

    layers: tuple[str, ...]
    micro_batch_size: int
    message: str


@dataclass(frozen=True)
class RunDescribed(Event):
    """What is trained, and with which settings and versions, in words by name; once for each trainer."""

    settings: Mapping[str, str]


@dataclass(frozen=True)
class Remark(Event):
    """What whoever started this call of `fit` may not expect, as a sentence; also in `FitResult.remarks`."""

    message: str


@dataclass(frozen=True)
class UpdateFinished(Event):
    """An update was made. Several may arrive together: the device is read at intervals."""

    record: UpdateRecord


@dataclass(frozen=True)
class UpdatesFinished(Event):
    """The updates from `first` to `last` were made, `examples` in all; what a `Watcher` hears of them."""

    first: UpdateRecord
    last: UpdateRecord
    examples: int


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

    `ema` tells whether the moving average was evaluated, `scheduled` whether
    `fit(evaluate_every=...)` asked for it.
    """

    update: int
    metrics: Mapping[str, Any]
    ema: bool = False
    scheduled: bool = False


@dataclass(frozen=True)
class FitFinished(Event):
    """`fit` ended after `seconds`, at update `update`.

    `stopped` is a listener's reason, if any; `saved` the directory that has the run's last
    checkpoint, None where it is not saved.
    """

    update: int
    seconds: float
    stopped: str | None = None
    saved: str | None = None


@dataclass(frozen=True)
class FitFailed(Event):
    """`fit` ended with an error; the trainer stays usable, in the state after update `update`."""

    update: int
    error: str


@dataclass(frozen=True)
class Stop:
    """What a listener returns to end the run; the reason becomes `FitResult.stopped`."""

    reason: str


Listener = Callable[[Event], Any]


class Watcher:
    """A listener that looks at a run now and then: it hears of updates in bulk, as `UpdatesFinished`.

    A small model makes thousands of updates a second, and an event for each would slow it.
    """

    def __call__(self, event: Event) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must say what it does with an event")


Happening = tuple[type[Event], Mapping[str, Any]]


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
        """Tell listeners of one event."""
        self.tell([(kind, details)])

    def tell(self, happened: Iterable[Happening], in_bulk: Iterable[Happening] | None = None) -> None:
        """Tell listeners of events in order; raise a listener's error once all others heard all.

        Args:
            happened: the events.
            in_bulk: the same for watchers, updates together; None where it is one event and the same.
        """
        if in_bulk is None:
            self._tell(self._listeners, happened)
            return
        watchers = [listener for listener in self._listeners if isinstance(listener, Watcher)]
        others = [listener for listener in self._listeners if not isinstance(listener, Watcher)]
        try:
            self._tell(others, happened)
        finally:
            self._tell(watchers, in_bulk)

    def _tell(self, listeners: Sequence[Listener], happened: Iterable[Happening]) -> None:
        if not listeners:
            return  # and nobody makes the events
        hearing = list(listeners)
        first_error: Exception | None = None
        for kind, details in happened:
            event = kind(**self._common, **details)
            for listener in tuple(hearing):
                try:
                    answer = listener(event)
                except Exception as error:  # a user's function, whatever it raises
                    add_origin(error, f"the listener{name_of(listener)} of callbacks, which heard {kind.__name__}")
                    # It hears no more: its next error would hide the first, which is the cause.
                    hearing = [member for member in hearing if member is not listener]
                    first_error = first_error or error
                    continue
                if isinstance(answer, Stop) and self.stop is None:
                    self.stop = answer
        if first_error is not None:
            raise first_error

    @property
    def is_heard(self) -> bool:
        """Whether anybody but watchers hears."""
        return any(not isinstance(listener, Watcher) for listener in self._listeners)

    def reaches(self, kind: type) -> bool:
        """Whether a listener of that class hears."""
        return any(isinstance(listener, kind) for listener in self._listeners)

    @contextlib.contextmanager
    def joined_by(self, listener: Listener | None) -> Iterator[None]:
        """Let one more listener hear inside the `with`; only once if it is among them already."""
        before = self._listeners
        # By identity: a listener may be any callable, with an equality of its own.
        if listener is not None and not any(listener is member for member in before):
            self._listeners = (*before, listener)
        try:
            yield
        finally:
            self._listeners = before
