"""What arrives at a layer, made of what was there before: which arrays, through what, on each side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.attention import attend, attention_traits
from multibackend.parity.causes.chains import activated, moves, scales
from multibackend.parity.causes.functions import ACTIVATIONS, SLOPES
from multibackend.parity.causes.laws import Difference, Law, aligned, distance, explain
from multibackend.parity.causes.sides import Side, Source
from multibackend.parity.causes.sums import Terms, columns, summed, sums, unified

__all__ = ["arrival_difference"]

Both = tuple[Sequence[Source], Sequence[Source]]

_MOST_SOURCES = 12
_FEW = 6
_PLAIN = 2  # traits of a law without pooling or change of axes
_EXAMPLES = 2
_LARGE = 50_000  # elements of an example, of which one then must do
_MOST_WORK, _FEWEST_LAWS = 400_000_000, 200  # elements that are computed at most for a topic, however large arrays are
_BEFORE_MOVES = ("none", "relu", "gelu (erf)", "gelu (tanh)", "silu", "tanh", *(f"leaky relu {s}" for s in SLOPES[:4]))


def arrival_difference(
    sides: tuple[Side, Side], targets: tuple[Array, Array], *, thorough: bool = True
) -> Difference | None:
    """How two arrays that should be equal were made of what was there before, where each way differs.

    Tried, in this order: single arrays and sums of two through an activation, pooling or a change of axes; a factor;
    sums of more; a product with a parameter; gates; attention. First of the arrays that both sides have, because only
    of them the reference's law can be tried on the other side; laws are tried on the first two examples.

    Args:
        sides: with `Side.sources`, the latest first.
        targets: what arrived, both in the reference's layout.
        thorough: look for pooling and changes of axes, and for arrays that one side alone has.
    """
    before, moved = distance(*targets), aligned(*targets)
    targets = targets if moved is None else (targets[0], moved)
    (first, one), (second, other) = (_trimmed(s.sources, t) for s, t in zip(sides, targets, strict=True))
    second = unified(first, second)
    common = {source.name for source in first} & {source.name for source in second}
    shared = [source for source in first if source.name in common], [s for s in second if s.name in common]
    room = max(_FEWEST_LAWS, _MOST_WORK // max(one.size, 1))
    for sources in (shared, (first, second)) if thorough else (shared,):
        for make in (_arrivals, _gates, _attention):
            laws = [found[:room] for found in make(sources, (one, other), thorough=thorough)]
            found = explain(laws[0], laws[1], (one, other))
            if found is not None:
                return replace(found, before=before)
    plain = [[law for law in laws if len(law.traits) == _PLAIN] for laws in _arrivals((first, second), (one, other))]
    found = explain(plain[0], plain[1], (one, other), proven=False)
    return None if found is None else replace(found, before=before)


def _trimmed(sources: Sequence[Source], target: Array) -> tuple[list[Source], Array]:
    """The latest sources; of examples the first ones."""
    kept = [s for s in sources if s.kind != "parameter"][:_MOST_SOURCES]
    kept += [s for s in sources if s.kind == "parameter"]
    count = len(target) if target.ndim > 1 else 0
    few = _EXAMPLES if target.size <= count * _LARGE else 1
    if count <= few:
        return kept, target
    cut = [replace(s, array=s.array[:few]) if _by_example(s, count) else s for s in kept]
    return cut, target[:few]


def _by_example(source: Source, count: int) -> bool:
    return source.kind != "parameter" and source.array.ndim > 0 and len(source.array) == count


def _single(sources: Sequence[Source], target: Array, *, thorough: bool) -> Iterator[Law]:
    """One array, or the sum of two, through an activation and a change of axes; the plainest first."""
    floats = [s for s in sources if s.array.dtype.kind == "f" and s.kind != "parameter" and s.array.ndim]
    options = [(s, list(moves(s.array.shape, target.shape))) for s in floats]
    plain = [(s, possible[0]) for s, possible in options if possible]
    for activation in ACTIVATIONS:
        yield from (_chain(source, activation, move) for source, move in plain)
    for source, move in plain:
        named = list(scales(*source.array.shape[1:], *target.shape[1:]).items())[1:]
        yield from (_chain(source, "none", move, factor) for factor in named)
    if not thorough:
        return
    for source, possible in [*options[:_FEW], *_pairs(floats[:_FEW], target)]:
        for move in possible:
            for activation in _BEFORE_MOVES:
                yield _chain(source, activation, move)
                if activation != "none" and move[0].get("pooling") == "average":
                    yield _chain(source, activation, move, late=True)


def _pairs(sources: Sequence[Source], target: Array) -> Iterator[tuple[Source, list[tuple[dict[str, object], Any]]]]:
    """Sums of two arrays as sources of their own."""
    for one, other in itertools.combinations(sources, 2):
        if one.array.shape == other.array.shape:
            names = " + ".join(sorted((one.name, other.name)))
            total = np.asarray(one.array, np.float64) + np.asarray(other.array, np.float64)
            yield Source(names, total), [m for m in moves(total.shape, target.shape) if "window" not in m[0]]


def _chain(
    source: Source,
    activation: str,
    move: tuple[Mapping[str, Any], Any],
    factor: tuple[str, float] = ("1", 1.0),
    *,
    late: bool = False,
) -> Law:
    def compute() -> Array:
        x = np.asarray(source.array, np.float64)
        y = activated(move[1](x), activation) if late else move[1](activated(x, activation))
        return factor[1] * y

    terms = tuple((name, factor[0]) for name in source.name.split(" + "))
    traits = {"terms": terms, "activation": activation, **move[0]}
    return Law("arrival", {**traits, "activation comes": "after pooling"} if late else traits, compute)


def _sum_law(terms: Terms, activation: str, found: dict[str, Array], shape: tuple[int, ...]) -> Law:
    def compute() -> Array | None:
        total = summed(terms, found, shape)
        return None if total is None else activated(np.asarray(total), activation)

    return Law("arrival", {"terms": terms, "activation": activation}, compute)


def _products(sources: Sequence[Source], target: Array) -> Iterator[Law]:
    """An array times a parameter of some layer, used without that layer: a head that shares the embedding's table."""
    floats = [s for s in sources if s.array.dtype.kind == "f" and s.kind != "parameter" and s.array.ndim > 1]
    for source, held in itertools.product(floats[:_FEW], (s for s in sources if s.kind == "parameter")):
        for way, weight in (("", held.array), (", transposed", held.array.T)):
            if weight.ndim == 2 and (source.array.shape[-1], target.shape[-1:]) == (weight.shape[1], weight.shape[:1]):
                terms = ((f"{source.name} through {held.name}{way}", "1"),)
                traits = {"terms": terms, "activation": "none"}
                yield Law("arrival", traits, lambda x=source.array, w=weight: np.asarray(x, np.float64) @ w.T)


