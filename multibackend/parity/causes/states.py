"""Running statistics of BatchNorm: the momentum, and biased or unbiased variance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.laws import Difference, Law, explain

__all__ = ["StatisticsSide", "statistics_difference"]


_MOMENTA = (0.1, 0.01, 0.9, 0.99, 0.001, 0.03, 0.003, 0.05, 0.2, 0.0, 1.0)


@dataclass(frozen=True)
class StatisticsSide:
    """One layer's statistic before and after one micro-batch.

    Attributes:
        before, after: [channels], running mean or running variance.
        inputs: what the layer normalised, channels on any axis.
        name: "running_mean" or "running_var".
    """

    before: Array
    after: Array
    inputs: Array
    name: str


def statistics_difference(sides: tuple[StatisticsSide, StatisticsSide]) -> Difference | None:
    """new = (1 - m) old + m statistic: the weight m of the new value, and the kind of variance."""
    momenta = dict.fromkeys([m for side in sides for m in _fitted(side)])
    laws = [list(_laws(side, (*momenta, *_MOMENTA))) for side in sides]
    return explain(laws[0], laws[1], (sides[0].after, sides[1].after))


def _laws(side: StatisticsSide, momenta: tuple[float, ...]) -> Iterator[Law]:
    for m in dict.fromkeys(momenta):
        for kind, statistic in _statistics(side):
            traits = {"momentum": m} | ({"variance": kind} if side.name == "running_var" else {})
            yield Law("running statistics", traits, _Moved(side.before, statistic, m), arguments={"momentum": m})


class _Moved:
    def __init__(self, old: Array, statistic: Array, momentum: float) -> None:
        self._arguments = (old, statistic, momentum)

    def __call__(self) -> Array:
        old, statistic, m = self._arguments
        return (1 - m) * np.asarray(old, np.float64) + m * statistic


def _statistics(side: StatisticsSide) -> list[tuple[str, Array]]:
    """The statistic of the micro-batch, for each axis that may hold the channels and each kind of variance."""
    x, channels, found = np.asarray(side.inputs, np.float64), np.size(side.after), []
    count = x.size // channels
    for axis in dict.fromkeys([1, x.ndim - 1]):
        if axis < x.ndim and x.shape[axis] == channels:
            axes = tuple(a for a in range(x.ndim) if a != axis)
            if side.name == "running_mean":
                found.append(("", x.mean(axes)))
            else:
                unbiased = x.var(axes) * count / max(count - 1, 1)
                found += [("unbiased", unbiased), ("biased", x.var(axes))]
    return found


def _fitted(side: StatisticsSide) -> list[float]:
    """The weight of the new value that the numbers imply, for each kind of statistic."""
    found = []
    for _, statistic in _statistics(side):
        way, step = statistic - side.before, np.asarray(side.after, np.float64) - side.before
        size = float((way**2).sum())
        m = float((way * step).sum()) / size if size else 0.0
        if np.abs(m * way - step).max() <= 1e-6 * max(float(np.abs(step).max()), 1e-300):
            found.append(float(f"{m:.6g}"))
    return found
