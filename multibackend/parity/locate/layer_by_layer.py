"""Every layer by itself: each is fed what the reference's got, and hands on what that made.

So a mistake does not spread, and every place that is wrong shows: see `wrong_places`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from multibackend.parity.locate.activations import INPUT, OUTPUT, ArrayKey, Fits, Observation, observe
from multibackend.parity.locate.fits import Shape
from multibackend.parity.locate.layers import LayerPair
from multibackend.protocol.tracing import Forced, Trace

__all__ = ["ForcedLayers", "run_layer_by_layer"]

ForcedLayers = Mapping[tuple[str, int], Forced]

_MOST_PASSES = 3  # each uncovers the layouts behind one more mistake that hid another


def run_layer_by_layer(
    reference: Trace,
    other: Trace,
    pairs: Sequence[LayerPair],
    hints: Sequence[Shape],
    fits: Fits,
    trace_other: Callable[[ForcedLayers], Trace],
) -> tuple[Trace, list[Observation]]:
    """Run the second model with every paired layer fed and followed by the reference's arrays.

    Layouts that a mistake upstream had hidden become visible in it, so it is repeated
    while they change.
    """
    forced_trace = other
    observations: list[Observation] = []
    for _ in range(_MOST_PASSES):
        before = _layouts(fits)
        forced_trace = trace_other(_forced_layers(reference, other, pairs, fits))
        observations = observe(reference, forced_trace, pairs, hints, fits)
        if _layouts(fits) == before:
            break
    return forced_trace, observations


def _layouts(fits: Fits) -> dict:
    return {key: fit.rearrangement for key, fit in fits.items()}


def _forced_layers(reference: Trace, other: Trace, pairs: Sequence[LayerPair], fits: Fits) -> ForcedLayers:
    """Lay the reference's inputs of layers and outputs of all calls out as the other does."""
    result: dict[tuple[str, int], Forced] = {}
    for pair in pairs:
        call = reference.layers[pair.reference]
        partner = other.layers[pair.other]
        inputs = None
        # What goes into a container stays: its first layers are fed, what is before them is tested.
        if pair.leaf:
            inputs = _in_other_layout(fits, (pair.reference, INPUT), call.inputs[: len(partner.inputs)])
        outputs = _in_other_layout(fits, (pair.reference, OUTPUT), call.outputs[: len(partner.outputs)])
        if inputs is not None or outputs is not None:
            result[partner.name, partner.call] = Forced(inputs, outputs)
    return result


def _in_other_layout(
    fits: Fits, place: tuple[int, str], arrays: Sequence[np.ndarray]
) -> tuple[np.ndarray | None, ...] | None:
    """Return arrays in the other's layouts, None for one of unknown layout or for all."""
    result: list[np.ndarray | None] = [None] * len(arrays)
    for position, array in enumerate(arrays):
        fit = fits.get(ArrayKey(*place, position))
        if fit is not None:
            result[position] = fit.to_other(array)
    if all(array is None for array in result):
        return None
    return tuple(result)
