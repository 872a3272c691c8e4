"""The arrays of two traces side by side, in the reference's layouts and in the order in which it made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.matching import Matching
from multibackend.parity.locate.fits import GOOD, Fit, find_fit
from multibackend.parity.locate.layers import LayerPair
from multibackend.protocol.tracing import LayerCall, Trace

__all__ = ["ARRIVES", "ENTERS", "LEAVES", "Seen", "Sight", "hints_of", "roundings", "side_by_side"]

ARRIVES, ENTERS, LEAVES = "arrives", "enters", "leaves"  # at a layer, at a container, either

Sight = tuple[int, str, int]  # index of the reference's call, what happens, which of its arrays
Fits = dict[Sight, Fit]

_MOST_HINTS = 8


@dataclass(frozen=True)
class Seen:
    """One array on both sides.

    Attributes:
        sight: the reference's call, ARRIVES, ENTERS or LEAVES, and which of the inputs or outputs.
        pair: the calls.
        fit: the layout; its `difference` is that of the arrays.
        expected, found: the reference's array, and the other's in the same layout.
    """

    sight: Sight
    pair: LayerPair
    fit: Fit
    expected: np.ndarray
    found: np.ndarray

    @property
    def difference(self) -> float:
        """Relative."""
        return self.fit.difference


def side_by_side(
    reference: Trace, other: Trace, pairs: Iterable[LayerPair], hints: Sequence[tuple[int, ...]], fits: Fits
) -> list[Seen]:
    """What arrives at and leaves the paired layers; `fits` are tried first, and then hold the layouts that were found.

    An array whose size has no twin on the other side is left out.
    """
    arrays = list(_paired_arrays(reference, other, {pair.reference: pair for pair in pairs}))
    for sight, _, expected, found in arrays:
        _keep(fits, sight, find_fit(expected, found, hints, (fits.get(sight),)))
    votes = _votes(fits.values())
    seen = []
    for sight, pair, expected, found in arrays:
        fit = fits.get(sight)
        if fit is not None and fit.difference > GOOD:  # a mistake hides the layout: take that of other arrays
            usual = [*_axes(fits.get((sight[0], ARRIVES, 0))), *votes]
            _keep(fits, sight, find_fit(expected, found, hints, usual=usual))
            fit = fits[sight]
        if fit is not None:
            seen.append(Seen(sight, pair, fit, *_in_one_shape(fit, expected, found)))
    return seen


def _paired_arrays(
    reference: Trace, other: Trace, pairs: Mapping[int, LayerPair]
) -> Iterator[tuple[Sight, LayerPair, np.ndarray, np.ndarray]]:
    """What may be the same array: of each pair of calls, in the order of the reference."""
    for index, happens in _order(reference.layers):
        pair = pairs.get(index)
        if pair is None or (happens == ARRIVES and not pair.leaf) or (happens == ENTERS and pair.leaf):
            continue
        here, there = reference.layers[pair.reference], other.layers[pair.other]
        arrays = (here.outputs, there.outputs) if happens == LEAVES else (here.inputs, there.inputs)
        for place, (expected, found) in enumerate(zip(*arrays, strict=False)):
            if place and happens != ARRIVES:  # several outputs come in any order: weights of attention, caches
                break
            if _alike(expected, found):
                yield (index, happens, place), pair, expected, found


def _keep(fits: Fits, sight: Sight, fit: Fit | None) -> None:
    if fit is not None:
        fits[sight] = fit


def _votes(fits: Iterable[Fit]) -> list[tuple[int, ...]]:
    """The permutations of axes of what fits well, the most frequent first."""
    counts = Counter(axes for fit in fits if fit.difference <= GOOD for axes in _axes(fit))
    return [axes for axes, _ in counts.most_common()]


def _axes(fit: Fit | None) -> list[tuple[int, ...]]:
    good = fit is not None and fit.rearrangement is not None and fit.difference <= GOOD
    return [fit.rearrangement.axes] if good and fit is not None and fit.rearrangement is not None else []


def roundings(reference: Trace, perturbed: Trace) -> Callable[[Sight], float]:
    """How far a trace of the reference that began a rounding error away lies from it, for each of its arrays."""
    same = [call.name for call in reference.layers] == [call.name for call in perturbed.layers]
    sizes: dict[Sight, float] = {}
    for index, (call, twin) in enumerate(zip(reference.layers, perturbed.layers, strict=same)):
        for happens, arrays in ((ARRIVES, (call.inputs, twin.inputs)), (LEAVES, (call.outputs, twin.outputs))):
            for place, (first, second) in enumerate(zip(*arrays, strict=False)):
                if first.shape == second.shape and same:
                    sizes[index, happens, place] = relative_difference(first, second)
    return lambda sight: sizes.get((sight[0], ARRIVES if sight[1] == ENTERS else sight[1], sight[2]), 0.0)


def hints_of(trace: Trace, matching: Matching) -> list[tuple[int, ...]]:
    """Axes that may hide in one axis: of images that are flattened somewhere, of fused or split projections."""
    found: dict[tuple[int, ...], None] = {}
    for link in matching.links:
        merged = tuple(link.rearrangement.merged)
        if len(link.reference_shape) == 1 and len(merged) > 1:
            found[merged] = None
    for call in trace.layers:
        for array in call.outputs:
            if array.ndim in (3, 4):
                found[tuple(array.shape[1:])] = None
    return list(found)[:_MOST_HINTS]


def _order(layers: Sequence[LayerCall]) -> list[tuple[int, str]]:
    """What happens, in order: a call begins (ENTERS and ARRIVES), it returns (LEAVES)."""
    order: list[tuple[int, str]] = []
    began: list[int] = []
    for index, call in enumerate(layers):
        while began and layers[began[-1]].depth >= call.depth:
            order.append((began.pop(), LEAVES))
        began.append(index)
        order += [(index, ENTERS), (index, ARRIVES)]
    return order + [(index, LEAVES) for index in reversed(began)]


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays hold the same kind of thing: numbers, or indices and masks."""
    return (first.dtype.kind == "f") == (second.dtype.kind == "f") and first.size > 0


def _in_one_shape(fit: Fit, expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if fit.rearrangement is not None:
        return expected, fit.to_reference(found)
    shape = np.broadcast_shapes(expected.shape, found.shape)
    return np.broadcast_to(expected, shape), np.broadcast_to(found, shape)
