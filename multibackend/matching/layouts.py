"""The changes of layout that are possible between two shapes."""

from __future__ import annotations

import functools
import itertools
import math

from multibackend.matching.links import Rearrangement

__all__ = ["rearrangements"]

_MOST_AXES = 5  # 120 permutations; of more axes only the given order is tried


@functools.lru_cache(maxsize=4096)  # few shapes, asked about for every pair of arrays
def rearrangements(reference: tuple[int, ...], other: tuple[int, ...]) -> tuple[Rearrangement, ...]:
    """All ways in which an array of one shape can become the other by permuting axes, split or joined ones included.

    The plainest first: as it is, reshaped only, the reversed order of axes, then the rest. Axes of
    length 1 play no part. Empty where there is no such change.

    >>> [change.axes for change in rearrangements((4, 4), (4, 4))]
    [(0, 1), (1, 0)]
    >>> rearrangements((6, 5), (5, 2, 3))[0]
    Rearrangement(merged=(3, 2, 5), axes=(2, 1, 0), shape=(5, 2, 3))
    """
    if math.prod(reference) != math.prod(other):
        return ()
    axes = [length for length in reference if length > 1]
    other_axes = [length for length in other if length > 1]
    if len(other_axes) >= len(axes):  # an axis of the reference splits into several of the other
        changes = [_split(order, other_axes, other) for order in _orders(other_axes, axes)]
    else:  # the permuted axes of the reference join into the other's
        changes = [Rearrangement(tuple(axes), order, other) for order in _orders(axes, other_axes)]
    return tuple(sorted(dict.fromkeys(changes), key=_plainness))


def _orders(axes: list[int], target: list[int]) -> list[tuple[int, ...]]:
    """Return the permutations of `axes` whose neighbours join into `target`."""
    as_it_is = tuple(range(len(axes)))
    orders = itertools.permutations(as_it_is) if len(axes) <= _MOST_AXES else [as_it_is]
    return [order for order in orders if _joins(order, axes, target)]


def _joins(order: tuple[int, ...], axes: list[int], target: list[int]) -> bool:
    """Tell whether neighbouring `axes`, taken in `order`, multiply to the lengths of `target`."""
    position = 0
    for length in target:
        product = 1
        while product < length and position < len(order):
            product *= axes[order[position]]
            position += 1
        if product != length:
            return False
    return position == len(order)


def _split(order: tuple[int, ...], other_axes: list[int], other: tuple[int, ...]) -> Rearrangement:
    """See the reference as the other's axes in `order`, and bring them back to the other's order."""
    merged = tuple(other_axes[axis] for axis in order)
    back = tuple(order.index(axis) for axis in range(len(order)))
    return Rearrangement(merged, back, other)


def _plainness(change: Rearrangement) -> tuple[int, int, tuple[int, ...]]:
    """Sort key: what moves nothing first, then the reversed axes, then the rest by `axes`."""
    if not change.moves:
        return 0, 0, change.axes
    is_reverse = change.axes == tuple(reversed(range(len(change.axes))))
    # a convolution's [*spatial, in, out] becomes [out, in, *spatial]: its last two axes come first
    return 1, int(not is_reverse), change.axes
