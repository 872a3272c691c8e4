"""The evaluations that a run has made, and what early stopping remembers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.training.early_stopping import BestValue, EarlyStopping
from multibackend.training.evaluation import Evaluation, EvaluationPlan

__all__ = ["EvaluationState"]

_AT, _VALUES = "at/", "values/"


@dataclass(frozen=True)
class EvaluationState:
    """Of one run, across its restarts: evaluations, the best of them (with its parameters where they are kept), and of
    each early stopping (metric, mode, best value, its update, evaluations waited).
    """

    made: Sequence[Evaluation] = ()
    best: BestValue | None = None
    stoppers: Sequence[tuple[str, str, float, float, float]] = field(default_factory=tuple)

    @classmethod
    def of(cls, plan: EvaluationPlan | None, stoppers: Sequence[EarlyStopping]) -> EvaluationState:
        """As they stand now."""
        if plan is None:
            return cls()
        remembered = [(s.metric, s.mode, *s.remembered) for s in stoppers]
        return cls(tuple(plan.made), plan.best, tuple(remembered))

    def hand_over(self, plan: EvaluationPlan | None, stoppers: Sequence[EarlyStopping]) -> None:
        """Let a new call of `fit` go on from them, where it watches the same."""
        if plan is None:
            return
        plan.made[:0] = list(self.made)
        if self.best is not None and (self.best.metric, self.best.mode) == (plan.metric, plan.mode):
            plan.best = self.best
        for stopper, (metric, mode, *remembered) in zip(stoppers, self.stoppers, strict=False):
            if (metric, mode) == (stopper.metric, stopper.mode):
                stopper.remembered = tuple(remembered)  # type: ignore[assignment]

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers, because JSON holds neither NaN nor large arrays well."""
        found: dict[str, np.ndarray] = {"updates": np.array([evaluation.update for evaluation in self.made], np.int64)}
        for name in dict.fromkeys(name for evaluation in self.made for name in evaluation.metrics):
            values = {i: np.asarray(e.metrics[name]) for i, e in enumerate(self.made) if name in e.metrics}
            newest = list(values.values())[-1]
            kept = {i: v for i, v in values.items() if (v.shape, v.dtype) == (newest.shape, newest.dtype)}
            found[_AT + name] = np.array(list(kept), np.int64)
            found[_VALUES + name] = np.stack(list(kept.values()))
        if self.best is not None:
            found["best"] = np.array([self.best.update, self.best.value])
        if self.stoppers:
            found["stoppers"] = np.array([numbers for _, _, *numbers in self.stoppers], np.float64)
        return found if self.made or self.stoppers else {}

    def words(self) -> dict[str, Any]:
        """All words."""
        best = None if self.best is None else [self.best.metric, self.best.mode]
        return {"best": best, "stoppers": [[metric, mode] for metric, mode, *_ in self.stoppers]}

    @classmethod
    def read(cls, arrays: Arrays, words: Mapping[str, Any], parameters: Arrays) -> EvaluationState:
        """The inverse of `arrays` and `words`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        metrics: list[dict[str, Any]] = [{} for _ in arrays.get("updates", ())]
        for key in (key for key in arrays if key.startswith(_AT)):
            name = key.removeprefix(_AT)
            for index, value in zip(arrays[key].tolist(), arrays[_VALUES + name], strict=True):
                metrics[index][name] = value.item() if value.ndim == 0 else value.copy()
        updates = arrays["updates"].tolist() if metrics else []
        made = tuple(Evaluation(update, found) for update, found in zip(updates, metrics, strict=True))
        best = None
        if words["best"] is not None:
            update, value = arrays["best"].tolist()
            best = BestValue(int(update), value, *map(str, words["best"]), parameters=dict(parameters) or None)
        numbers = arrays["stoppers"].tolist() if words["stoppers"] else []
        stoppers = [(str(m), str(o), *map(float, row)) for (m, o), row in zip(words["stoppers"], numbers, strict=True)]
        return cls(made, best, tuple(stoppers))  # type: ignore[arg-type]

    def with_parameters(self, parameters: Arrays) -> EvaluationState:
        """The best evaluation's parameters by other names."""
        if self.best is None or self.best.parameters is None:
            return self
        return replace(self, best=replace(self.best, parameters=dict(parameters)))
