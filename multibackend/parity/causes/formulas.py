"""Formulas that are tried on recorded numbers, and what follows where each side obeys another one.

Nothing is believed from settings. Each side's output is recomputed in float64 from that side's recorded
inputs by every formula of a topic (LayerNorm with each usual epsilon, ...). Where one gives the one side's
numbers to rounding and another the other's, the traits in which they differ are the cause; the proof is that
the reference's formula, applied to the other side's inputs, gives the reference's numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.core.differences import relative_difference

__all__ = [
    "Difference",
    "Formula",
    "Targets",
    "aligned",
    "difference_in",
    "differing",
    "distance",
    "explain",
    "fitted_factor",
    "least_squares",
    "noise_of",
]

Targets = tuple[Array, Array]
"""What the reference recorded, and what the other side did."""

# A formula adds up in another order than the framework did: in long sums hundreds of roundings.
_ULPS = 400.0
# A formula that leaves more than this part of the difference between the sides explains nothing.
_SHARE = 0.1
_MOST_FITS = 3


@dataclass(frozen=True)
class Formula:
    """A formula on one side's recorded numbers.

    Attributes:
        topic: what it is a formula of, for example "LayerNorm".
        traits: what tells it from its neighbours: {"epsilon": 1e-05, "variance": "biased"}.
        compute: gives the array; None where the formula does not apply.
        slack: a relative error of the formula itself (a float32 sum in another order).
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
            # The arrays are a stranger's: numpy says so where their shapes do not fit.
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
        after: of the reference and its formula on the other side's inputs; None untried.
    """

    formulas: tuple[Formula, Formula]
    traits: tuple[str, ...]
    before: float
    after: float | None


def difference_in(topic: str, trait: str, values: Sequence[Any], before: float, after: float | None) -> Difference:
    """Return a difference in one trait, whose values on both sides were read from the numbers."""
    reference, other = (Formula(topic, {trait: value}, lambda: None) for value in values)
    return Difference((reference, other), (trait,), before, after)


def noise_of(*arrays: Array) -> float:
    """The relative difference that rounding leaves in recomputed arrays, the coarsest deciding."""
    largest = float(np.finfo(np.float64).eps)
    for array in arrays:
        if array.dtype.kind == "f":
            largest = max(largest, float(np.finfo(array.dtype).eps))
    return _ULPS * largest


def distance(first: Array, second: Array | None) -> float:
    """max|a - b| over the larger of max|a| and max|b|, laid out alike; else infinite."""
    if second is not None:
        moved = aligned(np.asarray(first), np.asarray(second))
        if moved is not None:
            return relative_difference(np.asarray(first), moved)
    return float("inf")


def aligned(first: Array, second: Array) -> Array | None:
    """Return `second` in the nearest layout of `first`: reshaped, or with its axes permuted.

    None where no change of layout does it. One that keeps the order of elements is a reshape.
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
    """Yield an array in the frameworks' layouts: channels last or first, heads moved."""
    if array.shape == shape:
        yield array
    # axes of length 1 stand anywhere, so the others alone are permuted
    squeezed = array.squeeze()
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
    """Return the factors of columns whose sum is nearest to a target, and the rank."""
    # LAPACK writes a line to the terminal for each number that is not finite, before it fails
    if not np.isfinite(matrix).all() or not np.isfinite(target).all():
        return None
    try:
        factors, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    except np.linalg.LinAlgError:  # the singular values do not converge
        return None
    return factors, int(rank)


def fitted_factor(array: Array, target: Array) -> float:
    """The number, by least squares, that times an array gives a target; 0 for an array of zeros."""
    power = float((array * array).sum())
    if power == 0:
        return 0.0
    return float((array * target).sum()) / power


def explain(
    first: Iterable[Formula],
    second: Sequence[Formula],
    targets: Targets,
    before: float | None = None,
    *,
    proven: bool = True,
) -> Difference | None:
    """Find the two nearest formulas of which each gives one side's numbers.

    None where a side obeys no formula, or one gives both sides' numbers: then these formulas do not
    matter. They come in order of plausibility: the first that fits the reference is held to be its own,
    and the nearest to it that fits the other side the other's. With `proven=False` also where the other
    side lacks an array that the reference's formula needs, so that it cannot be tried there.
    """
    if before is None:
        before = distance(*targets)
    if before == 0:
        return None
    size = min(before, 1.0)  # it is infinite where the shapes differ
    for reference in itertools.islice(_fitting(first, targets[0], size), _MOST_FITS):
        twins = [formula for formula in second if formula.key == reference.key]
        if next(_fitting(twins, targets[1], size), None) is not None:
            return None
        after = min((distance(targets[0], twin.value()) for twin in twins), default=float("inf"))
        could_be_tried = np.isfinite(after)
        if after > _SHARE * size and (could_be_tried or proven):
            continue
        neighbours = [formula for formula in second if formula.topic == reference.topic]
        neighbours.sort(key=lambda formula: len(differing(reference, formula)))
        other = next(_fitting(neighbours, targets[1], size), None)
        if other is not None:
            traits = differing(reference, other)
            return Difference((reference, other), traits, before, after if could_be_tried else None)
    return None


def _fitting(formulas: Iterable[Formula], target: Array, size: float) -> Iterator[Formula]:
    """Those that give recorded numbers, one by one: each is computed only when asked for."""
    for formula in formulas:
        if _fits(formula, target, size):
            yield formula


def _fits(formula: Formula, target: Array, size: float) -> bool:
    """Whether a formula gives numbers to rounding, and much nearer than the other side's are."""
    value = formula.value()
    if value is None or value.size != target.size:
        return False
    difference = relative_difference(np.asarray(target), np.asarray(value).reshape(target.shape))
    return difference <= min(max(noise_of(target), formula.slack), _SHARE * size)


def differing(reference: Formula, other: Formula) -> tuple[str, ...]:
    """The names of the traits in which two formulas differ."""
    names = dict.fromkeys([*reference.traits, *other.traits])
    return tuple(name for name in names if reference.traits.get(name) != other.traits.get(name))
