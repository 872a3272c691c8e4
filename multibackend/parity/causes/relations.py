"""How one side's array follows from the other's alone: fewer bits, dropout, a factor, a shift, another order."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.chains import scales
from multibackend.parity.causes.formats import narrowest, unit_of
from multibackend.parity.causes.laws import Difference, Law, aligned, distance, noise_of

__all__ = ["dropped", "fewer_bits", "relation"]


def fewer_bits(targets: tuple[Array, Array], undone: Array | None = None) -> Difference | None:
    """One side's numbers all fit in a smaller format than the other's, and differ by no more than it rounds.

    Args:
        targets: the outputs of a layer that got equal inputs.
        undone: the layer recomputed in float64 where that is known, which is then held against the other side.
    """
    formats = [narrowest(target) for target in targets]
    if formats[0] == formats[1] or targets[0].size != targets[1].size:
        return None
    before = distance(*targets)
    for index in (0, 1):
        small, wide = formats[index], formats[1 - index]
        if small is None or (wide is not None and unit_of(wide) >= unit_of(small)):
            continue
        size = max(1.0, np.sqrt(targets[index].shape[-1] if targets[index].ndim else 1))
        if before > 64 * size * unit_of(small):
            continue
        exact = targets[1 - index]
        after = None if undone is None else distance(exact, undone)
        laws = [Law("number format", {"format": name or "float64"}, lambda: None) for name in formats]
        return Difference((laws[0], laws[1]), ("format",), before, after)
    return None


def dropped(values: tuple[Array, Array]) -> Difference | None:
    """One side's array is the other's with some elements 0 and the rest divided by 1 - rate."""
    if values[0].size != values[1].size:
        return None
    second = aligned(*values)
    if second is None:
        return None
    before = distance(values[0], second)
    pair = (np.asarray(values[0], np.float64), np.asarray(second, np.float64))
    for index in (0, 1):
        thin, full = pair[index], pair[1 - index]
        lost = (thin == 0) & (full != 0)
        kept = (thin != 0) & (full != 0)
        if not lost.any() or kept.sum() < 4 or ((full == 0) & (thin != 0)).any():
            continue
        ratio = thin[kept] / full[kept]
        factor = float(np.median(ratio))
        if np.abs(ratio - factor).max() > 1e-6 * abs(factor) or factor <= 1.0:
            continue
        rate = 1 - 1 / factor
        rates = [0.0, float(f"{rate:.6g}")]
        laws = [Law("dropout", {"rate": r}, lambda: None) for r in (rates if index == 1 else rates[::-1])]
        after = distance(np.where(lost, 0, full), np.where(lost, 0, thin / factor))
        return Difference((laws[0], laws[1]), ("rate",), before, after)
    return None


def relation(targets: tuple[Array, Array]) -> Difference | None:
    """The second array is the first times a usual number, shifted by a position, or with two axes exchanged."""
    first, second = (np.asarray(target, np.float64) for target in targets)
    before = distance(first, second)
    moved = aligned(first, second)
    if moved is None or before == 0:
        return None
    steps = np.unique(moved - first)
    if steps.size == 1 and targets[0].dtype.kind in "iu":
        return _found("position", ("0", f"{int(steps[0]):+d}"), before, distance(first, moved - steps[0]))
    power = float((first * moved).sum())
    factor = float((moved * moved).sum()) and power / float((moved * moved).sum())
    if factor and distance(first, factor * moved) <= noise_of(*targets):
        for name, value in scales(*first.shape[1:]).items():
            if abs(factor * value - 1) < 1e-9:
                return _found("factor", ("1", name), before, distance(first, moved / value))
    return _shift(first, moved, before) or _exchanged(first, moved, before)


def _shift(first: Array, second: Array, before: float) -> Difference | None:
    if first.ndim < 2 or first.shape[1] < 3:
        return None
    for by in (1, -1, 2, -2):
        here = first[:, :-by] if by > 0 else first[:, -by:]
        there = second[:, by:] if by > 0 else second[:, :by]
        after = distance(here, there)
        if after <= noise_of(first):
            return _found("position", ("0", f"{by:+d}"), before, after)
    return None


def _exchanged(first: Array, second: Array, before: float) -> Difference | None:
    for axes in itertools.permutations(range(first.ndim)) if first.ndim <= 4 else ():
        moved = second.transpose(axes)
        if (
            axes != tuple(range(first.ndim))
            and moved.shape == first.shape
            and distance(first, moved) <= noise_of(first)
        ):
            return _found("order of axes", ("as it is", str(axes)), before, distance(first, moved))
    return None


def _found(trait: str, values: tuple[str, str], before: float, after: float) -> Difference:
    laws = [Law("relation", {trait: value}, lambda: None) for value in values]
    return Difference((laws[0], laws[1]), (trait,), before, after)
