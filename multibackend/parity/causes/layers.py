"""Why a layer returns, or is given, other numbers than its partner."""

from __future__ import annotations

from dataclasses import replace

from multibackend.core.arrays import Array
from multibackend.parity.causes.convolutions import convolution_formulas
from multibackend.parity.causes.formulas import Difference, Formula, Targets, distance, explain
from multibackend.parity.causes.linear import embedding_formulas, linear_formulas
from multibackend.parity.causes.norms import fast_variance, norm_formulas, settings_epsilons
from multibackend.parity.causes.recorded_layers import RecordedLayer, Sides
from multibackend.parity.causes.relations import dropped, fewer_bits, relation
from multibackend.parity.causes.wiring import arrival_difference

__all__ = ["arrival_causes", "layer_difference"]

_EXAMPLES = 2


def layer_difference(sides: Sides) -> Difference | None:
    """Why two layers that were given equal inputs return other outputs; None if no formula tells."""
    sides = (_trimmed(sides[0], sides), _trimmed(sides[1], sides))
    reference = sides[0].output
    other = sides[1].output
    if reference is None or other is None:
        return None
    targets = (reference, other)
    before = distance(reference, other)
    recomputed = None
    for first, second in _formulas(sides):
        difference = explain(first, second, targets, before)
        if difference is not None:
            return difference
        if recomputed is None:
            recomputed = _recomputed(first, second, reference, before)
    # a smaller format is the last thing to believe in: it also fits where a formula fits better
    difference = fewer_bits(targets, recomputed)
    return difference or fast_variance(sides, before) or arrival_causes(sides, targets)


def _formulas(sides: Sides) -> list[tuple[list[Formula], list[Formula]]]:
    """Both sides' formulas for each kind of layer that they may be, by their shapes."""
    first, second = sides
    # an epsilon that one side names is tried on both
    epsilons = [*settings_epsilons(first), *settings_epsilons(second)]
    pairs = [
        (norm_formulas(first, epsilons), norm_formulas(second, epsilons)),
        (convolution_formulas(first, second), convolution_formulas(second, first)),
        (linear_formulas(first), linear_formulas(second)),
        (embedding_formulas(first), embedding_formulas(second)),
    ]
    return [pair for pair in pairs if pair[0] and pair[1]]


def arrival_causes(sides: Sides, targets: Targets, *, thorough: bool = True) -> Difference | None:
    """Why two arrays that should be equal are not, from what was there before them."""
    # indices have no activations or sums, only positions and orders
    if targets[0].dtype.kind != "f" or targets[1].dtype.kind != "f":
        return relation(targets)
    # how both were made tells more than how one follows from the other
    return (
        arrival_difference(sides, targets, thorough=thorough)
        or dropped(targets)
        or fewer_bits(targets)
        or relation(targets)
    )


def _trimmed(side: RecordedLayer, sides: Sides) -> RecordedLayer:
    """The first examples only, of layers that treat examples alike."""
    first, second = (other.call for other in sides)
    if "batch" in first.kind.lower() or "batch" in second.kind.lower():
        return side
    arrays = (*first.inputs, *first.outputs, *second.inputs, *second.outputs)
    # an array with another first axis, or with one axis alone, does not count examples
    counts = {array.shape[0] for array in arrays if array.ndim > 1}
    if len(counts) != 1 or max(counts) <= _EXAMPLES or any(array.ndim < 2 for array in arrays):
        return side
    inputs = tuple(array[:_EXAMPLES] for array in side.call.inputs)
    outputs = tuple(array[:_EXAMPLES] for array in side.call.outputs)
    return replace(side, call=replace(side.call, inputs=inputs, outputs=outputs))


def _recomputed(first: list[Formula], second: list[Formula], target: Array, before: float) -> Array | None:
    """The other side by the reference's formula, which fits the reference but for its digits."""
    for formula, partner in zip(first, second, strict=False):
        if formula.traits != partner.traits:
            continue
        value = formula.value()
        if value is not None and distance(target, value) <= 0.1 * before:
            return partner.value()
    return None
