"""What arrives at a layer, made of what was there before: which arrays, through what, on each side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.parity.diagnosis.attention import attend, attention_traits
from multibackend.parity.diagnosis.chains import activated, moves, scales
from multibackend.parity.diagnosis.functions import ACTIVATIONS
from multibackend.parity.diagnosis.laws import Difference, Law, distance, explain
from multibackend.parity.diagnosis.sides import Side, Source
from multibackend.parity.diagnosis.sums import Terms, columns, summed, sums, unified

__all__ = ["arrival_difference"]

Array = np.ndarray
Both = tuple[Sequence[Source], Sequence[Source]]

_MOST_SOURCES = 12
_MOST_ELEMENTS = 60_000


def arrival_difference(sides: tuple[Side, Side], targets: tuple[Array, Array]) -> Difference | None:
    """How two arrays that should be equal were made of what was there before, where each way differs.

    Tried, in this order: single arrays through an activation, a factor, pooling or a change of axes; sums of arrays;
    gates; attention.

    Args:
        sides: with `Side.sources`, the latest first.
        targets: what arrived, on each side in its own layout.
    """
    before = distance(*targets)
    first = _trimmed(sides[0].sources, targets[0])
    second = unified(first[0], _trimmed(sides[1].sources, targets[1])[0])
    arrived = first[1], _trimmed((), targets[1])[1]
    for make in (_arrivals, _gates, _attention):
        laws = make((first[0], second), arrived)
        found = explain(laws[0], laws[1], arrived)
        if found is not None:
            return replace(found, before=before)
    return None


def _trimmed(sources: Sequence[Source], target: Array) -> tuple[list[Source], Array]:
    """The latest sources, and of large arrays the first examples only: the laws treat examples alike."""
    kept = [s for s in sources if s.kind != "parameter"][:_MOST_SOURCES]
    kept += [s for s in sources if s.kind == "parameter"]
    count = len(target) if target.ndim else 0
    if target.size <= _MOST_ELEMENTS or count < 2:
        return kept, target
    few = max(1, count * _MOST_ELEMENTS // target.size)
    cut = [replace(s, array=s.array[:few]) if len(s.array) == count and s.kind != "parameter" else s for s in kept]
    return cut, target[:few]


def _single(sources: Sequence[Source], target: Array) -> Iterator[Law]:
    """One array through an activation and a change of axes; the plain ones of every source first."""
    floats = [s for s in sources if s.array.dtype.kind == "f" and s.kind != "parameter" and s.array.ndim]
    options = [(s, list(moves(s.array.shape, target.shape))) for s in floats]
    for activation in ACTIVATIONS:
        for source, possible in options:
            for move_traits, move in possible[:1]:
                yield _chain(source, activation, move_traits, move, "1")
    for source, possible in options:
        for text, factor in list(scales(*source.array.shape[1:], *target.shape[1:]).items())[1:]:
            for move_traits, move in possible[:1]:
                yield _chain(source, "none", move_traits, move, text, factor)
    for source, possible in options:
        for activation in ACTIVATIONS:
            for move_traits, move in possible[1:]:
                yield _chain(source, activation, move_traits, move, "1")
                if activation != "none" and "average" in str(move_traits) + str(move_traits.get("pooling", "")):
                    yield _chain(source, activation, move_traits, move, "1", late=True)


def _chain(
    source: Source,
    activation: str,
    move_traits: Mapping[str, Any],
    move: Any,
    text: str,
    factor: float = 1.0,
    *,
    late=False,
) -> Law:
    def compute() -> Array:
        x = np.asarray(source.array, np.float64)
        y = activated(move(x), activation) if late else move(activated(x, activation))
        return factor * y

    traits = {"terms": ((source.name, text),), "activation": activation, **move_traits}
    return Law("arrival", {**traits, "activation comes": "after pooling"} if late else traits, compute)


def _sum_law(terms: Terms, activation: str, found: dict[str, Array], shape: tuple[int, ...]) -> Law:
    def compute() -> Array | None:
        total = summed(terms, found, shape)
        return None if total is None else activated(np.asarray(total), activation)

    return Law("arrival", {"terms": terms, "activation": activation}, compute)


def _arrivals(sources: Both, targets: tuple[Array, Array]) -> tuple[list[Law], list[Law]]:
    """Single arrays, then sums: those fitted to either side for both, so that the one's can be tried on the other."""
    found = [columns(own, target.shape) for own, target in zip(sources, targets, strict=True)]
    fitted = [list(sums(own, target)) for own, target in zip(found, targets, strict=True)]
    terms = list(dict.fromkeys([*fitted[0], *fitted[1]]))
    both = []
    for own, named, target in zip(sources, found, targets, strict=True):
        made = [_sum_law(which, activation, named, target.shape) for which, activation in terms]
        both.append([*_single(own, target), *made])
    return both[0], both[1]


def _gates(sources: Both, targets: tuple[Array, Array]) -> tuple[list[Law], list[Law]]:
    both = [list(_gated(own, target)) for own, target in zip(sources, targets, strict=True)]
    return both[0], both[1]


def _gated(sources: Sequence[Source], target: Array) -> Iterator[Law]:
    """f(a) * b of two arrays, or of the two halves of one."""
    size = target.size
    near = [s for s in sources if s.array.dtype.kind == "f" and s.kind != "parameter"][:6]
    pairs = [
        (a, b, a.array, b.array) for a in near for b in near if a is not b and a.array.size == b.array.size == size
    ]
    for source in near:
        if source.array.size == 2 * size and source.array.shape[-1] % 2 == 0:
            halves = np.split(np.asarray(source.array), 2, axis=-1)
            one, two = (
                replace(source, name=f"{source.name}, first half"),
                replace(source, name=f"{source.name}, second half"),
            )
            pairs += [(one, two, halves[0], halves[1]), (two, one, halves[1], halves[0])]
    for activation in ACTIVATIONS:
        for gate, value, x, y in pairs:
            traits = {"terms": ((gate.name, "gate"), (value.name, "value")), "activation": activation}
            yield Law("gate", traits, _Gate(x, y, activation, target.shape))


class _Gate:
    def __init__(self, gate: Array, value: Array, activation: str, shape: tuple[int, ...]) -> None:
        self._arguments = (gate, value, activation, shape)

    def __call__(self) -> Array:
        gate, value, activation, shape = self._arguments
        return (activated(np.asarray(gate, np.float64), activation) * np.asarray(value, np.float64)).reshape(shape)


def _attention(sources: Both, targets: tuple[Array, Array]) -> tuple[list[Law], list[Law]]:
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
