"""What arrives at a layer, made of what was there before: which arrays, through what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.attention import attend, attention_traits
from multibackend.parity.causes.chains import Move, activated, moves, scales
from multibackend.parity.causes.formulas import Difference, Formula, Targets, aligned, distance, explain
from multibackend.parity.causes.functions import ACTIVATIONS, SLOPES
from multibackend.parity.causes.recorded_layers import Sides, Source
from multibackend.parity.causes.sums import Terms, columns, summed, sums, unified

__all__ = ["arrival_difference"]

Shape = tuple[int, ...]

_MOST_SOURCES = 12
_FEW = 6
_PLAIN = 2  # traits of a formula without pooling or change of axes
_EXAMPLES = 2
_LARGE = 50_000  # elements of an example, of which one then must do
_MOST_WORK = 400_000_000  # elements that are computed at most for a topic, however large arrays are
_FEWEST_FORMULAS = 200
_USUAL = ("none", "relu", "gelu (erf)", "gelu (tanh)", "silu", "tanh")
_BEFORE_MOVES = (*_USUAL, *(f"leaky relu {slope}" for slope in SLOPES[:4]))


class _Arrival(NamedTuple):
    """What arrived on one side, and what was there before it."""

    sources: list[Source]
    target: Array


_Arrivals = tuple[_Arrival, _Arrival]


def arrival_difference(sides: Sides, targets: Targets, *, thorough: bool = True) -> Difference | None:
    """How two arrays that should be equal were made, where the ways differ.

    Tried, in this order: sums; single arrays and sums of two through an activation, pooling or a change
    of axes; a factor; a product with a parameter; gates; attention. First of the arrays that both sides
    have, because only of them the reference's formula can be tried on the other side, and only on the
    first two examples.

    Args:
        sides: with `RecordedLayer.sources`, the latest first.
        targets: what arrived, both in the reference's layout.
        thorough: look for pooling and changes of axes, and for arrays that one side alone has.
    """
    before = distance(*targets)
    other = aligned(*targets)
    if other is None:
        other = targets[1]
    first = _trimmed(sides[0].sources, targets[0])
    second = _trimmed(sides[1].sources, other)
    # partners have one name from here on, so what is fitted to one side can be tried on the other
    second = _Arrival(unified(first.sources, second.sources), second.target)
    attempts = [(_common(first, second), _common(second, first))]
    if thorough:
        attempts.append((first, second))
    targets = (first.target, second.target)
    most = max(_FEWEST_FORMULAS, _MOST_WORK // max(first.target.size, 1))
    for arrivals in attempts:
        for formulas, other_formulas in _topics(arrivals, thorough=thorough):
            difference = explain(formulas[:most], other_formulas[:most], targets)
            if difference is not None:
                return replace(difference, before=before)
    # at last what one side's arrays alone explain, as plain sums only: more would fit by chance
    formulas, other_formulas = _sums_and_singles((first, second), thorough=True)
    difference = explain(_plain(formulas), _plain(other_formulas), targets, proven=False)
    return difference and replace(difference, before=before)


def _common(arrival: _Arrival, partner: _Arrival) -> _Arrival:
    """An arrival with those of its sources alone that its partner has too."""
    names = {source.name for source in partner.sources}
    return _Arrival([source for source in arrival.sources if source.name in names], arrival.target)


def _plain(formulas: Sequence[Formula]) -> list[Formula]:
    return [formula for formula in formulas if len(formula.traits) == _PLAIN]


def _trimmed(sources: Sequence[Source], target: Array) -> _Arrival:
    """The latest sources; of examples the first ones."""
    arrays = [source for source in sources if source.kind != "parameter"][:_MOST_SOURCES]
    parameters = [source for source in sources if source.kind == "parameter"]
    # an array of one axis has no examples
    count = len(target) if target.ndim > 1 else 0
    few = _EXAMPLES if target.size <= count * _LARGE else 1
    if count <= few:
        return _Arrival([*arrays, *parameters], target)
    for index, source in enumerate(arrays):
        if source.array.ndim and len(source.array) == count:
            arrays[index] = replace(source, array=source.array[:few])
    return _Arrival([*arrays, *parameters], target[:few])


def _topics(arrivals: _Arrivals, *, thorough: bool) -> Iterator[tuple[list[Formula], list[Formula]]]:
    """Both sides' formulas, each topic only when asked for: the first explains most arrivals."""
    yield _sums_and_singles(arrivals, thorough=thorough)
    for formulas_of in (_gates, _attentions):
        yield list(formulas_of(*arrivals[0])), list(formulas_of(*arrivals[1]))


def _sums_and_singles(arrivals: _Arrivals, *, thorough: bool) -> tuple[list[Formula], list[Formula]]:
    """Sums, then single arrays: those fitted to either side for both, to be tried there."""
    terms = [columns(sources, target.shape) for sources, target in arrivals]
    fitted = [*sums(terms[0], arrivals[0].target), *sums(terms[1], arrivals[1].target)]
    formulas: tuple[list[Formula], list[Formula]] = ([], [])
    for into, named, (sources, target) in zip(formulas, terms, arrivals, strict=True):
        for chosen, activation in dict.fromkeys(fitted):
            into.append(_sum(chosen, activation, named, target.shape))
        into += [*_singles(sources, target, thorough=thorough), *_products(sources, target)]
    return formulas


