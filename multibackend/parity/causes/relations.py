"""How one side's array follows from the other's alone: fewer bits, dropout, a factor, a shift."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.chains import scales
from multibackend.parity.causes.formats import narrowest, unit_of
from multibackend.parity.causes.formulas import Difference, aligned, difference_in, distance, fitted_factor, noise_of

__all__ = ["dropped", "fewer_bits", "relation"]


def fewer_bits(targets: tuple[Array, Array], undone: Array | None = None) -> Difference | None:
    """One side's numbers fit in a smaller format, and differ by no more than it rounds.

    Args:
        targets: the outputs of a layer that got equal inputs.
        undone: the layer recomputed in float64, if known, to be held against the other side.
    """
    formats = [narrowest(target) for target in targets]
    if formats[0] == formats[1] or targets[0].size != targets[1].size:
        return None
    before = distance(*targets)
    for index in (0, 1):
        small = formats[index]
        wide = formats[1 - index]
        if small is None or (wide is not None and unit_of(wide) >= unit_of(small)):
            continue
        # errors of a sum grow with the root of its length, of which the last axis is an estimate
        *_, length = (1, *targets[index].shape)
        if before > 64 * max(1.0, np.sqrt(length)) * unit_of(small):
            continue
        after = None if undone is None else distance(targets[1 - index], undone)
        names = (formats[0] or "float64", formats[1] or "float64")
        return difference_in("number format", "format", names, before, after)
    return None


def dropped(values: tuple[Array, Array]) -> Difference | None:
    """One side's array is the other's with some elements 0 and the rest divided by 1 - rate."""
    moved = aligned(*values)
    if moved is None:
        return None
    first = np.asarray(values[0], np.float64)
    second = np.asarray(moved, np.float64)
    for thin, full in ((first, second), (second, first)):
        lost = (thin == 0) & (full != 0)
        survivors = (thin != 0) & (full != 0)
        # four elements tell a common factor from chance
        if not lost.any() or survivors.sum() < 4 or ((full == 0) & (thin != 0)).any():
            continue
        ratio = thin[survivors] / full[survivors]
        factor = float(np.median(ratio))
        if np.abs(ratio - factor).max() > 1e-6 * abs(factor) or factor <= 1.0:
            continue
        rates = [float(f"{1 - 1 / factor:.6g}"), 0.0]
        if thin is second:
            rates.reverse()
        after = distance(np.where(lost, 0, full), np.where(lost, 0, thin / factor))
        return difference_in("dropout", "rate", rates, distance(values[0], moved), after)
    return None


def relation(targets: tuple[Array, Array]) -> Difference | None:
    """The second array is the first times a number, shifted by a position, or transposed."""
    first, second = (np.asarray(target, np.float64) for target in targets)
    before = distance(first, second)
    moved = aligned(first, second)
    if moved is None or before == 0:
        return None
    steps = np.unique(moved - first)
    if steps.size == 1 and targets[0].dtype.kind in "iu":
        after = distance(first, moved - steps[0])
        return difference_in("relation", "position", ("0", f"{int(steps[0]):+d}"), before, after)
    factor = fitted_factor(moved, first)
    if factor and distance(first, factor * moved) <= noise_of(*targets):
        for name, value in scales(*first.shape[1:]).items():
            if abs(factor * value - 1) < 1e-9:
                after = distance(first, moved / value)
                return difference_in("relation", "factor", ("1", name), before, after)
    return _shift(first, moved, before) or _exchanged(first, moved, before)


def _shift(first: Array, second: Array, before: float) -> Difference | None:
    """The second array is the first, some positions later or earlier along the second axis."""
    if first.ndim < 2 or first.shape[1] < 3:
        return None
    ways = (("+", first, second), ("-", second, first))
    for by, (sign, earlier, later) in itertools.product((1, 2), ways):
        after = distance(earlier[:, :-by], later[:, by:])
        if after <= noise_of(first):
            return difference_in("relation", "position", ("0", f"{sign}{by}"), before, after)
    return None


def _exchanged(first: Array, second: Array, before: float) -> Difference | None:
    """The second array is the first with its axes in another order."""
    # an array of five axes has 120 orders: too many to try for a guess
    if first.ndim > 4:
        return None
    # the first permutation leaves all axes as they are
    for axes in list(itertools.permutations(range(first.ndim)))[1:]:
        moved = second.transpose(axes)
        if moved.shape != first.shape:
            continue
        after = distance(first, moved)
        if after <= noise_of(first):
            orders = ("as it is", str(axes))
            return difference_in("relation", "order of axes", orders, before, after)
    return None
