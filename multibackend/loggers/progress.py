"""Shows a run while it runs: a bar in a terminal or a notebook, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from multibackend.core.history import UpdateRecord
from multibackend.core.words import clock, ending, made_updates
from multibackend.events import (
    EvaluationFinished,
    Event,
    FitFailed,
    FitFinished,
    FitStarted,
    Remark,
    UpdatesFinished,
    Watcher,
    WindowSkipped,
)
from multibackend.loggers.screens import Screen, open_screen

__all__ = ["Part", "ProgressBar", "fitting"]

_SECONDS_BETWEEN_FRAMES = 0.1
# plain lines come at intervals that double, so that a run of days has no log of thousands
_FIRST_INTERVAL = 5.0
_LONGEST_INTERVAL = 600.0
_MOST_SKIPPED = 5  # windows that are told one by one, the others as a number at the end
_MOST_MARKS = 100  # frames over which the pace is measured
_BAR = (8, 40)  # cells of a bar at least and at most
_GAP = "  "


@dataclass(frozen=True)
class Part:
    """One part of the line that shows a run; of two, the one with the higher `rank` goes first where room is short."""

    text: str
    rank: int


@dataclass
class _Fit:
    """What is known of the call of `fit` that is shown.

    Attributes:
        begun_at: the update at which it began.
        total: where it ends, an estimate where epochs decide; None where nobody knows.
        interval: seconds until the next frame or line.
        shown: when the last one was.
        marks: (time, update, examples so far) of the first results and of frames since: what is before
            them went into compiling, and what is long ago says little of what is left.
        examples: so far.
        first, last: the updates of this call.
        unshown: whether the last one was not shown yet.
        skipped: windows.
        remarked: whether there was a remark.
    """

    begun_at: int
    total: int | None
    interval: float
    shown: float
    marks: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_MOST_MARKS))
    examples: int = 0
    first: UpdateRecord | None = None
    last: UpdateRecord | None = None
    unshown: bool = False
    skipped: int = 0
    remarked: bool = False


class ProgressBar(Watcher):
    """A listener that shows update, total, loss, learning rate, examples per second and the time left.

    `Trainer.fit` joins one by itself unless it is told `progress=False`. In a terminal and in a
    notebook it is a bar, elsewhere plain lines at intervals that grow from seconds to minutes; all
    of it goes to the standard error. The last line says how the run ended. The time left is first
    estimated once the first results are there, for what came before them went into compiling.

    Args:
        screen: where to; chosen by where the process runs unless given.
        ending: whether to say at its end what a run made.
    """

    def __init__(self, screen: Screen | None = None, *, ending: bool = True) -> None:
        self._screen = screen or open_screen()
        self._ending = ending
        self._is_lost = False
        self._fit = _Fit(begun_at=0, total=None, interval=0.0, shown=0.0)

    def __call__(self, event: Event) -> None:
        if self._is_lost:
            return
        try:
            self._hear(event)
        except (OSError, ValueError):
            # the window was closed, the pipe is broken, the file is closed or full: a run that nobody can watch
            # any more goes on
            self._is_lost = True

    def _hear(self, event: Event) -> None:
        match event:
            case FitStarted():
                self._begin(event)
            case Remark(message=message):
                self._fit.remarked = True
                self._screen.print(message)
            case UpdatesFinished():
                self._enter(event)
            case EvaluationFinished(update=update, metrics=metrics, ema=ema, scheduled=True):
                # those that nobody scheduled were asked for by a caller, who prints them
                title = "held-out (average)" if ema else "held-out"
                numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
                self._screen.print(f"update {update}: {title} {numbers}")
            case WindowSkipped(skipped=skipped):
                self._fit.skipped += 1
                if self._fit.skipped <= _MOST_SKIPPED:
                    self._screen.print(f"window of update {skipped.update} skipped: {skipped.reason}")
            case FitFinished():
                self._finish(event)
            case FitFailed():
                self._show_last()
                self._screen.close(f"{_name(event)}: failed after update {event.update}")
            case _:
                pass

    def _begin(self, event: FitStarted) -> None:
        interval = _SECONDS_BETWEEN_FRAMES if self._screen.redraws else _FIRST_INTERVAL
        self._fit = _Fit(event.update, event.updates, interval, shown=time.perf_counter())
        self._title = _name(event)
        if self._screen.redraws:
            self._draw([Part(self._title, 6), Part(self._counter(event.update), 0), Part("starting", 1)], 0.0)
        else:
            length = "data of unknown length" if event.updates is None else f"{event.updates} updates"
            self._screen.print(f"{self._title} ({event.device}, {event.execution}), {length}")

    def _enter(self, event: UpdatesFinished) -> None:
        fit = self._fit
        now = time.perf_counter()
        fit.examples += event.examples
        if fit.first is None:
            fit.first = event.first
            fit.marks.append((now, event.last.update, fit.examples))
        fit.last = event.last
        fit.unshown = True
        if fit.total is not None:
            fit.total = max(fit.total, event.last.update)  # an estimate, where epochs decide
        if now - fit.shown >= fit.interval:
            self._show(now)
            if not self._screen.redraws:
                fit.interval = min(2 * fit.interval, _LONGEST_INTERVAL)

    def _show(self, now: float) -> None:
        """Draw a frame of the bar, or write a line."""
        fit = self._fit
        record = fit.last
        assert record is not None
        fit.shown = now
        fit.unshown = False
        parts = [Part(self._counter(record.update), 0), Part(f"loss {record.loss:.4f}", 1)]
        parts.append(Part(f"lr {record.learning_rate:.2e}", 5))
        parts += self._pace(now, record.update)
        if not self._screen.redraws:
            self._screen.print(f"update {_GAP.join(part.text for part in parts)}")
            return
        done = 0.0 if not fit.total else record.update / fit.total
        self._draw([Part(self._title, 6), *parts], done)

    def _pace(self, now: float, update: int) -> list[Part]:
        """Examples per second and the time left, where there was something to measure."""
        fit = self._fit
        since, first, examples = fit.marks[0]
        seconds = now - since
        made = update - first
        if made <= 0 or seconds <= 0:
            return []
        fit.marks.append((now, update, fit.examples))
        parts = [Part(f"{(fit.examples - examples) / seconds:,.0f} examples/s", 4)]
        if fit.total is not None and update < fit.total:
            parts.append(Part(f"{clock(seconds * (fit.total - update) / made)} left", 2))
        return parts

    def _draw(self, parts: Sequence[Part], done: float) -> None:
        """Draw as much as fits; the bar takes what room is left."""
        width = self._screen.width
        if self._fit.total is None:  # nobody knows how full a bar would be
            self._screen.draw(fitting(parts, width), done, 0)
            return
        least, most = _BAR
        bar = Part("#" * least, 3)
        shown = fitting([bar, *parts], width)
        cells = 0
        if shown[0] == bar.text:
            cells = min(least + width - len(_GAP.join(shown)), most)
            shown = shown[1:]
        self._screen.draw(shown, done, cells)

    def _counter(self, update: int) -> str:
        return f"{update}" if self._fit.total is None else f"{update}/{max(self._fit.total, update)}"

    def _show_last(self) -> None:
        """Show the last update, where it was not."""
        if self._fit.unshown and not self._screen.redraws:
            self._show(time.perf_counter())

    def _finish(self, event: FitFinished) -> None:
        if not self._ending:
            self._show_last()
        left_out = self._fit.skipped - _MOST_SKIPPED
        if left_out > 0:
            self._screen.print(f"{left_out} more windows were skipped, {self._fit.skipped} in all")
        # where no update was to be made the remark has said so
        is_told = self._fit.remarked and self._fit.first is None
        self._screen.close(self._last_line(event) if self._ending and not is_told else "")

    def _last_line(self, event: FitFinished) -> str:
        """Say how it ended: updates, loss from and to, time, where it was saved."""
        fit = self._fit
        if fit.first is None or fit.last is None:
            sentence = f"no update made, at update {event.update}"
        else:
            sentence = made_updates(fit.first, fit.last)
        return f"{_name(event)}: {ending(sentence, event.seconds, event.saved, event.stopped)}"


def fitting(parts: Sequence[Part], width: int) -> list[str]:
    """Choose the parts that fit side by side, in their order; the highest ranks are left out first.

    >>> fitting([Part("digits on jax", 3), Part("69/150", 0), Part("loss 0.0845", 1)], 20)
    ['69/150', 'loss 0.0845']
    """
    kept = list(parts)
    while len(kept) > 1 and len(_GAP.join(part.text for part in kept)) > width:
        kept.remove(max(kept, key=lambda part: part.rank))
    return [part.text for part in kept]


def _name(event: Event) -> str:
    return f"{event.experiment} on {event.backend}"
