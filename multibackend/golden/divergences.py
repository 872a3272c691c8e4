"""Where a run parts from a golden trace: everything beyond its bound, in the order of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multibackend.core.arrays import among
from multibackend.core.differences import relative_difference
from multibackend.golden.file import Golden
from multibackend.golden.summary import Summary, difference
from multibackend.parity.findings import Divergence
from multibackend.parity.tolerances import Tolerance, tolerance_for

__all__ = ["Traces", "floor_of"]

_SAME_NUMBER = 1e-12  # of learning rates and weights, which the host computes everywhere alike
_DEVIATIONS = 8.0  # standard errors, deviation / sqrt(n), that mean and deviation of n may stray
_FEW = 16  # elements, of which nothing can be said
_FLOOR = 1e-3  # gradients are measured against no less than this share of the global norm

Place = tuple[Divergence, str]
"""A divergence, and where in its tensor: "norm", "mean", "element [0, 3]", "" where it is in none."""


@dataclass(frozen=True)
class Traces:
    """A recording, and a run that is held against it, both with the recording's names."""

    golden: Golden
    actual: Golden

    @cached_property
    def tolerance(self) -> Tolerance:
        """The tolerance of the recording's precision."""
        return tolerance_for(self.golden.precision)

    def bound(self, name: str) -> float:
        """How far a parameter may stray by the end: further if its gradients are only rounding."""
        share = max(self.golden.shares.get(name, 1.0), self.actual.shares.get(name, 0.0))
        if share <= self.tolerance.noise:
            return self.tolerance.undetermined
        return self.tolerance.parameters

    def divergences(self) -> Iterator[Place]:
        """Everything beyond its bound, in the order of time; of several tensors the worst first."""
        golden = self.golden
        actual = self.actual
        yield from self._data()
        yield from self._laws()
        yield from _tensors("initial parameters", 1, golden.start, actual.start, self._strict)
        yield from _tensors("model state", 1, golden.state_start, actual.state_start, self._strict)
        for index in range(min(golden.updates, actual.updates)):
            yield from self._host(index)
            yield from self._gradients(index)
        if golden.skipped != actual.skipped:
            counts = float(len(golden.skipped)), float(len(actual.skipped))
            yield Divergence("update", golden.updates, "number of skipped windows", counts, 1.0), ""
        if golden.updates == actual.updates:
            yield from _tensors("update", golden.updates, golden.end, actual.end, self.bound)
            # a bias before a BatchNorm, whose gradient is only rounding, moves its running mean
            bounds = [self.bound(name) for name in golden.end]
            loosest = max(bounds, default=self.tolerance.parameters)
            state = {name: end for name, end in golden.state_end.items() if not self._is_variance(name)}
            yield from _tensors("model state", golden.updates, state, actual.state_end, lambda _: loosest)

    def notes(self) -> Iterator[str]:
        """Sentences about running variances at the end that another framework defines otherwise."""
        if self.golden.updates != self.actual.updates:
            return
        variances = {name: end for name, end in self.golden.state_end.items() if self._is_variance(name)}
        places = _tensors("model state", self.golden.updates, variances, self.actual.state_end, self._strict)
        for divergence, place in places:
            recorded, now = divergence.values
            yield (
                f"Note: {divergence.what} ({place}): recorded {recorded:.9g} on "
                f"{self.golden.backend}, now {now:.9g} on {self.actual.backend}; "
                "training does not use it, evaluation does"
            )

    def _strict(self, _: str) -> float:
        return self.tolerance.parameters

    def _is_variance(self, name: str) -> bool:
        """Whether a statistic is another framework's running variance, perhaps the biased one."""
        return self.golden.backend != self.actual.backend and name.rpartition(".")[2] == "running_var"

    def _data(self) -> Iterator[Place]:
        """The examples of the first window, where both sides know them."""
        golden = self.golden.data
        actual = self.actual.data
        if not golden or not actual:
            return  # a stream, whose first window is not known
        for name, summary in golden.items():
            if name not in actual:
                yield Divergence("data order", 1, name, (summary.norm, math.nan), math.inf), "norm"
        yield from _tensors("data order", 1, golden, actual, lambda _: self.tolerance.loss)

    def _laws(self) -> Iterator[Place]:
        """Initialisation laws, of one framework only: another's own defaults are no regression."""
        if self.golden.backend != self.actual.backend:
            return
        for name, law in self.golden.laws.items():
            actual = self.actual.laws[name]
            count = math.prod(law.shape)
            deviation = min(law.deviation, actual.deviation)
            if count < _FEW and deviation > 0:
                continue
            # another seed draws other values: only what chance does not explain is another law
            stray = _DEVIATIONS * deviation / math.sqrt(max(count, 1))
            moments = ("mean", law.mean, actual.mean), ("deviation", law.deviation, actual.deviation)
            for what, recorded, now in moments:
                if abs(recorded - now) > stray + _SAME_NUMBER * abs(recorded):
                    gap = relative_difference(recorded, now)
                    where = f"{what} of the builder's values"
                    yield Divergence("initial parameters", 1, name, (recorded, now), gap), where

    def _host(self, index: int) -> Iterator[Place]:
        """What the host decides of an update, and the loss."""
        for column, stage, what, bound in (
            ("learning_rate", "update", "learning_rate", _SAME_NUMBER),
            # for a parameter may be called weight
            ("weight", "data order", "weight of the window", _SAME_NUMBER),
            ("loss", "loss", "loss", self.tolerance.loss),
        ):
            values = self._values(column, index)
            gap = relative_difference(*values)
            if gap > bound:
                yield Divergence(stage, index + 1, what, values, gap), ""

    def _gradients(self, index: int) -> Iterator[Place]:
        """The gradients of an update if they were kept, the worst first, and their global norm."""
        golden = self.golden
        actual = self.actual
        norms = self._values("grad_norm", index)
        update = index + 1
        gaps = {}
        values = {}
        if update in golden.gradient_updates and update in actual.gradient_updates:
            row = golden.gradient_updates.index(update)
            actual_row = actual.gradient_updates.index(update)
            for name in golden.gradients:
                if name in actual.gradients:  # not those that one side has fused
                    values[name] = golden.gradients[name][row], actual.gradients[name][actual_row]
                    gaps[name] = relative_difference(*values[name], floor=_FLOOR * max(norms))
        for name in _worst_first(gaps):
            if gaps[name] > self.tolerance.parameters:
                yield Divergence("gradients", update, name, values[name], gaps[name]), "norm"
        gap = relative_difference(*norms)
        if gap > self.tolerance.parameters:
            yield Divergence("gradients", update, "grad_norm", norms, gap), ""

    def _values(self, column: str, index: int) -> tuple[float, float]:
        return self.golden.history[column][index], self.actual.history[column][index]


def _tensors(
    stage: str, update: int, golden: Mapping[str, Summary], actual: Mapping[str, Summary], bound: Callable[[str], float]
) -> Iterator[Place]:
    """The tensors beyond their bound, the one that exceeds it by the largest factor first."""
    floor = floor_of(golden, actual)
    gaps = {}
    excess = {}
    for name, summary in among(golden, actual).items():
        gaps[name] = difference(summary, actual[name], floor)
        excess[name] = 0.0
        if gaps[name][0]:
            excess[name] = gaps[name][0] / bound(name)
    for name in _worst_first(excess):
        if excess[name] > 1:
            gap, place, values = gaps[name]
            yield Divergence(stage, update, name, values, gap), place


def _worst_first(gaps: Mapping[str, float]) -> list[str]:
    return sorted(gaps, key=lambda name: -gaps[name])


def floor_of(golden: Mapping[str, Summary], actual: Mapping[str, Summary]) -> float:
    """A thousandth of the median tensor's largest element, as in `core.differences`."""
    sizes = [max(golden[name].largest, actual[name].largest) for name in golden if name in actual]
    if not sizes:
        return 0.0
    return 1e-3 * float(np.median(sizes))
