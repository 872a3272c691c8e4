"""Arrays that may be the same in another layout: channels last, heads merged, images flat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.matching import Rearrangement

__all__ = ["GOOD", "Fit", "Shape", "find_fit", "worst_element"]

Shape = tuple[int, ...]

_MOST_PERMUTATIONS = 720  # of six axes; each one tried costs a pass over the array
GOOD = 1e-6  # nothing is sought beyond a layout that fits like this
_CLEARLY = 0.1  # an unusual layout must fit better than the usual one by this factor


@dataclass(frozen=True)
class Fit:
    """How an array of the other model becomes one of the reference.

    Attributes:
        rearrangement: from the other to the reference; None where one side is repeated along an
            axis of the other.
        reference, other: the shapes.
        difference: relative, as `relative_difference` measures it, between the arrays for which
            it was found.
    """

    rearrangement: Rearrangement | None
    reference: Shape
    other: Shape
    difference: float

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """Lay an array of the other model out as the reference does."""
        if self.rearrangement is None:
            return _repeated(array, self.reference)
        return self.rearrangement(array)

    def to_other(self, array: np.ndarray) -> np.ndarray:
        """Lay an array of the reference out as the other model does."""
        if self.rearrangement is None:
            return _repeated(array, self.other)
        return self.rearrangement.inverse(array, self.other)

    def remeasured(self, reference: np.ndarray, other: np.ndarray) -> Fit:
        """Return the same layout with the difference of other arrays of these shapes."""
        difference = relative_difference(reference, self.to_reference(other))
        return Fit(self.rearrangement, self.reference, self.other, difference)


def worst_element(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the values of two arrays of one shape where they differ most."""
    if not first.size:
        return 0.0, 0.0
    a = np.asarray(first, np.float64)
    b = np.asarray(second, np.float64)
    with np.errstate(invalid="ignore"):
        gaps = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    # a NaN on one side is worse than any number, infinity included, which nan_to_num makes finite
    place = np.unravel_index(int(np.argmax(np.nan_to_num(gaps, nan=np.inf))), first.shape)
    return float(first[place]), float(second[place])


def find_fit(
    reference: np.ndarray,
    other: np.ndarray,
    hints: Iterable[Shape] = (),
    known: Iterable[Fit | None] = (),
    usual: Sequence[Shape] = (),
) -> Fit | None:
    """Find the layout in which two arrays agree best; None where their sizes can not be reconciled.

    Without a clear winner the first of `usual` that is possible, else: as it is, channels last for
    channels first, heads and time swapped.

    Args:
        hints: axes that may hide in one axis of both, for example (channels, height, width) of
            what was flattened.
        known: layouts to be tried first.
        usual: permutations of axes that other arrays of the two models have.
    """
    for fit in known:
        if fit is not None and (fit.reference, fit.other) == (reference.shape, other.shape):
            remeasured = fit.remeasured(reference, other)
            if remeasured.difference <= GOOD:
                return remeasured
    if reference.size != other.size:
        return _broadcast(reference, other)
    rank = sum(size > 1 for size in other.shape)
    fits: list[Fit] = []
    by_axes: dict[Shape, Fit] = {}  # of layouts that split no axis, as those of `usual` do
    for change in _candidates(reference.shape, other.shape, hints):
        fit = Fit(change, reference.shape, other.shape, relative_difference(reference, change(other)))
        if fit.difference <= GOOD:
            return fit
        fits.append(fit)
        if len(change.axes) == rank:
            by_axes.setdefault(change.axes, fit)
    if not fits:
        return None
    # Of arrays that differ, the layout that fits best by chance means nothing: it must win clearly.
    normal = next((by_axes[axes] for axes in usual if axes in by_axes), fits[0])
    best = min(fits, key=lambda fit: fit.difference)
    return best if best.difference <= _CLEARLY * normal.difference else normal


def _repeated(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Repeat or cut an array along the axes where it or the shape has one element."""
    cut = array[tuple(slice(0, 1) if size == 1 else slice(None) for size in shape)]
    return np.array(np.broadcast_to(cut, shape))


def _broadcast(reference: np.ndarray, other: np.ndarray) -> Fit | None:
    """Fit one example's positions [1, t] to those of all [n, t]."""
    pairs = list(zip(reference.shape, other.shape, strict=False))
    if reference.ndim != other.ndim or any(a != b and 1 not in (a, b) for a, b in pairs):
        return None
    common = tuple(max(pair) for pair in pairs)
    size = relative_difference(np.broadcast_to(reference, common), np.broadcast_to(other, common))
    return Fit(None, reference.shape, other.shape, size)


def _candidates(reference: Shape, other: Shape, hints: Iterable[Shape]) -> Iterator[Rearrangement]:
    """Yield the changes from `other` to `reference`, the usual ones first, each once."""
    tried: set[tuple[Shape, Shape]] = set()
    # axes of one element can stand anywhere: left out here, the reference's shape brings them back
    for order in _orders(_without_ones(reference), _without_ones(other), hints):
        if order not in tried:
            tried.add(order)
            yield Rearrangement(*order, reference)


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size > 1)


def _orders(reference: Shape, other: Shape, hints: Iterable[Shape]) -> Iterator[tuple[Shape, Shape]]:
    """Yield (shape in which to view the other, permutation) that may give the reference."""
    if reference == other:
        yield other, tuple(range(len(other)))
    for axes in _permutations(len(other)):
        if _merges_into(tuple(other[axis] for axis in axes), reference):
            yield other, axes
    yield from _inverse_orders(reference, other)
    for hint in hints:
        for place, size in enumerate(reference):
            if math.prod(hint) == size and len(hint) > 1:
                yield from _inverse_orders((*reference[:place], *hint, *reference[place + 1 :]), other)


def _inverse_orders(atoms: Shape, other: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Yield the same where the reference's axes, some of them split, were permuted."""
    for axes in _permutations(len(atoms)):
        view = tuple(atoms[axis] for axis in axes)
        if _merges_into(view, other):
            yield view, tuple(int(axis) for axis in np.argsort(axes))


def _permutations(rank: int) -> list[Shape]:
    """Permutations of axes; those that keep the first one and turn the others around come first."""
    if math.factorial(rank) > _MOST_PERMUTATIONS:
        # only the identity, channels last to channels first, and back
        return [tuple(range(rank)), (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)]
    turned = {(0, *range(shift, rank), *range(1, shift)) for shift in range(1, rank)}

    def unusual(axes: Shape) -> tuple[bool, bool]:
        return axes[:1] != (0,), axes not in turned

    return sorted(itertools.permutations(range(rank)), key=unusual)


def _merges_into(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Whether neighbouring axes of the one, multiplied, give the other."""
    place = 0
    for size in coarse:
        product = 1
        while product < size and place < len(fine):
            product *= fine[place]
            place += 1
        if product != size:
            return False
    return place == len(fine)
