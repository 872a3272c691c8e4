"""The arrays of two traces side by side, in the reference's layouts and order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.matching import Matching
from multibackend.parity.locate.fits import GOOD, Fit, Shape, find_fit
from multibackend.parity.locate.layers import LayerPair, begin_and_return
from multibackend.protocol.tracing import Trace

__all__ = ["CONTAINER_INPUT", "INPUT", "OUTPUT", "ArrayKey", "Fits", "Observation", "hints_of", "observe", "roundings"]

INPUT = "input"  # of a layer
CONTAINER_INPUT = "container input"
OUTPUT = "output"  # of a layer or of a container

_MOST_HINTS = 8  # find_fit tries every one of them for every array


class ArrayKey(NamedTuple):
    """Which array of a trace: the index of its call, its role, its position in that role."""

    call: int
    role: str
    position: int


Fits = dict[ArrayKey, Fit]


@dataclass(frozen=True)
class Observation:
    """One array on both sides.

    Attributes:
        key: which array of the reference.
        pair: the calls.
        fit: the layout; its `difference` is that of the arrays.
        expected, actual: the reference's array, and the other's in the same layout.
    """

    key: ArrayKey
    pair: LayerPair
    fit: Fit
    expected: np.ndarray
    actual: np.ndarray

    @property
    def difference(self) -> float:
        """The relative difference of the two arrays."""
        return self.fit.difference


def observe(
    reference: Trace, other: Trace, pairs: Iterable[LayerPair], hints: Sequence[Shape], fits: Fits
) -> list[Observation]:
    """Pair the arrays that go into and come out of the paired layers.

    `fits` are tried first, and then hold the layouts that were found. An array whose size has no
    twin on the other side is left out.
    """
    arrays = list(_paired_arrays(reference, other, pairs))
    for key, _, expected, actual in arrays:
        _remember(fits, key, find_fit(expected, actual, hints, known=(fits.get(key),)))
    votes = _votes(fits.values())
    observations = []
    for key, pair, expected, actual in arrays:
        # Arrays that differ agree in no layout, so a mistake hides theirs: take that of the
        # layer's input, which may still be right, else the one that most other arrays of the
        # two models have.
        if key in fits and fits[key].difference > GOOD:
            usual = [*_good_axes(fits.get(ArrayKey(key.call, INPUT, 0))), *votes]
            _remember(fits, key, find_fit(expected, actual, hints, usual=usual))
        if key in fits:
            shaped = _in_one_shape(fits[key], expected, actual)
            observations.append(Observation(key, pair, fits[key], *shaped))
    return observations


def roundings(reference: Trace, perturbed: Trace) -> Callable[[ArrayKey], float]:
    """Measure how far each array of the reference lies from that of the perturbed reference."""
    sizes: dict[ArrayKey, float] = {}
    # A model whose control flow depends on its values may call other layers: then nothing
    # is measured.
    if [call.name for call in reference.layers] == [call.name for call in perturbed.layers]:
        for index, (call, nearby) in enumerate(zip(reference.layers, perturbed.layers, strict=True)):
            for role, arrays, twins in ((INPUT, call.inputs, nearby.inputs), (OUTPUT, call.outputs, nearby.outputs)):
                for position, (first, second) in enumerate(zip(arrays, twins, strict=False)):
                    if first.shape == second.shape:
                        sizes[ArrayKey(index, role, position)] = relative_difference(first, second)

    def rounding(key: ArrayKey) -> float:
        role = INPUT if key.role == CONTAINER_INPUT else key.role
        return sizes.get(key._replace(role=role), 0.0)

    return rounding


def hints_of(trace: Trace, matching: Matching) -> list[Shape]:
    """Axes that may hide in one axis: of flattened images, of fused or split projections."""
    hints: dict[Shape, None] = {}  # a set that keeps its order
    for link in matching.links:
        merged = tuple(link.rearrangement.merged)
        if len(link.reference_shape) == 1 and len(merged) > 1:
            hints[merged] = None
    for call in trace.layers:
        for array in call.outputs:
            if array.ndim in (3, 4):
                hints[tuple(array.shape[1:])] = None
    return list(hints)[:_MOST_HINTS]


def _paired_arrays(
    reference: Trace, other: Trace, pairs: Iterable[LayerPair]
) -> Iterator[tuple[ArrayKey, LayerPair, np.ndarray, np.ndarray]]:
    """Yield what may be the same array on both sides, in the order of the reference."""
    by_reference = {pair.reference: pair for pair in pairs}
    for index, returned in begin_and_return(reference.layers):
        pair = by_reference.get(index)
        if pair is None:
            continue
        call = reference.layers[index]
        partner = other.layers[pair.other]
        if returned:
            role = OUTPUT
            arrays = zip(call.outputs, partner.outputs, strict=False)
        else:
            role = INPUT if pair.leaf else CONTAINER_INPUT
            arrays = zip(call.inputs, partner.inputs, strict=False)
        for position, (expected, actual) in enumerate(arrays):
            # several outputs come in any order: weights of attention, caches
            if position and role != INPUT:
                break
            if _same_kind(expected, actual):
                yield ArrayKey(index, role, position), pair, expected, actual


def _same_kind(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays hold the same kind of thing: numbers, or indices and masks."""
    return (first.dtype.kind == "f") == (second.dtype.kind == "f") and first.size > 0


def _remember(fits: Fits, key: ArrayKey, fit: Fit | None) -> None:
    if fit is not None:
        fits[key] = fit


def _votes(fits: Iterable[Fit]) -> list[Shape]:
    """Return the permutations of axes of what fits well, the most frequent first."""
    counts: Counter[Shape] = Counter()
    for fit in fits:
        counts.update(_good_axes(fit))
    return [axes for axes, _ in counts.most_common()]


def _good_axes(fit: Fit | None) -> list[Shape]:
    """Return the permutation of axes, alone in a list, where the fit leaves no doubt of it."""
    if fit is None or fit.rearrangement is None or fit.difference > GOOD:
        return []
    return [fit.rearrangement.axes]


def _in_one_shape(fit: Fit, expected: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if fit.rearrangement is not None:
        return expected, fit.to_reference(actual)
    shape = np.broadcast_shapes(expected.shape, actual.shape)
    return np.broadcast_to(expected, shape), np.broadcast_to(actual, shape)
