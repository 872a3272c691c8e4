"""Arrays that are several of the other model's: fused projections, gates, layers in a stack."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multibackend.core.arrays import without
from multibackend.matching.layouts import rearrangements
from multibackend.matching.links import Link, Part, Rearrangement
from multibackend.matching.sides import Group, Side
from multibackend.matching.words import LEAVES, Name, by_place, by_role, leaf_of, module_of, read_names

__all__ = ["find_groups"]

_MOST_PARTS = 4  # of a fused projection or of gates; more are layers of a stack
_PROJECTIONS = ("query", "key", "value")  # in the order in which fused projections hold them
_GATES = "ifgo"  # of an LSTM, in torch's order
_LAST = 9

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Family:
    """Arrays of one shape that may be one array of the other model."""

    text: str  # a name for them together, of what their names share
    parts: tuple[str, ...]
    size: int  # the number of their elements together


def find_groups(
    reference: Side, other: Side, reference_left: Sequence[str], other_left: Sequence[str], texts: Mapping[str, str]
) -> list[Group]:
    """Groups among arrays without a partner, in both directions; `texts` are the other's, renamed."""
    names = {name: name for name in reference_left}
    partners = {name: texts[name] for name in other_left}
    groups = _groups(reference, other, names, partners, of_reference=True)
    taken = {group.whole for group in groups}
    for group in groups:
        taken.update(group.parts)
    names = without(names, taken)
    partners = without(partners, taken)
    return groups + _groups(other, reference, partners, names, of_reference=False)


def _groups(
    whole_side: Side, part_side: Side, wholes: Mapping[str, str], parts: Mapping[str, str], *, of_reference: bool
) -> list[Group]:
    """Find wholes of one side whose parts are on the other, the likeliest first, each array once."""
    sizes = {whole_side.size(name) for name in wholes}
    families = [family for family in _families(part_side, parts) if family.size in sizes]
    family_sizes = {family.size for family in families}
    names = [name for name in wholes if whole_side.size(name) in family_sizes]
    if not names:
        return []
    readings = read_names([wholes[name] for name in names])
    score = _likeness(readings, read_names([family.text for family in families]))
    groups: list[Group] = []
    used: set[str] = set()
    # a stable sort: of equals the first in the order of definition
    for index in np.argsort(-score, axis=None, kind="stable"):
        row, column = divmod(int(index), len(families))
        whole = names[row]
        family = families[column]
        if family.size != whole_side.size(whole) or used & {whole, *family.parts}:
            continue
        ways = _ways(whole_side, part_side, whole, family, of_reference)
        if ways:
            used |= {whole, *family.parts}
            (module,) = read_names([module_of(wholes[whole])])
            evidence = f"parts of {whole} by name and shape"
            role = " ".join(module.role)
            groups.append(Group(whole, family.parts, of_reference, ways, evidence, role))
    return groups


def _likeness(names: Sequence[Name], others: Sequence[Name]) -> np.ndarray:
    """Return how alike wholes and families are, by name alone: [names, others]."""
    leaves = np.array([name.leaf for name in names])
    other_leaves = np.array([name.leaf for name in others])
    likeness = by_role(names, others) + by_place(names, others)
    return likeness + 0.5 * (leaves[:, None] == other_leaves[None, :])


def _families(side: Side, texts: Mapping[str, str]) -> list[_Family]:
    """Return the arrays of one shape and leaf that lie in modules side by side."""
    names = dict(zip(texts, read_names(list(texts.values())), strict=True))
    siblings: dict[tuple[str, str, Shape], list[str]] = defaultdict(list)
    for name, text in texts.items():
        if name in side.slices:
            continue  # already a part of an array
        leaf = leaf_of(text)
        if leaf not in LEAVES:
            leaf = ""
        module = module_of(text)
        # `attn.query.weight` beside `attn.key.weight`, `query.dense.weight` beside
        # `key.dense.weight`, and `cell.w_i` beside `cell.w_f`
        for ancestor in dict.fromkeys((module_of(module), module_of(module_of(module)), module)):
            siblings[ancestor, leaf, tuple(side.shapes[name])].append(name)
    families = {}
    for (ancestor, leaf, shape), members in siblings.items():
        for count in range(2, min(len(members), _MOST_PARTS) + 1):
            for parts in _choices(members, names, count):
                modules = {names[part].words[-2:-1] for part in parts}
                common = ""
                if len(modules) == 1:
                    common = "".join(*modules)
                text = f"{ancestor}.{common}.{leaf}"
                families[parts] = _Family(text, parts, count * math.prod(shape))
    return list(families.values())


