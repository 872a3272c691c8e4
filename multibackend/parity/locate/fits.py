"""Arrays that may be the same in another layout: [n, c, h, w] and [n, h, w, c], heads apart or merged, images flat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.matching import Rearrangement

__all__ = ["GOOD", "Fit", "find_fit", "worst_element"]

Shape = tuple[int, ...]

_MOST_PERMUTATIONS = 720
GOOD = 1e-6  # nothing is sought beyond a layout that fits like this
_CLEARLY = 0.1  # an unusual layout must fit better than the usual one by this factor


@dataclass(frozen=True)
class Fit:
    """How an array of the other model becomes one of the reference.

    Attributes:
        rearrangement: from the other to the reference; None where one side is repeated along an axis of the other.
        reference, other: the shapes.
        difference: relative, as `relative_difference` measures it, between the arrays for which it was found.
    """

    rearrangement: Rearrangement | None
    reference: Shape
    other: Shape
    difference: float

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """An array of the other model as the reference lays it out."""
        if self.rearrangement is None:
            return _repeated(array, self.reference)
        return self.rearrangement(array)

    def to_other(self, array: np.ndarray) -> np.ndarray:
        """The inverse."""
        if self.rearrangement is None:
            return _repeated(array, self.other)
        return self.rearrangement.inverse(array, self.other)

    def again(self, reference: np.ndarray, other: np.ndarray) -> Fit:
        """The same layout for other arrays of these shapes."""
        return Fit(
            self.rearrangement, self.reference, self.other, relative_difference(reference, self.to_reference(other))
        )


def worst_element(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The values of two arrays of one shape where they differ most."""
    if not first.size:
        return 0.0, 0.0
    place = np.unravel_index(int(np.argmax(_gap(first, second)[0])), first.shape)
    return float(first[place]), float(second[place])


def find_fit(
    reference: np.ndarray,
    other: np.ndarray,
    hints: Iterable[Shape] = (),
    known: Iterable[Fit | None] = (),
    usual: Sequence[Shape] = (),
) -> Fit | None:
    """The layout in which two arrays agree best; None where their sizes can not be reconciled.

    Without a clear winner the first of `usual` that is possible, else: as it is, channels last for channels first,
    heads and time swapped.

    Args:
        hints: axes that may hide in one axis of both, for example (channels, height, width) of what was flattened.
        known: layouts to be tried first.
        usual: permutations of axes that other arrays of the two models have.
    """
    for fit in known:
        if fit is not None and (fit.reference, fit.other) == (reference.shape, other.shape):
            again = fit.again(reference, other)
            if again.difference <= GOOD:
                return again
    if reference.size != other.size:
        return _broadcast(reference, other)
    found: list[Fit] = []
    for change in _candidates(reference.shape, other.shape, hints):
        found.append(Fit(change, reference.shape, other.shape, relative_difference(reference, change(other))))
        if found[-1].difference <= GOOD:
            return found[-1]
    if not found:
        return None
    rank = sum(size > 1 for size in other.shape)
    plain = {  # nothing split
        fit.rearrangement.axes: fit
        for fit in reversed(found)
        if fit.rearrangement is not None and len(fit.rearrangement.axes) == rank
    }
    normal = next((plain[axes] for axes in usual if axes in plain), found[0])
    best = min(found, key=lambda fit: fit.difference)
    return best if best.difference <= _CLEARLY * normal.difference else normal


def _gap(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    finite = [np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (a, b)]
    return np.nan_to_num(gap, nan=np.inf), float(max(finite))


def _repeated(array: np.ndarray, shape: Shape) -> np.ndarray:
    cut = array[tuple(slice(0, 1) if wanted == 1 else slice(None) for wanted in shape)]
    return np.array(np.broadcast_to(cut, shape))


def _broadcast(reference: np.ndarray, other: np.ndarray) -> Fit | None:
    """One example's positions [1, t] against those of all [n, t]."""
    pairs = list(zip(reference.shape, other.shape, strict=False))
    if reference.ndim != other.ndim or any(a != b and 1 not in (a, b) for a, b in pairs):
        return None
    fit = Fit(None, reference.shape, other.shape, 0.0)
    common = tuple(max(pair) for pair in pairs)
    size = relative_difference(np.broadcast_to(reference, common), np.broadcast_to(other, common))
    return Fit(fit.rearrangement, fit.reference, fit.other, size)


def _candidates(reference: Shape, other: Shape, hints: Iterable[Shape]) -> Iterator[Rearrangement]:
    """Changes from `other` to `reference`, the usual ones first, each once."""
    seen: set[tuple[Shape, Shape]] = set()
    bare_reference, bare_other = (tuple(n for n in shape if n > 1) for shape in (reference, other))
    for merged, axes in _orders(bare_reference, bare_other, hints):
        if (merged, axes) not in seen:
            seen.add((merged, axes))
            yield Rearrangement(merged, axes, reference)


def _orders(reference: Shape, other: Shape, hints: Iterable[Shape]) -> Iterator[tuple[Shape, Shape]]:
    """(shape in which to view the other, permutation of its axes) that may give the reference."""
    if reference == other:
        yield other, tuple(range(len(other)))
    for axes in _permutations(len(other)):
        if _groups(tuple(other[axis] for axis in axes), reference):
            yield other, axes
    yield from _inverse_orders(reference, other)
    for hint in hints:
        for place, size in enumerate(reference):
            if math.prod(hint) == size and len(hint) > 1:
                yield from _inverse_orders((*reference[:place], *hint, *reference[place + 1 :]), other)


def _inverse_orders(atoms: Shape, other: Shape) -> Iterator[tuple[Shape, Shape]]:
    """The same where the reference's axes, some of them split, are those that were permuted."""
    for axes in _permutations(len(atoms)):
        view = tuple(atoms[axis] for axis in axes)
        if _groups(view, other):
            yield view, tuple(int(axis) for axis in np.argsort(axes))


def _permutations(rank: int) -> list[Shape]:
    """Of axes: those that keep the first one, then those that only turn the others around, come first."""

    def unusual(axes: Shape) -> tuple[bool, int]:
        rest = axes[1:]
        turned = [axis - 1 for axis in rest] if rest else []
        cyclic = any(turned == [(i + shift) % len(rest) for i in range(len(rest))] for shift in range(len(rest)))
        return bool(axes) and axes[0] != 0, 0 if cyclic else 1

    if math.factorial(rank) > _MOST_PERMUTATIONS:
        return [tuple(range(rank)), (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)]
    return sorted(itertools.permutations(range(rank)), key=unusual)


def _groups(fine: Sequence[int], coarse: Sequence[int]) -> bool:
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
