"""Laws: formulas that are tried on recorded numbers, and what follows where each side obeys another one.

Nothing is believed from settings alone. Each side's output is recomputed in float64 from that side's own recorded
inputs by every law of a topic (LayerNorm with each usual epsilon, ...). Where one law gives the one side's numbers to
rounding and another law the other's, the traits in which the two laws differ are the cause; that the reference's law,
applied to the other side's inputs, gives the reference's numbers is the proof.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.differences import relative_difference

__all__ = ["Difference", "Law", "aligned", "distance", "explain", "fits", "noise_of", "unit"]

_ULPS = 400.0
_SHARE = 0.1
_MOST_FITS = 3


@dataclass(frozen=True)
class Law:
    """A formula on one side's recorded numbers.

    Attributes:
        topic: what it is a formula of, for example "LayerNorm".
        traits: what tells it from its neighbours, for example {"epsilon": 1e-05, "variance": "biased"}.
        compute: gives the array; None where the law does not apply.
        slack: a relative error that the formula itself leaves (it recomputes a float32 sum in another order).
        arguments: what a spelling of the law in a framework's terms needs, for example {"epsilon": 1e-05}.
    """

    topic: str
    traits: Mapping[str, Any]
    compute: Callable[[], np.ndarray | None]
    slack: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Two laws of one topic, the one obeyed by the reference and the other by the other side.

    Attributes:
        laws: of the reference and of the other side.
        traits: the names of the traits in which they differ.
        before: the relative difference of the two sides as they are.
        after: of the reference and its own law applied to the other side's inputs; None where it could not be tried.
    """

    laws: tuple[Law, Law]
    traits: tuple[str, ...]
    before: float
    after: float | None


def unit(*arrays: np.ndarray) -> float:
    """The machine epsilon of the coarsest floating-point dtype among arrays; float64's for other dtypes."""
    kinds = [array.dtype for array in arrays if array.dtype.kind == "f"]
    return max((float(np.finfo(kind).eps) for kind in kinds), default=float(np.finfo(np.float64).eps))


def noise_of(*arrays: np.ndarray) -> float:
    """The relative difference that rounding may leave where a formula recomputes arrays."""
    return _ULPS * unit(*arrays)


def distance(first: np.ndarray, second: np.ndarray | None) -> float:
    """max|a - b| over the larger of max|a| and max|b|, `second` laid out like `first`; infinite where it cannot be."""
    if second is None:
        return float("inf")
    moved = aligned(np.asarray(first), np.asarray(second))
    return float("inf") if moved is None else relative_difference(np.asarray(first), moved)


def aligned(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """`second` in the layout of `first`: as it is, reshaped, or with its axes permuted, whichever is nearest.

    None where no change of layout does it. A permutation that leaves the order of elements is a reshape.
    """
    if first.size != second.size:
        return None
    best, found = float("inf"), None
    for option in _layouts(first.shape, second):
        gap = relative_difference(first, option)
        if gap < best:
            best, found = gap, option
        if best < 1e-9:
            break
    return found


def _layouts(shape: tuple[int, ...], array: np.ndarray) -> Iterable[np.ndarray]:
    if array.shape == shape:
        yield array
    squeezed = [size for size in array.shape if size != 1]
    plain = array.reshape(squeezed)
    wanted = sorted(size for size in shape if size != 1)
    if sorted(squeezed) == wanted and 3 <= len(squeezed) <= 5:
        for axes in ((0, len(squeezed) - 1, *range(1, len(squeezed) - 1)), (0, *range(2, len(squeezed)), 1)):
            if tuple(squeezed[axis] for axis in axes) == tuple(size for size in shape if size != 1):
                yield plain.transpose(axes).reshape(shape)
        if len(squeezed) == 4 and tuple(plain.transpose(0, 2, 1, 3).shape) == tuple(s for s in shape if s != 1):
            yield plain.transpose(0, 2, 1, 3).reshape(shape)
    if array.shape != shape:
        yield array.reshape(shape)


def fits(law: Law, target: np.ndarray, before: float) -> float | None:
    """How far a law is from recorded numbers, None where too far: beyond rounding, or beyond a tenth of `before`."""
    with np.errstate(all="ignore"):
        value = law.compute()
        if value is None or value.size != target.size:
            return None
        gap = relative_difference(np.asarray(target), np.asarray(value).reshape(target.shape))
    return gap if gap <= min(max(noise_of(target), law.slack), _SHARE * before) else None


def explain(
    first: Iterable[Law],
    second: Sequence[Law],
    targets: tuple[np.ndarray, np.ndarray],
    before: float | None = None,
    *,
    proven: bool = True,
) -> Difference | None:
    """The two laws, differing in as few traits as can be, that give one side's numbers each.

    None where a side obeys no law, or where one law gives both sides' numbers: then the difference is no matter of
    these laws. Laws come in order of plausibility: the first that fits the reference is held to be its law, and the
    nearest to it that fits the other side the other's. With `proven=False` also where the reference's law cannot be
    tried on the other side, because an array that it needs is not there.
    """
    before = distance(*targets) if before is None else before
    if before == 0:
        return None
    wanted = min(before, 1.0)  # it is infinite where the shapes differ
    here = (law for law in first if fits(law, targets[0], wanted) is not None)
    for one in itertools.islice(here, _MOST_FITS):
        if any(fits(law, targets[1], wanted) is not None for law in second if _key(law) == _key(one)):
            return None
        near = sorted((law for law in second if law.topic == one.topic), key=lambda law: len(_differing(one, law)))
        after = min((_undone(law, targets[0]) for law in near if _key(law) == _key(one)), default=float("inf"))
        known = np.isfinite(after)
        if after > _SHARE * wanted and (known or proven):
            continue
        other = next((law for law in near if fits(law, targets[1], wanted) is not None), None)
        if other is not None:
            return Difference((one, other), _differing(one, other), before, after if known else None)
    return None


def _undone(law: Law, target: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return distance(target, law.compute())


def _key(law: Law) -> tuple[str, tuple[tuple[str, str], ...]]:
    return law.topic, tuple(sorted((name, repr(value)) for name, value in law.traits.items()))


def _differing(one: Law, other: Law) -> tuple[str, ...]:
    names = dict.fromkeys([*one.traits, *other.traits])
    return tuple(name for name in names if one.traits.get(name) != other.traits.get(name))
