"""Layers in a stack: one array [layers, ...] on one side, one array per layer on the other.

A stacked array is seen as its slices before anything is paired, so that all that holds for single layers (names,
order, gradients) decides about them too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace

from multibackend.matching.links import Part
from multibackend.matching.sides import Side
from multibackend.matching.words import module_of, read_names

__all__ = ["unstack"]


def unstack(side: Side, other: Side) -> Side:
    """`side` with its stacked arrays seen as slices, where `other` has the layers one by one.

    >>> unstack(Side({"b.w": (2, 3)}), Side({"h.0.w": (3,), "h.1.w": (3,)})).shapes
    {'b.0.w': (3,), 'b.1.w': (3,)}
    """
    sizes = {math.prod(shape) for shape in other.shapes.values()}
    lone = [name for name, shape in side.shapes.items() if math.prod(shape) not in sizes]
    if not lone:
        return side
    counts = _layers(other)
    fitting = Counter(
        count
        for name in lone
        for count in counts
        if count in side.shapes[name] and math.prod(side.shapes[name]) // count in counts[count]
    )
    if not fitting:
        return side
    count = max(fitting, key=lambda n: (fitting[n], n))
    stacked = [n for n in lone if count in side.shapes[n] and math.prod(side.shapes[n]) // count in counts[count]]
    return _sliced(side, stacked, count)


def _layers(side: Side) -> dict[int, set[int]]:
    """{number of layers: sizes of the arrays that come so many times, but for one number in their names}."""
    found: dict[object, set[int]] = defaultdict(set)
    for name, read in zip(side.shapes, read_names(list(side.shapes)), strict=True):
        for position, (prefix, number) in enumerate(read.numbers):
            others = tuple(n for i, (_, n) in enumerate(read.numbers) if i != position)
            found[prefix, read.role, others, side.shapes[name]].add(number)
    counts: dict[int, set[int]] = defaultdict(set)
    for key, numbers in found.items():
        if len(numbers) > 1:
            counts[len(numbers)].add(math.prod(key[-1]))  # type: ignore[index]
    return counts


def _sliced(side: Side, stacked: Collection[str], count: int) -> Side:
    shapes, kinds, slices = {}, dict(side.kinds), dict(side.slices)
    parameters, names = set(side.parameters), _slice_names(stacked, count)
    for name, shape in side.shapes.items():
        if name not in names:
            shapes[name] = shape
            continue
        axis = shape.index(count)
        piece = shape[:axis] + shape[axis + 1 :]
        for index, text in enumerate(names[name]):
            shapes[text] = piece
            kinds[text] = "" if len(piece) > 1 else side.kind(name)
            slices[text] = (name, Part(tuple(shape), tuple(shape), axis, index, piece))
            if name in side.parameters:
                parameters.add(text)
        parameters.discard(name)
    return replace(side, shapes=shapes, kinds=kinds, slices=slices, parameters=frozenset(parameters))


def _slice_names(stacked: Collection[str], count: int) -> dict[str, list[str]]:
    """A name for each slice: the number of the layer after the module that all stacked arrays lie in."""
    modules = [module_of(name).split(".") for name in stacked]
    common = 0
    while all(len(m) > common and m[common] == modules[0][common] for m in modules) and modules[0][common:]:
        common += 1
    head = ".".join(modules[0][:common])
    result = {}
    for name in stacked:
        rest = name[len(head) :].lstrip(".")
        result[name] = [f"{head}.{index}.{rest}" if head else f"{index}.{rest}" for index in range(count)]
    return result
