"""How far two values are apart, relative to their size: the one home of that question."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from multibackend.core.arrays import Arrays

__all__ = ["largest_element", "relative_difference", "relative_differences", "relative_gaps"]

# In place of a size of 0, so that 0 against 0 is no division by zero.
_TINY = float(np.finfo(np.float64).tiny)


def relative_difference(first: ArrayLike, second: ArrayLike, floor: float = 0.0) -> float:
    """max|a - b| / max(|a|, |b|, floor), the maxima over both arrays.

    Elements are measured against the largest of their array: relative to itself, an element near
    zero would differ by 100 % from rounding alone. NaN equals NaN; NaN against a number is
    infinite.

    >>> relative_difference(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    0.5
    """
    a = np.asarray(first, np.float64)
    b = np.asarray(second, np.float64)
    # inf - inf is NaN: equal infinities are found by comparing them, before the subtraction counts.
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(a - b))
    size = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
    if size == 0:
        return 0.0
    return size / max(largest_element(a), largest_element(b), floor, _TINY)


def relative_differences(first: Arrays, second: Arrays) -> dict[str, float]:
    """Return the `relative_difference` for each name of `first`.

    The floor is a thousandth of the median array's largest element, for arrays that are themselves
    all but zero: a bias whose true gradient is 0 holds nothing but rounding.

    >>> relative_differences({"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 2.002])})
    {'w': 0.000999...}
    """
    if not first:
        return {}
    scales = [max(largest_element(first[name]), largest_element(second[name])) for name in first]
    # The median: one array that has exploded must not hide the difference of all others.
    floor = 1e-3 * float(np.median(scales))
    return {name: relative_difference(first[name], second[name], floor) for name in first}


def relative_gaps(first: ArrayLike, second: ArrayLike, floor: float = 0.0) -> np.ndarray:
    """|a - b| / max(|a|, |b|, floor) of each element by itself.

    For numbers such as losses, each of which means something alone.

    >>> relative_gaps(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    a = np.asarray(first, np.float64)
    b = np.asarray(second, np.float64)
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), max(floor, _TINY))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b) / scale
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.nan_to_num(gaps, nan=np.inf))


def largest_element(array: np.ndarray) -> float:
    """Return the largest finite magnitude; 0 of an array that has none."""
    array = np.asarray(array)
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
