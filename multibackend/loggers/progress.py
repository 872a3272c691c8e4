"""Shows a run while it runs: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from multibackend.core.history import UpdateRecord
from multibackend.events import (
    EvaluationFinished,
    Event,
    FitFailed,
    FitFinished,
    FitStarted,
    UpdateFinished,
    WindowSkipped,
)

__all__ = ["ProgressBar"]

_SECONDS_BETWEEN_FRAMES = 0.1
_SECONDS_BETWEEN_LINES = 5.0


@dataclass
class _Fit:
    """What is known of the call of `fit` that is shown."""

    started: float
    first: int
    total: int | None
    examples: int = 0
    shown: float = 0.0  # when the last frame or line was
    unshown: UpdateRecord | None = None


class ProgressBar:
    """A listener that shows update, total, loss, learning rate, examples per second and time left.

    Where the output is no terminal it writes plain lines, one in five seconds and the last.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = self._console.is_terminal
        self._interval = _SECONDS_BETWEEN_FRAMES if self._live else _SECONDS_BETWEEN_LINES
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._fit = _Fit(started=0.0, first=0, total=0)

    def __call__(self, event: Event) -> None:
        match event:
            case FitStarted():
                self._begin(event)
            case UpdateFinished(record=record):
                self._fit.examples += record.examples
                self._fit.unshown = record
                if time.perf_counter() - self._fit.shown >= self._interval:
                    self._show(record)
            case EvaluationFinished(update=update, metrics=metrics, ema=ema, scheduled=True):
                # those that nobody scheduled were asked for by a caller, who prints them
                title = "held-out (average)" if ema else "held-out"
                numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
                self._print(f"update {update}: {title} {numbers}")
            case WindowSkipped(skipped=skipped):
                self._print(f"window of update {skipped.update} skipped: {skipped.reason}")
            case FitFinished(stopped=stopped):
                self._end()
                reason = "" if stopped is None else f"; stopped: {stopped}"
                self._print(f"{self._name(event)}: {event.update} updates in {event.seconds:.1f} s{reason}")
            case FitFailed():
                self._end()
                self._print(f"{self._name(event)}: failed after update {event.update}")
            case _:
                pass

    def _begin(self, event: FitStarted) -> None:
        self._fit = _Fit(time.perf_counter(), first=event.update, total=event.updates)
        if self._live:
            total = None if event.updates is None else max(event.updates, event.update)
            self._task = self._bar.add_task(self._name(event), total=total, completed=event.update, numbers="")
            self._bar.start()
        else:
            length = "data of unknown length" if event.updates is None else f"{event.updates} updates"
            self._print(f"{self._name(event)} ({event.device}, {event.execution}), {length}")

    def _show(self, record: UpdateRecord) -> None:
        """Draw a frame of the bar, or write a line."""
        fit = self._fit
        fit.shown = time.perf_counter()
        fit.unshown = None
        seconds = max(fit.shown - fit.started, 1e-9)
        speed = fit.examples / seconds
        numbers = f"loss {record.loss:.4f}  lr {record.learning_rate:.2e}  {speed:,.0f} examples/s"
        if fit.total is not None:
            fit.total = max(fit.total, record.update)  # an estimate, where epochs decide
        if self._task is not None:
            self._bar.update(self._task, completed=record.update, total=fit.total, numbers=numbers)
        elif fit.total is None:
            self._print(f"update {record.update}  {numbers}")
        else:
            # at this call's pace: how long a resumed run took before was not measured
            remaining = seconds * (fit.total - record.update) / max(record.update - fit.first, 1)
            self._print(f"update {record.update}/{fit.total}  {numbers}  {_clock(remaining)} left")

    def _end(self) -> None:
        """Show the last update, and give the terminal back."""
        if self._fit.unshown is not None:
            self._show(self._fit.unshown)
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def _print(self, line: str) -> None:
        """Print a line as it is: not cut at some width, and no brackets taken for markup."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    @staticmethod
    def _name(event: Event) -> str:
        return f"{event.experiment} on {event.backend}"


def _clock(seconds: float) -> str:
    """Write a duration in hours, minutes and seconds.

    >>> _clock(65.4)
    '0:01:05'
    """
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
