"""What two models answered when they were run at the same values, and how far their answers agree.

An answer is the gradient of a parameter, or by how much an array of model state moved. A cost is a
squared difference relative to the squared size, of arrays that one choice of partner and layout
would make equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.matching.links import Link
from multibackend.matching.sides import Pair

__all__ = ["Answers"]

_UNKNOWN = 1.0  # the cost of a pair of which one answer is missing: between right and impossible
_IMPOSSIBLE = 1e3


@dataclass(frozen=True)
class Answers:
    """The answers of the reference and of the other model, each by its own names."""

    reference: Arrays
    other: Arrays

    @cached_property
    def floor(self) -> float:
        """The squared size below which an answer is nothing but rounding."""
        arrays = (*self.reference.values(), *self.other.values())
        largest = max((float(np.sum(array**2)) for array in arrays), default=0.0)
        return 1e-22 * largest + np.finfo(float).tiny  # 1e-11 of the largest norm, squared

    def know(self, pair: Pair | Link) -> bool:
        """Whether both models answered for a pair."""
        return pair.reference in self.reference and pair.other in self.other

    def distance(self, first: Array, second: Array) -> float:
        """The squared difference relative to the squared size."""
        size = (float(np.sum(first**2)) + float(np.sum(second**2))) / 2
        return float(np.sum((first - second) ** 2)) / (size + self.floor)

    def costs(self, pair: Pair) -> list[float]:
        """The cost of each change of layout that a known pair allows."""
        array = self.reference[pair.reference]
        return [self.distance(change(array), self.other[pair.other]) for change in pair.changes]

    def least_cost(self, pair: Pair) -> float:
        """The cost of a pair under its best change of layout."""
        if not self.know(pair):
            return _UNKNOWN
        return min(self.costs(pair), default=_IMPOSSIBLE)

    def cost_of_links(self, links: Sequence[Link]) -> float:
        """The cost of several links together, the larger arrays counting more."""
        gaps = 0.0
        sizes = 0.0
        for link in links:
            if self.know(link):
                expected = link.to_other(self.reference[link.reference])
                actual = link.of_other(self.other[link.other]).reshape(expected.shape)
                gaps += float(np.sum((expected - actual) ** 2))
                sizes += float(np.sum(expected**2) + np.sum(actual**2)) / 2
        return gaps / (sizes + self.floor)

    def shared_directions(self, pair: Pair) -> list[float]:
        """In [0, 1] for each change of layout: how far the axes hold the same directions."""
        array = self.reference[pair.reference]
        other = self.other[pair.other]
        return [_shared_directions(change(array), other) for change in pair.changes]


def _shared_directions(first: Array, second: Array) -> float:
    """Return the mean over axes of the cosine between the two arrays' Gram matrices."""
    total = 0.0
    for axis in range(second.ndim):
        gram = _gram(first, axis)
        other_gram = _gram(second, axis)
        size = float(np.linalg.norm(gram) * np.linalg.norm(other_gram))
        if size > 0:
            total += float(np.sum(gram * other_gram)) / size
    return total / max(second.ndim, 1)


def _gram(array: Array, axis: int) -> Array:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return rows @ rows.T
