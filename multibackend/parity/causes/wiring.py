"""What arrives at a layer, made of what was there before: which arrays, through what, on each side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.attention import attend, attention_traits
from multibackend.parity.causes.chains import Move, activated, moves, scales
from multibackend.parity.causes.formulas import Difference, Formula, aligned, distance, explain
from multibackend.parity.causes.functions import ACTIVATIONS, SLOPES
from multibackend.parity.causes.recorded_layers import RecordedLayer, Source
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
_BEFORE_MOVES = ("none", "relu", "gelu (erf)", "gelu (tanh)", "silu", "tanh", *(f"leaky relu {s}" for s in SLOPES[:4]))


def arrival_difference(
    sides: tuple[RecordedLayer, RecordedLayer], targets: tuple[Array, Array], *, thorough: bool = True
) -> Difference | None:
    """How two arrays that should be equal were made of what was there before, where each way differs.

    Tried, in this order: single arrays and sums of two through an activation, pooling or a change of axes; a factor;
    sums of more; a product with a parameter; gates; attention. First of the arrays that both sides have, because only
    of them the reference's formula can be tried on the other side; formulas are tried on the first two examples.

    Args:
        sides: with `RecordedLayer.sources`, the latest first.
        targets: what arrived, both in the reference's layout.
        thorough: look for pooling and changes of axes, and for arrays that one side alone has.
    """
    before = distance(*targets)
    moved = aligned(*targets)
    first, reference = _trimmed(sides[0].sources, targets[0])
    second, other = _trimmed(sides[1].sources, targets[1] if moved is None else moved)
    second = unified(first, second)
    trimmed = (reference, other)
    # partners have one name now, so what is fitted to one side can be tried on the other
    common = {source.name for source in first} & {source.name for source in second}
    shared = [_named(first, common), _named(second, common)]
    most = max(_FEWEST_FORMULAS, _MOST_WORK // max(reference.size, 1))
    for sources in (shared, [first, second]) if thorough else (shared,):
        for formulas in _topics(sources, trimmed, thorough=thorough):
            difference = explain(formulas[0][:most], formulas[1][:most], trimmed)
            if difference is not None:
                return replace(difference, before=before)
    # at last what only one side's arrays explain, and only as plain sums: more would be found by chance
    arrivals = _arrivals([first, second], trimmed)
    difference = explain(_plain(arrivals[0]), _plain(arrivals[1]), trimmed, proven=False)
    return None if difference is None else replace(difference, before=before)


def _named(sources: Sequence[Source], names: set[str]) -> list[Source]:
    return [source for source in sources if source.name in names]


def _plain(formulas: Sequence[Formula]) -> list[Formula]:
    return [formula for formula in formulas if len(formula.traits) == _PLAIN]


def _trimmed(sources: Sequence[Source], target: Array) -> tuple[list[Source], Array]:
    """The latest sources; of examples the first ones."""
    arrays = [source for source in sources if source.kind != "parameter"][:_MOST_SOURCES]
    parameters = [source for source in sources if source.kind == "parameter"]
    count = len(target) if target.ndim > 1 else 0
    few = _EXAMPLES if target.size <= count * _LARGE else 1
    if count <= few:
        return [*arrays, *parameters], target
    for index, source in enumerate(arrays):
        if source.array.ndim and len(source.array) == count:
            arrays[index] = replace(source, array=source.array[:few])
    return [*arrays, *parameters], target[:few]


def _topics(
    sources: Sequence[Sequence[Source]], targets: tuple[Array, Array], *, thorough: bool
) -> Iterator[list[list[Formula]]]:
    """Both sides' formulas, topic by topic and each only when asked for: the first explains most arrivals."""
    yield _arrivals(sources, targets, thorough=thorough)
    for formulas_of in (_gates, _attentions):
        yield [list(formulas_of(own, target)) for own, target in zip(sources, targets, strict=True)]


def _arrivals(
    sources: Sequence[Sequence[Source]], targets: tuple[Array, Array], *, thorough: bool = True
) -> list[list[Formula]]:
    """Single arrays, then sums: those fitted to either side for both, so that the one's can be tried on the other."""
    arrays = [columns(own, target.shape) for own, target in zip(sources, targets, strict=True)]
    fitted = dict.fromkeys([*sums(arrays[0], targets[0]), *sums(arrays[1], targets[1])])
    both = []
    for own, named, target in zip(sources, arrays, targets, strict=True):
        formulas = [_sum(terms, activation, named, target.shape) for terms, activation in fitted]
        both.append([*formulas, *_singles(own, target, thorough=thorough), *_products(own, target)])
    return both


def _sum(terms: Terms, activation: str, arrays: Mapping[str, Array], shape: Shape) -> Formula:
    def compute() -> Array | None:
        total = summed(terms, arrays, shape)
        return None if total is None else activated(total, activation)

    return Formula("arrival", {"terms": terms, "activation": activation}, compute)


