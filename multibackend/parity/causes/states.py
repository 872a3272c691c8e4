"""Running statistics of BatchNorm: the momentum, and biased or unbiased variance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formulas import Difference, Formula, explain, fitted_factor

__all__ = ["RecordedStatistic", "statistics_difference"]

# torch's 0.1 and Flax's 0.99 first; the one weighs the new value, the other the old one
_MOMENTA = (0.1, 0.01, 0.9, 0.99, 0.001, 0.03, 0.003, 0.05, 0.2, 0.0, 1.0)


@dataclass(frozen=True)
class RecordedStatistic:
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


def statistics_difference(sides: tuple[RecordedStatistic, RecordedStatistic]) -> Difference | None:
    """new = (1 - m) old + m statistic: the weight m of the new value, and the kind of variance."""
    # an unusual momentum is read from the numbers of either side
    momenta = [*_implied_momenta(sides[0]), *_implied_momenta(sides[1]), *_MOMENTA]
    formulas = _formulas(sides[0], momenta)
    other_formulas = list(_formulas(sides[1], momenta))
    return explain(formulas, other_formulas, (sides[0].after, sides[1].after))


def _formulas(side: RecordedStatistic, momenta: list[float]) -> Iterator[Formula]:
    for momentum in dict.fromkeys(momenta):
        for variance, statistic in _statistics(side):
            traits: dict[str, object] = {"momentum": momentum}
            if side.name == "running_var":
                traits["variance"] = variance
            compute = partial(_moved, side.before, statistic, momentum)
            yield Formula("running statistics", traits, compute)


def _moved(old: Array, statistic: Array, momentum: float) -> Array:
    return (1 - momentum) * np.asarray(old, np.float64) + momentum * statistic


def _statistics(side: RecordedStatistic) -> list[tuple[str, Array]]:
    """The statistic of the micro-batch, by the axis of the channels and the kind of variance."""
    x = np.asarray(side.inputs, np.float64)
    channels = np.size(side.after)
    statistics = []
    for axis in sorted({1, x.ndim - 1} & set(range(x.ndim))):
        if x.shape[axis] != channels or channels == 0:
            continue
        axes = tuple(index for index in range(x.ndim) if index != axis)
        if side.name == "running_mean":
            statistics.append(("", x.mean(axes)))
        else:
            # torch stores the unbiased variance, Flax the biased one
            count = x.size // channels
            unbiased = x.var(axes) * count / max(count - 1, 1)
            statistics += [("unbiased", unbiased), ("biased", x.var(axes))]
    return statistics


def _implied_momenta(side: RecordedStatistic) -> list[float]:
    """The weight of the new value that the numbers imply, for each kind of statistic."""
    momenta = []
    for _, statistic in _statistics(side):
        way = statistic - side.before
        step = np.asarray(side.after, np.float64) - side.before
        momentum = fitted_factor(way, step)
        rest = np.abs(momentum * way - step).max()
        if rest <= 1e-6 * max(float(np.abs(step).max()), 1e-300):
            momenta.append(float(f"{momentum:.6g}"))
    return momenta
