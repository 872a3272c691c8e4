"""What a call of `fit` gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.core.history import History, SkippedWindow
from multibackend.core.text import Block, Line, Readable
from multibackend.core.words import ending, made_updates
from multibackend.pages.runs.history import history_figure
from multibackend.training.early_stopping import BestValue
from multibackend.training.evaluation import Evaluation

__all__ = ["FitResult"]


@dataclass(frozen=True, repr=False)
class FitResult(Readable):
    """What `fit` gives back; `print(result)` says in a few lines what the run made, `result.plot()` draws it.

    Attributes:
        history: a record per update, from the beginning of the run.
        skipped: the windows that made no update.
        updates: made since the beginning of the run.
        epochs: finished since the beginning of the run.
        seconds: spent in this call of `fit`.
        evaluations: that this call made, `fit(evaluate_every=...)`.
        best: of them.
        stopped: the reason where a listener, such as `EarlyStopping`, ended the run.
        experiment, backend: their names.
        begun_at: the update at which this call began, 0 for the beginning of the run.
        saved: the run's directory, which has its last checkpoint; None where it is not saved.
        remarks: sentences about what may not be expected, such as a schedule that the run cuts off.

    >>> print(trainer.fit(epochs=3))                                            # doctest: +SKIP
    digits on jax: 69 updates, loss 2.3121 to 0.3410, 5.2 s, saved in runs/digits
    """

    history: History
    skipped: tuple[SkippedWindow, ...]
    updates: int
    epochs: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    best: BestValue | None = None
    stopped: str | None = None
    experiment: str = ""
    backend: str = ""
    begun_at: int = 0
    saved: Path | None = None
    remarks: tuple[str, ...] = ()

    def blocks(self) -> Sequence[Block]:
        """What is printed: how it ended, what was skipped, the last evaluation and the best."""
        lines = [self._sentence(), *self.remarks]
        if self.skipped:
            counts = Counter(window.reason for window in self.skipped)
            listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            plural = "" if len(self.skipped) == 1 else "s"
            lines.append(f"{len(self.skipped)} window{plural} skipped since the run began: {listed}")
        if self.evaluations:
            last = self.evaluations[-1]
            lines.append(f"evaluated after update {last.update}: {_numbers(last.metrics)}")
        if self.best is not None:
            lines.append(f"best {self.best.metric}: {self.best.value:.4f} after update {self.best.update}")
        return [Line(line) for line in lines]

    def plot(self) -> Any:
        """Draw loss, learning rate, gradient norm and the evaluations: a figure of plotly, which a notebook shows.

        Raises:
            PackageNotInstalledError: plotly is not installed: `pip install 'multibackend[html]'`.

        >>> trainer.fit(epochs=3).plot().write_html("run.html")                 # doctest: +SKIP
        """
        points: dict[str, list[tuple[int, float]]] = {}
        for evaluation in self.evaluations:
            for name, value in evaluation.metrics.items():
                if np.ndim(value) == 0:
                    points.setdefault(name, []).append((evaluation.update, float(value)))
        return history_figure(f"{self.experiment} on {self.backend}", self.history, points)

    def __repr__(self) -> str:
        return f"<FitResult: {self._sentence()}>"

    def _sentence(self) -> str:
        if len(self.history) > self.begun_at:
            made = made_updates(self.history[self.begun_at], self.history[-1])
        else:
            made = f"no update made, at update {self.updates}"
        return f"{self.experiment} on {self.backend}: {ending(made, self.seconds, self.saved, self.stopped)}"


def _numbers(metrics: Any) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
