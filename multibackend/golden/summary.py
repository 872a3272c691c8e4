"""A tensor in one line of a file: enough to tell whether another is the same, and where not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xxhash

__all__ = ["Summary", "difference", "places", "short", "summarise"]

_ELEMENTS = 4  # the norm tells that a tensor moved, these where, and a file stays readable


def short(value: float) -> float:
    """A number to twelve digits: finer than every tolerance, and still readable in a file.

    >>> short(0.10000000149011612)
    0.10000000149
    """
    return float(f"{value:.12g}")


@dataclass(frozen=True)
class Summary:
    """What is kept of a tensor.

    Attributes:
        shape: of the canonical layout.
        norm: the root of the sum of squares.
        mean: of the elements.
        largest: the largest absolute element, which differences are measured against.
        elements: the first, the last, and some at equal distances between them, in canonical order.
        digest: of dtype, shape and bytes; equal exactly where two tensors are bit-identical.
    """

    shape: tuple[int, ...]
    norm: float
    mean: float
    largest: float
    elements: tuple[float, ...]
    digest: str


def summarise(array: np.ndarray) -> Summary:
    """What is kept of a tensor of numbers.

    >>> summarise(np.array([3.0, 4.0])).norm
    5.0
    """
    array = np.asarray(array, order="C")
    values = array.astype(np.float64).reshape(-1)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # on every machine
    return Summary(
        shape=tuple(array.shape),
        norm=short(math.sqrt(float((values * values).sum()))),
        mean=short(float(values.mean())) if values.size else 0.0,
        largest=short(float(np.abs(values).max(initial=0.0))),
        elements=tuple(short(value) for value in values[places(values.size)].tolist()),
        digest=xxhash.xxh3_64_hexdigest(f"{array.dtype.name}{array.shape}".encode() + little.tobytes()),
    )


def difference(expected: Summary, actual: Summary, floor: float = 0.0) -> tuple[float, str, tuple[float, float]]:
    """The largest relative difference of what is kept: (its size, of what, both values); infinite beside a NaN.

    Elements and means are measured against the largest element, as
    `multibackend.parity.relative_differences` does, the norm against itself; nothing against
    less than `floor`.
    """
    norms = (expected.norm, actual.norm)
    if expected.digest == actual.digest:
        return 0.0, "norm", norms
    if expected.shape != actual.shape:
        return math.inf, f"shape {list(expected.shape)} against {list(actual.shape)}, norm", norms
    finite = [size for size in (expected.largest, actual.largest) if math.isfinite(size)]
    scale = max(*finite, floor, float(np.finfo(np.float64).tiny))
    gap = _gap(*norms)
    if math.isfinite(gap):
        gap /= max(*norms, scale)
    differences = [(gap, "norm", norms)]
    means = (expected.mean, actual.mean)
    differences.append((_gap(*means) / scale, "mean", means))
    for place, *values in zip(places(math.prod(expected.shape)), expected.elements, actual.elements, strict=True):
        index = [int(i) for i in np.unravel_index(place, expected.shape)]
        differences.append((_gap(*values) / scale, f"element {index}", (values[0], values[1])))
    # the first of equals: a tensor that moved as a whole is told by its norm
    return max(differences, key=lambda entry: entry[0])


def places(size: int) -> np.ndarray:
    """Return the flat indices of the elements that are kept of so many."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(_ELEMENTS, size)).astype(int))


def _gap(first: float, second: float) -> float:
    """|first - second|; 0 where both are the same infinity or NaN, infinite where one is not finite."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    size = abs(first - second)
    return size if math.isfinite(size) else math.inf
