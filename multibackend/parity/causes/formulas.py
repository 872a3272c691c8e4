"""Formulas that are tried on recorded numbers, and what follows where each side obeys another one.

Nothing is believed from settings alone. Each side's output is recomputed in float64 from that side's own recorded
inputs by every formula of a topic (LayerNorm with each usual epsilon, ...). Where one formula gives the one side's
numbers to rounding and another one the other's, the traits in which the two differ are the cause; that the reference's
formula, applied to the other side's inputs, gives the reference's numbers is the proof.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.core.differences import relative_difference

__all__ = ["Difference", "Formula", "aligned", "difference_in", "distance", "explain", "least_squares", "noise_of"]

# A formula adds up in another order than the framework did, which in long sums is worth hundreds of roundings.
_ULPS = 400.0
# A formula that leaves more than this part of the difference between the sides explains nothing.
_SHARE = 0.1
_MOST_FITS = 3


@dataclass(frozen=True)
class Formula:
    """A formula on one side's recorded numbers.

    Attributes:
        topic: what it is a formula of, for example "LayerNorm".
        traits: what tells it from its neighbours, for example {"epsilon": 1e-05, "variance": "biased"}.
        compute: gives the array; None where the formula does not apply.
        slack: a relative error that the formula itself leaves (it recomputes a float32 sum in another order).
    """

    topic: str
    traits: Mapping[str, Any]
    compute: Callable[[], Array | None]
    slack: float = 0.0

    def value(self) -> Array | None:
        """Return what the formula gives; None where it does not apply to the recorded arrays."""
        try:
            # 0 / 0 in a formula that is wrong for these numbers is no news: NaN fits nothing
            with np.errstate(all="ignore"):
                return self.compute()
        except ValueError:
            # The arrays are a stranger's: numpy says so where their shapes do not broadcast, reshape or multiply.
            return None

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What two formulas share that are the same one on two sides."""
        return self.topic, tuple(sorted((name, repr(value)) for name, value in self.traits.items()))


@dataclass(frozen=True)
class Difference:
    """Two formulas of one topic, the one obeyed by the reference and the other by the other side.

    Attributes:
        formulas: of the reference and of the other side.
        traits: the names of the traits in which they differ.
        before: the relative difference of the two sides as they are.
        after: of the reference and its own formula applied to the other side's inputs; None where it could not be
            tried.
    """

    formulas: tuple[Formula, Formula]
    traits: tuple[str, ...]
    before: float
    after: float | None


def difference_in(topic: str, trait: str, values: Sequence[Any], before: float, after: float | None) -> Difference:
    """Return a difference in one trait, whose values on both sides were read from the numbers themselves."""
    reference, other = (Formula(topic, {trait: value}, lambda: None) for value in values)
    return Difference((reference, other), (trait,), before, after)


def noise_of(*arrays: Array) -> float:
    """The relative difference that rounding may leave where a formula recomputes arrays, the coarsest deciding."""
    dtypes = [array.dtype for array in arrays if array.dtype.kind == "f"]
    return _ULPS * max(float(np.finfo(dtype).eps) for dtype in [*dtypes, np.dtype(np.float64)])


def distance(first: Array, second: Array | None) -> float:
    """max|a - b| over the larger of max|a| and max|b|, `second` laid out like `first`; infinite where it cannot be."""
    if second is None:
        return float("inf")
    moved = aligned(np.asarray(first), np.asarray(second))
    if moved is None:
        return float("inf")
    return relative_difference(np.asarray(first), moved)


def aligned(first: Array, second: Array) -> Array | None:
    """Return `second` in the layout of `first`: as it is, reshaped, or with its axes permuted, whichever is nearest.

    None where no change of layout does it. A permutation that leaves the order of elements is a reshape.
    """
    if first.size != second.size:
        return None
    nearest = None
    smallest = float("inf")
    for layout in _layouts(first.shape, second):
        difference = relative_difference(first, layout)
        if difference < smallest:
            smallest = difference
            nearest = layout
        if smallest < 1e-9:
            break
    return nearest


def _layouts(shape: tuple[int, ...], array: Array) -> Iterator[Array]:
    """Yield an array in the layouts in which two frameworks may hold it: channels last or first, heads moved."""
    if array.shape == shape:
        yield array
    # axes of length 1 stand anywhere, so the others alone are permuted
    squeezed = array.reshape([size for size in array.shape if size != 1])
    target = tuple(size for size in shape if size != 1)
    rank = squeezed.ndim
    if sorted(squeezed.shape) == sorted(target) and 3 <= rank <= 5:
        permutations = [(0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)]
        if rank == 4:
            permutations.append((0, 2, 1, 3))
        for axes in permutations:
            permuted = squeezed.transpose(axes)
            if permuted.shape == target:
                yield permuted.reshape(shape)
    if array.shape != shape:
        yield array.reshape(shape)


def least_squares(matrix: Array, target: Array) -> tuple[Array, int] | None:
    """Return the factors of the columns whose sum is nearest to a target, and the rank; None where there are none."""
    # LAPACK writes a line to the terminal for each number that is not finite, before it fails
    if not np.isfinite(matrix).all() or not np.isfinite(target).all():
        return None
    try:
        factors, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    except np.linalg.LinAlgError:  # the singular values do not converge
        return None
    return factors, int(rank)


def explain(
    first: Iterable[Formula],
    second: Sequence[Formula],
    targets: tuple[Array, Array],
    before: float | None = None,
    *,
    proven: bool = True,
) -> Difference | None:
    """Find the two formulas, differing in as few traits as can be, that give one side's numbers each.

    None where a side obeys no formula, or where one gives both sides' numbers: then the difference is no matter of
    these formulas. They come in order of plausibility: the first that fits the reference is held to be its own, and the
    nearest to it that fits the other side the other's. With `proven=False` also where the reference's formula cannot be
    tried on the other side, because an array that it needs is not there.
    """
    before = distance(*targets) if before is None else before
    if before == 0:
        return None
    size = min(before, 1.0)  # it is infinite where the shapes differ
    candidates = (formula for formula in first if _fits(formula, targets[0], size))
    for reference in itertools.islice(candidates, _MOST_FITS):
        twins = [formula for formula in second if formula.key == reference.key]
        if any(_fits(twin, targets[1], size) for twin in twins):
            return None
        after = min((distance(targets[0], twin.value()) for twin in twins), default=float("inf"))
        could_be_tried = np.isfinite(after)
        if after > _SHARE * size and (could_be_tried or proven):
            continue
        neighbours = [formula for formula in second if formula.topic == reference.topic]
        neighbours.sort(key=lambda formula: len(_differing(reference, formula)))
        other = next((formula for formula in neighbours if _fits(formula, targets[1], size)), None)
        if other is not None:
            traits = _differing(reference, other)
            return Difference((reference, other), traits, before, after if could_be_tried else None)
    return None


def _fits(formula: Formula, target: Array, size: float) -> bool:
    """Whether a formula gives recorded numbers: to rounding, and much nearer than the other side's numbers are."""
    value = formula.value()
    if value is None or value.size != target.size:
        return False
    difference = relative_difference(np.asarray(target), np.asarray(value).reshape(target.shape))
    return difference <= min(max(noise_of(target), formula.slack), _SHARE * size)


def _differing(reference: Formula, other: Formula) -> tuple[str, ...]:
    names = dict.fromkeys([*reference.traits, *other.traits])
    return tuple(name for name in names if reference.traits.get(name) != other.traits.get(name))