def _choices(members: Sequence[str], names: Mapping[str, Name], count: int) -> list[tuple[str, ...]]:
    """Return what may belong together: all, an attention's projections, or what is named alike."""
    if len(members) == count:
        return [_in_order(members, names)]
    # of two, key and value: cross-attention makes both from one input
    projections = set(_PROJECTIONS if count == len(_PROJECTIONS) else _PROJECTIONS[1:])
    by_initial = defaultdict(list)
    for name in members:
        by_initial[module_of(name).rpartition(".")[2][:1]].append(name)
    projecting = [name for name in members if projections & set(names[name].words)]
    choices: dict[tuple[str, ...], None] = {}
    for subset in (projecting, *by_initial.values()):
        if len(subset) == count:
            choices[_in_order(subset, names)] = None
    return list(choices)


def _in_order(members: Sequence[str], names: Mapping[str, Name]) -> tuple[str, ...]:
    """Sort projections and gates into the usual order; the rest stays as it was defined."""

    def place(name: str) -> int:
        words = names[name].words
        projections = [index for index, word in enumerate(_PROJECTIONS) if word in words]
        gates = [_GATES.index(word[-1]) for word in words if len(word) <= 2 and word[-1] in _GATES]
        return (projections or gates or [_LAST])[-1]

    return tuple(sorted(members, key=place))


def _ways(
    whole_side: Side, part_side: Side, whole: str, family: _Family, of_reference: bool
) -> tuple[tuple[str, tuple[Link, ...]], ...]:
    """Each way to cut the whole: axis, blocks or alternating, order, parts transposed or not."""
    piece = tuple(part_side.shapes[family.parts[0]])
    count = len(family.parts)
    kinds = [whole_side.kind(whole), *(part_side.kind(part) for part in family.parts)]
    known = "" not in kinds
    orders = list(itertools.permutations(range(count)))
    ways = {}
    for label, first in _views(tuple(whole_side.shapes[whole]), count):
        slices = [replace(first, index=index) for index in range(count)]
        shapes = (first.piece, piece)
        if not of_reference:
            shapes = (piece, first.piece)
        changes = rearrangements(*shapes)
        if known:
            changes = tuple(change for change in changes if not change.moves)
        for (number, change), order in itertools.product(enumerate(changes), orders):
            links = []
            for part, position in zip(slices, order, strict=True):
                links.append(_link(whole, family.parts[position], part, change, piece, of_reference))
            ways[f"{label} {order} {'moved' if change.moves else 'kept'}{number}"] = tuple(links)
    return tuple(ways.items())


def _link(whole: str, name: str, part: Part, change: Rearrangement, shape: Shape, of_reference: bool) -> Link:
    if of_reference:
        return Link(whole, name, change, part.shape, reference_part=part)
    return Link(name, whole, change, shape, other_part=part)


def _views(shape: Shape, count: int) -> Iterator[tuple[str, Part]]:
    """(name, first slice) of each way to see `count` slices in an array, the plainest first."""
    for axis, length in enumerate(shape):
        if length == count:
            yield "stack", Part(shape, shape, axis, 0, shape[:axis] + shape[axis + 1 :])
    for axis, length in enumerate(shape):
        if length % count or length == count:
            continue
        size = length // count
        before = shape[:axis]
        after = shape[axis + 1 :]
        piece = (*before, size, *after)
        yield "blocks", Part(shape, (*before, count, size, *after), axis, 0, piece)
        for heads in range(2, size + 1):
            if size % heads == 0 and count < _MOST_PARTS:  # gates lie in blocks
                view = (*before, heads, count, size // heads, *after)
                yield f"alternating in {heads}", Part(shape, view, axis + 1, 0, piece)
