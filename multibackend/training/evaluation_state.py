"""The evaluations that a run has made, and what early stopping remembers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.training.early_stopping import BestValue, EarlyStopping
from multibackend.training.evaluation import Evaluation, EvaluationPlan

__all__ = ["EvaluationState", "StopperMemory"]

# prefixes of the arrays of a checkpoint: at which evaluations a metric has a value, and the values
_AT = "at/"
_VALUES = "values/"


@dataclass(frozen=True)
class StopperMemory:
    """What one early stopping remembers: what it watches, and (best value, its update, evaluations waited)."""

    metric: str
    mode: str
    remembered: tuple[float, float, float]


@dataclass(frozen=True)
class EvaluationState:
    """The evaluations of one run, across its restarts.

    Attributes:
        made: every evaluation that `fit` was asked for.
        best: the best of them, with its parameters where they are kept.
        stoppers: the memory of each early stopping.
    """

    made: Sequence[Evaluation] = ()
    best: BestValue | None = None
    stoppers: Sequence[StopperMemory] = field(default_factory=tuple)

    @classmethod
    def of(cls, plan: EvaluationPlan | None, stoppers: Sequence[EarlyStopping]) -> EvaluationState:
        """Collect it from a call of `fit`; empty where that does not evaluate."""
        if plan is None:
            return cls()
        memories = [StopperMemory(stopper.metric, stopper.mode, stopper.remembered) for stopper in stoppers]
        return cls(tuple(plan.made), plan.best, tuple(memories))

    def hand_over(self, plan: EvaluationPlan | None, stoppers: Sequence[EarlyStopping]) -> None:
        """Let a new call of `fit` go on from it, where that watches the same."""
        if plan is None:
            return
        plan.made[:0] = list(self.made)
        if self.best is not None and (self.best.metric, self.best.mode) == (plan.metric, plan.mode):
            plan.best = self.best
        for stopper, memory in zip(stoppers, self.stoppers, strict=False):
            if (memory.metric, memory.mode) == (stopper.metric, stopper.mode):
                stopper.remembered = memory.remembered

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers, for a checkpoint: JSON holds neither NaN nor large arrays well."""
        if not self.made and not self.stoppers:
            return {}
        arrays: dict[str, np.ndarray] = {}
        arrays["updates"] = np.array([evaluation.update for evaluation in self.made], np.int64)
        for name in dict.fromkeys(name for evaluation in self.made for name in evaluation.metrics):
            arrays |= self._metric_arrays(name)
        if self.best is not None:
            arrays["best"] = np.array([self.best.update, self.best.value])
        if self.stoppers:
            arrays["stoppers"] = np.array([memory.remembered for memory in self.stoppers], np.float64)
        return arrays

    def metadata(self) -> dict[str, Any]:
        """All that is no number: what was watched, and which end of it is best."""
        best = None if self.best is None else [self.best.metric, self.best.mode]
        return {"best": best, "stoppers": [[memory.metric, memory.mode] for memory in self.stoppers]}

    @classmethod
    def read(cls, arrays: Arrays, metadata: Mapping[str, Any], parameters: Arrays) -> EvaluationState:
        """Read it back; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        best = None
        if metadata["best"] is not None:
            update, value = arrays["best"].tolist()
            metric, mode = map(str, metadata["best"])
            best = BestValue(int(update), value, metric, mode, parameters=dict(parameters) or None)
        numbers = arrays["stoppers"].tolist() if metadata["stoppers"] else []
        memories = []
        for (metric, mode), (value, update, waited) in zip(metadata["stoppers"], numbers, strict=True):
            memories.append(StopperMemory(str(metric), str(mode), (float(value), float(update), float(waited))))
        return cls(_read_evaluations(arrays), best, tuple(memories))

    def with_parameters(self, parameters: Arrays) -> EvaluationState:
        """Name the best evaluation's parameters anew."""
        if self.best is None or self.best.parameters is None:
            return self
        return replace(self, best=replace(self.best, parameters=dict(parameters)))

    def _metric_arrays(self, name: str) -> dict[str, np.ndarray]:
        """One metric's values, of those evaluations that had it."""
        values = {i: np.asarray(e.metrics[name]) for i, e in enumerate(self.made) if name in e.metrics}
        newest = list(values.values())[-1]
        # a metric may have had another shape before a restart with another experiment; the newest
        # is what counts
        alike = {i: value for i, value in values.items() if (value.shape, value.dtype) == (newest.shape, newest.dtype)}
        return {_AT + name: np.array(list(alike), np.int64), _VALUES + name: np.stack(list(alike.values()))}


def _read_evaluations(arrays: Arrays) -> tuple[Evaluation, ...]:
    if len(arrays.get("updates", ())) == 0:
        return ()
    updates = arrays["updates"].tolist()
    metrics: list[dict[str, Any]] = [{} for _ in updates]
    for key in arrays:
        if not key.startswith(_AT):
            continue
        name = key.removeprefix(_AT)
        for index, value in zip(arrays[key].tolist(), arrays[_VALUES + name], strict=True):
            metrics[index][name] = value.item() if value.ndim == 0 else value.copy()
    return tuple(Evaluation(update, values) for update, values in zip(updates, metrics, strict=True))
