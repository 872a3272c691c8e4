"""Which value of a metric is the better one, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from multibackend.core.validation import Problems
from multibackend.events import EvaluationFinished, Event, FitStarted, Stop

__all__ = ["BestValue", "EarlyStopping", "improves"]

MODES = ("min", "max")


def improves(value: float, best: float | None, mode: str, minimum_change: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `minimum_change`; NaN never does, all beat None.

    >>> improves(0.5, 0.6, "min"), improves(0.5, 0.6, "min", 0.2), improves(math.nan, None, "max")
    (True, False, False)
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    if mode == "min":
        return value < best - minimum_change
    return value > best + minimum_change


@dataclass(frozen=True)
class BestValue:
    """The best evaluation of a call of `fit`; the first one of several that are equal.

    Attributes:
        update: after which it was made.
        value: of the metric.
        metric: its name.
        mode: "min" or "max".
        parameters: at that update, by canonical name, where `fit(keep_best=True)` asked for them;
            with `evaluate_ema=True` the moving average.
    """

    update: int
    value: float
    metric: str
    mode: str
    parameters: Mapping[str, np.ndarray] | None = field(default=None, repr=False)


@dataclass(kw_only=True)
class EarlyStopping:
    """A listener that ends `fit` where a metric has stopped improving.

    The run ends after `patience` evaluations in a row without one that is better than the best so
    far by more than `minimum_change` (Prechelt 1998, "Early stopping - but when?"; there the strip
    length is one evaluation). Only the evaluations of `fit(evaluate_every=...)` count, NaN never is
    an improvement, and each call of `fit` begins anew.

    Args:
        metric: "loss" or the name of a metric of the experiment whose value is a number.
        patience: evaluations without an improvement after which the run ends, >= 1.
        minimum_change: an improvement must be larger than this, >= 0.
        mode: "min" where smaller is better, "max" where larger is.

    Raises:
        ConfigurationError: an argument is wrong; every problem is listed.

    >>> patient = EarlyStopping(patience=3)
    >>> trainer.fit(updates=1000, evaluate_every=50, early_stopping=patient).stopped # doctest: +SKIP
    'loss has not improved on 0.0321 of update 400 in 3 evaluations'
    """

    metric: str = "loss"
    patience: int = 3
    minimum_change: float = 0.0
    mode: str = "min"
    _best: tuple[float, int] | None = field(default=None, init=False, repr=False, compare=False)
    _waited: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = Problems("EarlyStopping")
        if not isinstance(self.metric, str) or not self.metric:
            problems.add(f"metric must be the name of a metric, got {self.metric!r}", wrong_type=True)
        problems.integer("patience", self.patience, minimum=1)
        problems.number("minimum_change", self.minimum_change, minimum=0.0)
        problems.choice("mode", self.mode, MODES)
        problems.raise_if_any()

    @property
    def remembered(self) -> tuple[float, float, float]:
        """(best value, its update, evaluations since): what a resumed run must be given back.

        The first two are NaN before there is a best one, because a checkpoint keeps
        them as numbers.
        """
        if self._best is None:
            return math.nan, math.nan, float(self._waited)
        value, update = self._best
        return value, float(update), float(self._waited)

    @remembered.setter
    def remembered(self, memory: tuple[float, float, float]) -> None:
        value, update, waited = memory
        self._best = None
        if not math.isnan(value):
            self._best = (value, int(update))
        self._waited = int(waited)

    def __call__(self, event: Event) -> Stop | None:
        # one object may listen to several runs, one after the other
        if isinstance(event, FitStarted):
            self._best = None
            self._waited = 0
        if not isinstance(event, EvaluationFinished) or not event.scheduled:
            return None
        value = float(event.metrics[self.metric])
        best, _ = self._best or (None, 0)
        if improves(value, best, self.mode, self.minimum_change):
            self._best = (value, event.update)
            self._waited = 0
            return None
        # NaN counts as a wait: a run that has diverged ends after `patience` evaluations
        self._waited += 1
        if self._waited < self.patience:
            return None
        missed = "been a number"
        if self._best is not None:
            missed = "improved on {:.6g} of update {}".format(*self._best)
        return Stop(f"{self.metric} has not {missed} in {self._waited} evaluations")