def _floats(sources: Sequence[Source]) -> list[Source]:
    """What layers returned, neither indices nor parameters."""
    floats = [source for source in sources if source.array.dtype.kind == "f" and source.array.size]
    return [source for source in floats if source.kind != "parameter"]


def _singles(sources: Sequence[Source], target: Array, *, thorough: bool) -> Iterator[Formula]:
    """One array, or the sum of two, through an activation and a change of axes; the plainest first."""
    floats = [source for source in _floats(sources) if source.array.ndim]
    options = [(source, list(moves(source.array.shape, target.shape))) for source in floats]
    plain = [(source, possible[0]) for source, possible in options if possible]
    for activation in ACTIVATIONS:
        yield from (_chain(source, activation, move) for source, move in plain)
    for source, move in plain:
        factors = list(scales(*source.array.shape[1:], *target.shape[1:]).items())
        # the first factor is 1, which was tried above
        yield from (_chain(source, "none", move, factor) for factor in factors[1:])
    if not thorough:
        return
    # activations times moves times sources: only of the latest arrays, and only with the usual activations
    for source, possible in [*options[:_FEW], *_pairs(floats[:_FEW], target)]:
        for move, activation in itertools.product(possible, _BEFORE_MOVES):
            yield _chain(source, activation, move)
            # the maximum of a rising function is the function of the maximum: only averages tell the order
            if activation != "none" and move[0].get("pooling") == "average":
                yield _chain(source, activation, move, late=True)


def _pairs(sources: Sequence[Source], target: Array) -> Iterator[tuple[Source, list[Move]]]:
    """Sums of two arrays as sources of their own."""
    for first, second in itertools.combinations(sources, 2):
        if first.array.shape == second.array.shape:
            names = " + ".join(sorted((first.name, second.name)))
            total = np.asarray(first.array, np.float64) + np.asarray(second.array, np.float64)
            yield Source(names, total), [move for move in moves(total.shape, target.shape) if "window" not in move[0]]


def _chain(
    source: Source, activation: str, move: Move, factor: tuple[str, float] = ("1", 1.0), *, late: bool = False
) -> Formula:
    """An array through an activation and then a change of its axes, or, `late`, the other way round; times a factor."""
    changes, moved = move
    name, number = factor

    def compute() -> Array:
        x = np.asarray(source.array, np.float64)
        return number * (activated(moved(x), activation) if late else moved(activated(x, activation)))

    terms = tuple((term, name) for term in source.name.split(" + "))
    traits = {"terms": terms, "activation": activation, **changes}
    if late:
        traits["activation comes"] = "after pooling"
    return Formula("arrival", traits, compute)


def _products(sources: Sequence[Source], target: Array) -> Iterator[Formula]:
    """An array times a parameter of some layer, used without that layer: a head that shares the embedding's table."""
    floats = [source for source in _floats(sources) if source.array.ndim > 1]
    matrices = [source for source in sources if source.kind == "parameter" and source.array.ndim == 2]
    for source, parameter in itertools.product(floats[:_FEW], matrices):
        for way, weight in (("", parameter.array), (", transposed", parameter.array.T)):
            if (source.array.shape[-1], target.shape[-1:]) == (weight.shape[1], weight.shape[:1]):
                traits = {"terms": ((f"{source.name} through {parameter.name}{way}", "1"),), "activation": "none"}
                yield Formula("arrival", traits, partial(_product, source.array, weight))


def _product(x: Array, weight: Array) -> Array:
    return np.asarray(x, np.float64) @ weight.T


def _gates(sources: Sequence[Source], target: Array) -> Iterator[Formula]:
    """f(a) * b of two arrays, or of the two halves of one."""
    floats = _floats(sources)[:_FEW]
    fitting = [source for source in floats if source.array.size == target.size]
    pairs = list(itertools.permutations(fitting, 2))
    for source in floats:
        if source.array.size == 2 * target.size and source.array.ndim and source.array.shape[-1] % 2 == 0:
            first, second = np.split(source.array, 2, axis=-1)
            halves = (Source(f"{source.name}, first half", first), Source(f"{source.name}, second half", second))
            pairs += [halves, halves[::-1]]
    for activation, (gate, value) in itertools.product(ACTIVATIONS, pairs):
        traits = {"terms": ((gate.name, "gate"), (value.name, "value")), "activation": activation}
        yield Formula("gate", traits, partial(_gated, gate.array, value.array, activation, target.shape))


def _gated(gate: Array, value: Array, activation: str, shape: Shape) -> Array:
    return (activated(np.asarray(gate, np.float64), activation) * np.asarray(value, np.float64)).reshape(shape)


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
    return y.reshape(shape) if y is not None and y.size == np.prod(shape) else None
