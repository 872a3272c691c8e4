"""Layers in a stack: one array [layers, ...] on one side, one array per layer on the other.

A stacked array is seen as its slices before anything is paired, so that all that holds for single
layers (names, order, gradients) decides about them too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from multibackend.matching.links import Part
from multibackend.matching.sides import Side
from multibackend.matching.words import Role, read_names

__all__ = ["unstack"]

Shape = tuple[int, ...]


def unstack(side: Side, other: Side) -> Side:
    """`side` with its stacked arrays seen as slices, where `other` has the layers one by one.

    >>> unstack(Side({"b.w": (2, 3)}), Side({"h.0.w": (3,), "h.1.w": (3,)})).shapes
    {'b.0.w': (3,), 'b.1.w': (3,)}
    """
    # what is as large as an array of the other model is taken for its partner, and not for a stack
    sizes = {math.prod(shape) for shape in other.shapes.values()}
    candidates = [name for name, shape in side.shapes.items() if math.prod(shape) not in sizes]
    if not candidates:
        return side
    layers = _layers(other)
    stacks = {count: _stacked(side, candidates, count, sizes) for count, sizes in layers.items()}
    # the number of layers that explains most arrays; of equals the larger one
    count = max(stacks, key=lambda n: (len(stacks[n]), n), default=0)
    if not stacks.get(count):
        return side
    return _sliced(side, _slice_names(stacks[count], count), count)


def _stacked(side: Side, names: Iterable[str], count: int, sizes: set[int]) -> list[str]:
    """Return the arrays with an axis of `count` layers, each of one of `sizes`."""
    return [n for n in names if count in side.shapes[n] and math.prod(side.shapes[n]) // count in sizes]


def _layers(side: Side) -> dict[int, set[int]]:
    """{number of layers: sizes of the arrays that come so many times, but for one number in their names}."""
    series: dict[tuple[Role, Role, Shape, Shape], set[int]] = defaultdict(set)
    for name, reading in zip(side.shapes, read_names(list(side.shapes)), strict=True):
        for position, (prefix, number) in enumerate(reading.numbers):
            others = reading.numbers[:position] + reading.numbers[position + 1 :]
            place = tuple(n for _, n in others)  # of the whole stack, if it is one of several
            series[prefix, reading.role, place, side.shapes[name]].add(number)
    counts: dict[int, set[int]] = defaultdict(set)
    for (_, _, _, shape), numbers in series.items():
        if len(numbers) > 1:
            counts[len(numbers)].add(math.prod(shape))
    return counts


def _slice_names(stacked: Sequence[str], count: int) -> dict[str, list[str]]:
    """Name each slice: the number of the layer after the module that all stacked arrays lie in."""
    modules = [name.split(".")[:-1] for name in stacked]
    common = modules[0]
    for module in modules:
        while common != module[: len(common)]:
            common = common[:-1]
    names = {}
    for name in stacked:
        rest = name.split(".")[len(common) :]
        names[name] = [".".join([*common, str(layer), *rest]) for layer in range(count)]
    return names


def _sliced(side: Side, names: Mapping[str, Sequence[str]], count: int) -> Side:
    """Return `side` with the slices of the arrays in `names` in their place."""
    shapes = {}
    kinds = dict(side.kinds)
    slices = dict(side.slices)
    parameters = set(side.parameters) - names.keys()
    for name, shape in side.shapes.items():
        if name not in names:
            shapes[name] = shape
            continue
        axis = shape.index(count)
        piece = shape[:axis] + shape[axis + 1 :]
        for layer, slice_name in enumerate(names[name]):
            shapes[slice_name] = piece
            # how matrices lie in a stack is up to whoever stacked them; vectors lie in one way only
            kinds[slice_name] = "" if len(piece) > 1 else side.kind(name)
            slices[slice_name] = (name, Part(tuple(shape), tuple(shape), axis, layer, piece))
            if name in side.parameters:
                parameters.add(slice_name)
    return replace(side, shapes=shapes, kinds=kinds, slices=slices, parameters=frozenset(parameters))