def _arrivals(sources: Both, targets: tuple[Array, Array], *, thorough: bool = True) -> tuple[list[Law], list[Law]]:
    """Single arrays, then sums: those fitted to either side for both, so that the one's can be tried on the other."""
    found = [columns(own, target.shape) for own, target in zip(sources, targets, strict=True)]
    fitted = [list(sums(own, target)) for own, target in zip(found, targets, strict=True)]
    terms = list(dict.fromkeys([*fitted[0], *fitted[1]]))
    both = []
    for own, named, target in zip(sources, found, targets, strict=True):
        made = [_sum_law(which, activation, named, target.shape) for which, activation in terms]
        both.append([*made, *_single(own, target, thorough=thorough), *_products(own, target)])
    return both[0], both[1]


def _gates(sources: Both, targets: tuple[Array, Array], *, thorough: bool = True) -> tuple[list[Law], list[Law]]:
    del thorough
    both = [list(_gated(own, target)) for own, target in zip(sources, targets, strict=True)]
    return both[0], both[1]


def _gated(sources: Sequence[Source], target: Array) -> Iterator[Law]:
    """f(a) * b of two arrays, or of the two halves of one."""
    size = target.size
    near = [s for s in sources if s.array.dtype.kind == "f" and s.kind != "parameter"][:_FEW]
    fit = [s for s in near if s.array.size == size]
    pairs = [(a.name, b.name, a.array, b.array) for a, b in itertools.permutations(fit, 2)]
    for source in near:
        if source.array.size == 2 * size and source.array.shape[-1] % 2 == 0:
            one, two = np.split(np.asarray(source.array), 2, axis=-1)
            names = f"{source.name}, first half", f"{source.name}, second half"
            pairs += [(*names, one, two), (*names[::-1], two, one)]
    for activation in ACTIVATIONS:
        for gate, value, x, y in pairs:
            traits = {"terms": ((gate, "gate"), (value, "value")), "activation": activation}
            yield Law("gate", traits, _Gate(x, y, activation, target.shape))


class _Gate:
    def __init__(self, gate: Array, value: Array, activation: str, shape: tuple[int, ...]) -> None:
        self._arguments = (gate, value, activation, shape)

    def __call__(self) -> Array:
        gate, value, activation, shape = self._arguments
        return (activated(np.asarray(gate, np.float64), activation) * np.asarray(value, np.float64)).reshape(shape)


def _attention(sources: Both, targets: tuple[Array, Array], *, thorough: bool = True) -> tuple[list[Law], list[Law]]:
    del thorough
    both = [list(_attended(own, target)) for own, target in zip(sources, targets, strict=True)]
    return both[0], both[1]


def _attended(sources: Sequence[Source], target: Array) -> Iterator[Law]:
    if target.ndim not in (3, 4):
        return
    near = [s for s in sources if s.kind != "parameter"]
    by_name = {s.name: s for s in near}
    for traits in attention_traits(near, target):
        yield Law("attention", traits, _Attention(traits, by_name, target.shape))


class _Attention:
    def __init__(self, traits: Mapping[str, Any], sources: Mapping[str, Source], shape: tuple[int, ...]) -> None:
        self._arguments = (traits, sources, shape)

    def __call__(self) -> Array | None:
        traits, sources, shape = self._arguments
        y = attend(traits, sources)
        return y.reshape(shape) if y is not None and y.size == np.prod(shape) else None
