"""Why a layer returns, or is given, other numbers than its partner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from multibackend.core.arrays import Array
from multibackend.parity.causes.convolutions import convolution_laws
from multibackend.parity.causes.laws import Difference, Law, distance, explain
from multibackend.parity.causes.linear import embedding_laws, linear_laws
from multibackend.parity.causes.norms import fast_variance, norm_laws, told_epsilons
from multibackend.parity.causes.relations import dropped, fewer_bits, relation
from multibackend.parity.causes.sides import Side
from multibackend.parity.causes.wiring import arrival_difference

__all__ = ["arrival_causes", "layer_difference"]

Sides = tuple[Side, Side]

_EXAMPLES = 2


def layer_difference(sides: Sides) -> Difference | None:
    """Why two layers that were given equal inputs return other outputs; None where no law explains it."""
    sides = _cut(sides)
    outputs = sides[0].output, sides[1].output
    if outputs[0] is None or outputs[1] is None:
        return None
    targets = (outputs[0], outputs[1])
    before = distance(*targets)
    undone = None
    for make in (_norms, convolution_laws, _linears, _embeddings):
        laws = [make(*pair) for pair in (sides, sides[::-1])]
        if not laws[0] or not laws[1]:
            continue
        found = explain(laws[0], laws[1], targets, before)
        if found is not None:
            return found
        undone = _same_law(laws[0], laws[1], targets[0], before) if undone is None else undone
    found = fewer_bits(targets, undone)
    if found is None and undone is not None:
        found = fast_variance(sides, before)
    return found or fast_variance(sides, before) or arrival_causes(sides, targets)


def arrival_causes(sides: Sides, targets: tuple[Array, Array], *, thorough: bool = True) -> Difference | None:
    """Why two arrays that should be equal are not, from what was there before them."""
    if targets[0].dtype.kind not in "f" or targets[1].dtype.kind not in "f":
        return relation(targets)
    attempts: tuple[Callable[[], Difference | None], ...] = (
        lambda: arrival_difference(sides, targets, thorough=thorough),
        lambda: dropped(targets),
        lambda: fewer_bits(targets),
        lambda: relation(targets),
    )
    return next((found for found in _each(attempts) if found is not None), None)


def _cut(sides: Sides) -> Sides:
    """The first examples only, of layers that treat examples alike."""
    if any("batch" in side.call.kind.lower() for side in sides):
        return sides
    arrays = [array for side in sides for array in (*side.call.inputs, *side.call.outputs)]
    counts = {len(array) if array.ndim > 1 else 0 for array in arrays}
    if len(counts) > 1 or max(counts, default=0) <= _EXAMPLES:
        return sides
    first, second = (
        replace(
            side,
            call=replace(
                side.call,
                inputs=tuple(array[:_EXAMPLES] for array in side.call.inputs),
                outputs=tuple(array[:_EXAMPLES] for array in side.call.outputs),
            ),
        )
        for side in sides
    )
    return first, second


def _norms(side: Side, partner: Side) -> list[Law]:
    return norm_laws(side, told_epsilons(partner))


def _linears(side: Side, partner: Side) -> list[Law]:
    del partner
    return linear_laws(side)


def _embeddings(side: Side, partner: Side) -> list[Law]:
    del partner
    return embedding_laws(side)


def _each(attempts: tuple[Callable[[], Difference | None], ...]) -> Iterator[Difference | None]:
    for attempt in attempts:
        yield attempt()


def _same_law(first: list[Law], second: list[Law], target: Array, before: float) -> Array | None:
    """The other side recomputed by the reference's law, where the reference follows one."""
    for law, partner in zip(first, second, strict=False):
        if law.traits == partner.traits:
            value = law.compute()
            if value is not None and distance(target, value) <= 0.1 * before:
                return partner.compute()
    return None
