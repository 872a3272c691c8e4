"""The changes of layout that are possible between two shapes."""

from __future__ import annotations

import functools
import itertools
import math

from multibackend.matching.links import Rearrangement

__all__ = ["rearrangements"]

_MOST_AXES = 5


@functools.lru_cache(maxsize=4096)
def rearrangements(reference: tuple[int, ...], other: tuple[int, ...]) -> tuple[Rearrangement, ...]:
    """All ways in which an array of one shape can become the other by permuting axes, split or joined ones included.

    The plainest first: as it is, reshaped only, the reversed order of axes, then the rest. Axes of length 1 play no
    part. Empty where there is no such change.

    >>> [change.axes for change in rearrangements((4, 4), (4, 4))]
    [(0, 1), (1, 0)]
    >>> rearrangements((6, 5), (5, 2, 3))[0]
    Rearrangement(merged=(2, 3, 5), axes=(2, 0, 1), shape=(5, 2, 3))
    """
    if math.prod(reference) != math.prod(other):
        return ()
    long, short = [n for n in other if n > 1], [n for n in reference if n > 1]
    if len(long) >= len(short):
        found = [_of(order, long, other) for order in _orders(long, short)]
    else:  # the reference has more axes: its permuted axes join into the other's
        found = [Rearrangement(tuple(short), order, other) for order in _orders(short, long)]
    return tuple(sorted(dict.fromkeys(found), key=_plainness))


def _orders(axes: list[int], target: list[int]) -> list[tuple[int, ...]]:
    """The permutations of `axes` whose neighbours join into `target`."""
    if len(axes) > _MOST_AXES:
        return [tuple(range(len(axes)))] if _joins(axes, target) else []
    orders = itertools.permutations(range(len(axes)))
    return [order for order in orders if _joins([axes[axis] for axis in order], target)]


def _joins(axes: list[int], target: list[int]) -> bool:
    position = 0
    for wanted in target:
        product = 1
        while product < wanted and position < len(axes):
            product *= axes[position]
            position += 1
        if product != wanted:
            return False
    return position == len(axes)


def _of(order: tuple[int, ...], axes: list[int], other: tuple[int, ...]) -> Rearrangement:
    """From the reference, seen as the other's axes in `order`, back to the other's own order."""
    back = tuple(order.index(axis) for axis in range(len(axes)))
    return Rearrangement(tuple(axes[axis] for axis in order), back, other)


def _plainness(change: Rearrangement) -> tuple[int, int, tuple[int, ...]]:
    if not change.moves:
        return 0, 0, change.axes
    reverse = change.axes == tuple(reversed(range(len(change.axes))))
    # a convolution's [*spatial, in, out] has its last two axes first when it becomes [out, in, *spatial]
    return 1, 0 if reverse else 1, change.axes