def _sum(terms: Terms, activation: str, arrays: Mapping[str, Array], shape: Shape) -> Formula:
    def compute() -> Array | None:
        total = summed(terms, arrays, shape)
        if total is None:
            return None
        return activated(total, activation)

    return Formula("arrival", {"terms": terms, "activation": activation}, compute)


def _floats(sources: Sequence[Source]) -> list[Source]:
    """What layers returned, neither indices nor parameters."""
    arrays = [source for source in sources if source.kind != "parameter" and source.array.size]
    return [source for source in arrays if source.array.dtype.kind == "f"]


def _singles(sources: Sequence[Source], target: Array, *, thorough: bool) -> Iterator[Formula]:
    """One array, or the sum of two, through an activation and a change of axes."""
    floats = [source for source in _floats(sources) if source.array.ndim]
    options = [(source, list(moves(source.array.shape, target.shape))) for source in floats]
    plain = [(source, possible[0]) for source, possible in options if possible]
    for activation, (source, move) in itertools.product(ACTIVATIONS, plain):
        yield _chain(source, activation, move)
    for source, move in plain:
        factors = scales(*source.array.shape[1:], *target.shape[1:])
        # the first factor is 1, which was tried above
        for factor in list(factors.items())[1:]:
            yield _chain(source, "none", move, factor)
    if not thorough:
        return
    # activations times moves times sources: only the latest arrays, and only the usual activations
    for source, possible in [*options[:_FEW], *_pairs(floats[:_FEW], target)]:
        for move, activation in itertools.product(possible, _BEFORE_MOVES):
            yield _chain(source, activation, move)
            # the maximum of a rising function is that of the maximum: only averages tell the order
            if activation != "none" and move[0].get("pooling") == "average":
                yield _chain(source, activation, move, late=True)


def _pairs(sources: Sequence[Source], target: Array) -> Iterator[tuple[Source, list[Move]]]:
    """Sums of two arrays as sources of their own."""
    for first, second in itertools.combinations(sources, 2):
        if first.array.shape == second.array.shape:
            names = " + ".join(sorted((first.name, second.name)))
            total = np.asarray(first.array, np.float64) + np.asarray(second.array, np.float64)
            possible = moves(total.shape, target.shape)
            yield Source(names, total), [move for move in possible if "window" not in move[0]]


def _chain(
    source: Source,
    activation: str,
    move: Move,
    factor: tuple[str, float] = ("1", 1.0),
    *,
    late: bool = False,
) -> Formula:
    """An array through an activation and a change of axes, reversed if `late`; times a factor."""
    changes, moved = move
    name, number = factor

    def compute() -> Array:
        x = np.asarray(source.array, np.float64)
        if late:
            return number * activated(moved(x), activation)
        return number * moved(activated(x, activation))

    terms = tuple((term, name) for term in source.name.split(" + "))
    traits = {"terms": terms, "activation": activation, **changes}
    if late:
        traits["activation comes"] = "after pooling"
    return Formula("arrival", traits, compute)


def _products(sources: Sequence[Source], target: Array) -> Iterator[Formula]:
    """An array times a parameter without its layer: a head that shares the embedding's table."""
    floats = [source for source in _floats(sources) if source.array.ndim > 1]
    matrices = [source for source in sources if source.kind == "parameter" and source.array.ndim == 2]
    for source, parameter in itertools.product(floats[:_FEW], matrices):
        for way, weight in (("", parameter.array), (", transposed", parameter.array.T)):
            if (source.array.shape[-1], target.shape[-1:]) == (weight.shape[1], weight.shape[:1]):
                term = f"{source.name} through {parameter.name}{way}"
                traits = {"terms": ((term, "1"),), "activation": "none"}
                compute = partial(np.matmul, np.asarray(source.array, np.float64), weight.T)
                yield Formula("arrival", traits, compute)


def _gates(sources: Sequence[Source], target: Array) -> Iterator[Formula]:
    """f(a) * b of two arrays, or of the two halves of one."""
    floats = _floats(sources)[:_FEW]
    fitting = [source for source in floats if source.array.size == target.size]
    pairs = list(itertools.permutations(fitting, 2))
    for source in floats:
        array = source.array
        if array.size == 2 * target.size and array.ndim and array.shape[-1] % 2 == 0:
            first, second = np.split(array, 2, axis=-1)
            lower = Source(f"{source.name}, first half", first)
            upper = Source(f"{source.name}, second half", second)
            pairs += [(lower, upper), (upper, lower)]
    for activation, (gate, value) in itertools.product(ACTIVATIONS, pairs):
        traits = {"terms": ((gate.name, "gate"), (value.name, "value")), "activation": activation}
        compute = partial(_gated, gate.array, value.array, activation, target.shape)
        yield Formula("gate", traits, compute)


def _gated(gate: Array, value: Array, activation: str, shape: Shape) -> Array:
    opened = activated(np.asarray(gate, np.float64), activation)
    return (opened * np.asarray(value, np.float64)).reshape(shape)


def _attentions(sources: Sequence[Source], target: Array) -> Iterator[Formula]:
    """Every attention of the arrays that may have made one of the target's shape."""
    if target.ndim not in (3, 4):
        return
    arrays = [source for source in sources if source.kind != "parameter"]
    named = {source.name: source for source in arrays}
    for traits in attention_traits(arrays, target):
        yield Formula("attention", traits, partial(_attended, traits, named, target.shape))


def _attended(traits: Mapping[str, Any], sources: Mapping[str, Source], shape: Shape) -> Array | None:
    y = attend(traits, sources)
    if y is None or y.size != np.prod(shape):
        return None
    return y.reshape(shape)
