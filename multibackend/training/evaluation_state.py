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
    """What an early stopping watches, and remembers: (best value, its update, evaluations since)."""

    metric: str
    mode: str
    remembered: tuple[float, float, float]

    @classmethod
    def of(cls, stopper: EarlyStopping) -> StopperMemory:
        """Read it off an early stopping."""
        return cls(stopper.metric, stopper.mode, stopper.remembered)


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
        # in the order of the listeners, by which a resumed run finds them again
        memories = [StopperMemory.of(stopper) for stopper in stoppers]
        return cls(tuple(plan.made), plan.best, tuple(memories))

    def hand_over(self, plan: EvaluationPlan | None, stoppers: Sequence[EarlyStopping]) -> None:
        """Let a new call of `fit` go on from it, where that watches the same."""
        if plan is None:
            return
        # before what this call makes: evaluations stay in the order of updates
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
        for evaluation in self.made:
            for name in evaluation.metrics:
                if _AT + name not in arrays:
                    arrays |= self._metric_arrays(name)
        if self.best is not None:
            arrays["best"] = np.array([self.best.update, self.best.value])
        if self.stoppers:
            memories = [memory.remembered for memory in self.stoppers]
            arrays["stoppers"] = np.array(memories, np.float64)
        return arrays

    def metadata(self) -> dict[str, Any]:
        """All that is no number: what was watched, and which end of it is best."""
        best = None
        if self.best is not None:
            best = [self.best.metric, self.best.mode]
        stoppers = [[memory.metric, memory.mode] for memory in self.stoppers]
        return {"best": best, "stoppers": stoppers}

    @classmethod
    def read(cls, arrays: Arrays, metadata: Mapping[str, Any], parameters: Arrays) -> EvaluationState:
        """Read it back; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        best = None
        if metadata["best"] is not None:
            update, value = arrays["best"].tolist()
            metric, mode = map(str, metadata["best"])
            best = BestValue(int(update), value, metric, mode, parameters=dict(parameters) or None)
        watched = metadata["stoppers"]
        numbers = []
        if watched:
            numbers = arrays["stoppers"].tolist()
        memories = []
        for (metric, mode), (value, update, waited) in zip(watched, numbers, strict=True):
            remembered = (float(value), float(update), float(waited))
            memories.append(StopperMemory(str(metric), str(mode), remembered))
        return cls(_read_evaluations(arrays), best, tuple(memories))

    def with_parameters(self, parameters: Arrays) -> EvaluationState:
        """Name the best evaluation's parameters anew."""
        if self.best is None or self.best.parameters is None:
            return self
        return replace(self, best=replace(self.best, parameters=dict(parameters)))

    def _metric_arrays(self, name: str) -> dict[str, np.ndarray]:
        """One metric's values, of those evaluations that had it."""
        indices: list[int] = []
        values: list[np.ndarray] = []
        for index, evaluation in reversed(tuple(enumerate(self.made))):
            if name in evaluation.metrics:
                value = np.asarray(evaluation.metrics[name])
                # a metric may have had another shape before a restart with another experiment; the
                # newest is what counts
                if not values or (value.shape, value.dtype) == (values[0].shape, values[0].dtype):
                    indices.append(index)
                    values.append(value)
        at = np.array(indices[::-1], np.int64)
        return {_AT + name: at, _VALUES + name: np.stack(values[::-1])}


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
    evaluations = zip(updates, metrics, strict=True)
    return tuple(Evaluation(update, values) for update, values in evaluations)
