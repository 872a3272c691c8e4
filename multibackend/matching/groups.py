"""Arrays that are several of the other model's: fused projections, gates, layers in a stack."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.matching.layouts import rearrangements
from multibackend.matching.links import Link, Part, Rearrangement
from multibackend.matching.sides import Group, Side
from multibackend.matching.words import LEAVES, Name, index_similarity, leaf_of, module_of, read_names, role_similarity

__all__ = ["find_groups"]

_MOST_PARTS = 4  # of a fused projection or of gates; more are layers of a stack
_USUAL_ORDER = ("query", "key", "value")
_GATES = "ifgo"


@dataclass(frozen=True)
class _Family:
    """Arrays of one shape that may be one array of the other model."""

    name: str
    parts: tuple[str, ...]
    size: int


def find_groups(
    reference: Side, other: Side, reference_left: Sequence[str], other_left: Sequence[str], texts: Mapping[str, str]
) -> list[Group]:
    """Groups among the arrays that found no partner, in both directions; `texts` are the other's names, renamed."""
    ours = {name: name for name in reference_left}
    theirs = {name: texts[name] for name in other_left}
    groups = _one_way(reference, other, ours, theirs, of_reference=True)
    taken = {part for group in groups for part in group.parts} | {group.whole for group in groups}
    ours = {n: t for n, t in ours.items() if n not in taken}
    theirs = {n: t for n, t in theirs.items() if n not in taken}
    return groups + _one_way(other, reference, theirs, ours, of_reference=False)


def _one_way(
    whole_side: Side, part_side: Side, wholes: Mapping[str, str], parts: Mapping[str, str], *, of_reference: bool
) -> list[Group]:
    families = list({family.parts: family for family in _families(part_side, parts)}.values())
    sizes = {math.prod(whole_side.shapes[name]) for name in wholes}
    families = [family for family in families if family.size in sizes]
    names = [n for n in wholes if math.prod(whole_side.shapes[n]) in {family.size for family in families}]
    if not names or not families:
        return []
    ours, theirs = read_names([wholes[n] for n in names]), read_names([family.name for family in families])
    score = role_similarity([n.role for n in ours], [n.role for n in theirs])
    score = score + np.array([[index_similarity(a.places, b.places) for b in theirs] for a in ours])
    score = score + np.array([[0.5 * (leaf_of(a.text) == leaf_of(b.text)) for b in theirs] for a in ours])
    groups: list[Group] = []
    used: set[str] = set()
    for _, i, j in sorted((-score[i, j], i, j) for i in range(len(names)) for j in range(len(families))):
        family, whole = families[j], names[i]
        if family.size != math.prod(whole_side.shapes[whole]) or used & {whole, *family.parts}:
            continue
        ways = _ways(whole_side, part_side, whole, family, of_reference)
        if ways:
            used |= {whole, *family.parts}
            role = " ".join(read_names([module_of(wholes[whole])])[0].role)
            evidence = f"parts of {whole} by name and shape"
            groups.append(Group(whole, family.parts, of_reference, ways, evidence, role))
    return groups


def _families(side: Side, parts: Mapping[str, str]) -> Iterator[_Family]:
    """Arrays of one shape and leaf that lie in modules side by side."""
    siblings: dict[object, list[str]] = defaultdict(list)
    read = dict(zip(parts, read_names(list(parts.values())), strict=True))
    for name, text in parts.items():
        if name in side.slices:
            continue
        module = module_of(text)
        for ancestor in dict.fromkeys((module_of(module), module_of(module_of(module)), module)):
            leaf = leaf_of(text) if leaf_of(text) in LEAVES else ""
            siblings[ancestor, leaf, tuple(side.shapes[name])].append(name)
    for (ancestor, leaf, shape), members in siblings.items():  # type: ignore[misc]
        for count in range(2, min(len(members), _MOST_PARTS) + 1):
            for chosen in _choices(members, read, count):
                own = "".join(sorted(set.intersection(*(set(read[n].words[-2:-1]) for n in chosen))))
                yield _Family(f"{ancestor}.{own}.{leaf}", chosen, count * math.prod(shape))


def _choices(members: Sequence[str], read: Mapping[str, Name], count: int) -> list[tuple[str, ...]]:
    """The subsets that may belong together: all; those named as an attention's projections; or those named alike."""
    if len(members) == count:
        return [_in_order(members, read)]
    wanted = _USUAL_ORDER if count == len(_USUAL_ORDER) else _USUAL_ORDER[1:]
    found = [[name for name in members if set(wanted) & set(read[name].words)]]
    initials = defaultdict(list)
    for name in members:
        initials[module_of(name).rpartition(".")[2][:1]].append(name)
    found += initials.values()
    return list(dict.fromkeys(_in_order(chosen, read) for chosen in found if len(chosen) == count))


def _in_order(members: Sequence[str], read: Mapping[str, Name]) -> tuple[str, ...]:
    def place(name: str) -> tuple[int, int]:
        words = read[name].words
        found = [_USUAL_ORDER.index(word) for word in _USUAL_ORDER if word in words]
        gates = [_GATES.index(word[-1]) for word in words if len(word) <= 2 and word[-1] in _GATES]
        return (found or gates or [9])[-1], list(read).index(name)

    return tuple(sorted(members, key=place))


def _ways(
    whole_side: Side, part_side: Side, whole: str, family: _Family, of_reference: bool
) -> tuple[tuple[str, tuple[Link, ...]], ...]:
    """Each way to cut the whole: which axis, in blocks or alternating, in which order, parts transposed or not."""
    shape, piece = tuple(whole_side.shapes[whole]), tuple(part_side.shapes[family.parts[0]])
    count = len(family.parts)
    known = whole_side.kind(whole) != "" and all(part_side.kind(part) != "" for part in family.parts)
    orders = list(itertools.permutations(range(count)))
    found: dict[str, tuple[Link, ...]] = {}
    for label, view, axis, cut in _views(shape, count):
        changes = rearrangements(cut, piece) if of_reference else rearrangements(piece, cut)
        if known:
            changes = tuple(change for change in changes if not change.moves)
        for number, change in enumerate(changes):
            for order in orders:
                links = []
                for index, position in enumerate(order):
                    part = Part(shape, view, axis, index, cut)
                    links.append(_link(whole, family.parts[position], part, change, piece, of_reference))
                found[f"{label} {order} {'moved' if change.moves else 'kept'}{number}"] = tuple(links)
    return tuple(found.items())


def _link(
    whole: str, part: str, where: Part, change: Rearrangement, shape: tuple[int, ...], of_reference: bool
) -> Link:
    if of_reference:
        return Link(whole, part, change, where.shape, reference_part=where)
    return Link(part, whole, change, shape, other_part=where)


def _views(shape: tuple[int, ...], count: int) -> Iterator[tuple[str, tuple[int, ...], int, tuple[int, ...]]]:
    """(its name, view, axis, shape of a slice) for each way to see `count` slices in an array, the plainest first."""
    for axis, length in enumerate(shape):
        if length == count:
            yield "stack", shape, axis, shape[:axis] + shape[axis + 1 :]
    for axis, length in enumerate(shape):
        if length % count or length == count:
            continue
        size = length // count
        before, after = shape[:axis], shape[axis + 1 :]
        cut = (*before, size, *after)
        yield "blocks", (*before, count, size, *after), axis, cut
        for heads in range(2, size + 1):
            if size % heads == 0 and count < _MOST_PARTS:  # gates lie in blocks
                yield f"alternating in {heads}", (*before, heads, count, size // heads, *after), axis + 1, cut
