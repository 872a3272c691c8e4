"""Shows a run while it runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from multibackend.events import Event, FitFinished, FitStarted, UpdateFinished, WindowSkipped
from multibackend.history import UpdateRecord

__all__ = ["ProgressBar"]

_SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """A listener that shows update, loss, learning rate, examples per second and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._started, self._examples, self._shown = 0.0, 0, 0.0
        self._total: int | None = 0

    def __call__(self, event: Event) -> None:
        match event:
            case FitStarted():
                self._begin(event)
            case UpdateFinished(record=record):
                self._show(record)
            case WindowSkipped(skipped=skipped):
                self._console.print(f"window of update {skipped.update} skipped: {skipped.reason}")
            case FitFinished():
                self._end(event)
            case _:
                pass

    def _begin(self, event: FitStarted) -> None:
        self._started, self._examples, self._shown, self._total = time.perf_counter(), 0, 0.0, event.updates
        if self._live:
            title = f"{event.experiment} on {event.backend}"
            self._task = self._bar.add_task(title, total=event.updates, completed=event.update, numbers="")
            self._bar.start()
        else:
            where = f"{event.backend} ({event.device}, {event.strategy})"
            length = "data of unknown length" if event.updates is None else f"{event.updates} updates"
            self._console.print(f"{event.experiment} on {where}, {length}")

    def _show(self, record: UpdateRecord) -> None:
        self._examples += record.examples
        now = time.perf_counter()
        interval = 0.1 if self._live else _SECONDS_BETWEEN_LINES
        if now - self._shown < interval and (self._total is None or record.update < self._total):
            return
        self._shown = now
        speed = self._examples / max(now - self._started, 1e-9)
        numbers = f"loss {record.loss:.4f}  lr {record.learning_rate:.2e}  {speed:,.0f} examples/s"
        if self._task is not None:
            self._bar.update(self._task, completed=record.update, numbers=numbers)
        else:
            total = "" if self._total is None else f"/{self._total}"
            self._console.print(f"update {record.update}{total}  {numbers}")

    def _end(self, event: FitFinished) -> None:
        if self._task is not None:
            self._bar.stop()
            self._task = None
        self._console.print(f"{event.experiment} on {event.backend}: {event.update} updates in {event.seconds:.1f} s")
