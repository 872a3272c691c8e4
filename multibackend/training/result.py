"""What a call of `fit` gives back."""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.core.history import History, SkippedWindow
from multibackend.training.early_stopping import BestValue
from multibackend.training.evaluation import Evaluation

__all__ = ["FitResult"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` gives back.

    Attributes:
        history: a record per update, from the beginning of the run.
        skipped: the windows that made no update.
        updates: made since the beginning of the run.
        epochs: finished since the beginning of the run.
        seconds: spent in this call of `fit`.
        evaluations: that this call made, `fit(evaluate_every=...)`.
        best: of them.
        stopped: the reason where a listener, such as `EarlyStopping`, ended the run.
    """

    history: History
    skipped: tuple[SkippedWindow, ...]
    updates: int
    epochs: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    best: BestValue | None = None
    stopped: str | None = None
