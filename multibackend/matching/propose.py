"""What names, shapes, kinds and order say about two models' arrays, before either is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.names import normalised, renamed
from multibackend.errors import ParameterMatchError
from multibackend.matching.groups import find_groups
from multibackend.matching.layouts import rearrangements
from multibackend.matching.links import Rearrangement
from multibackend.matching.pairing import Likeness, changes_between, equal_names, make_pair, pair_by_likeness
from multibackend.matching.sides import Group, Pair, Proposal, Side

__all__ = ["propose"]

Transform = Callable[[np.ndarray], Any] | tuple[int, ...] | list[int]


def propose(
    reference: Side,
    other: Side,
    *,
    rename: Mapping[str, str] | None = None,
    transform: Mapping[str, Transform] | None = None,
) -> Proposal:
    """Pairs and groups, the likeliest first, and what is open.

    Args:
        reference, other: the two models.
        rename: {name of the other's array or module: name of the reference's}; not questioned.
        transform: {name of the other's array: the change from the reference's array to it}: a permutation of axes, or
            a function of an array that reshapes and permutes.

    Raises:
        ParameterMatchError: `rename` or `transform` does not fit.
    """
    texts = {name: renamed(name, rename or {}) for name in other.shapes}
    forced = _forced(reference, other, texts)
    fixed = {**equal_names(reference, other, texts), **forced}
    if len(set(fixed.values())) < len(fixed):
        fixed = {name: partner for name, partner in fixed.items() if name in forced or partner not in forced.values()}
    _check_forced(reference, other, forced, transform or {})
    free = [n for n in reference.shapes if n not in set(fixed.values()) | reference.integers]
    others = [n for n in other.shapes if n not in fixed and n not in other.integers]
    groups = find_groups(reference, other, *_crowded(reference, other, free, others), texts)
    grouped = _grouped(groups)
    pairs, sets = dict(fixed), []
    if free or others:
        names = [n for n in reference.shapes if n not in grouped[0] | reference.integers or n in fixed.values()]
        partners = [n for n in other.shapes if n not in grouped[1] | other.integers or n in fixed]
        if names and partners:
            likeness = Likeness(reference, other, names, partners, texts)
            pairs, sets = pair_by_likeness(reference, other, likeness, fixed)
    evidence = {
        **dict.fromkeys(pairs, "name and shape"),
        **dict.fromkeys(fixed, "name"),
        **dict.fromkeys(forced, "rename"),
    }
    made = tuple(make_pair(reference, other, partner, name, evidence[name]) for name, partner in pairs.items())
    made = _transformed(made, reference, other, transform or {})
    left = (
        [n for n in reference.shapes if n not in set(pairs.values()) | grouped[0]],
        [n for n in other.shapes if n not in pairs.keys() | grouped[1]],
    )
    groups += find_groups(reference, other, *left, texts)
    grouped = _grouped(groups)
    closed = {pair.reference for pair in made if pair.evidence in ("rename", "name")}
    sets = [found for found in (tuple(n for n in s if n not in closed) for s in sets) if len(found) > 1]
    return Proposal(
        pairs=made,
        groups=tuple(groups),
        sets=tuple(sets),
        reference_left=tuple(n for n in left[0] if n not in grouped[0]),
        other_left=tuple(n for n in left[1] if n not in grouped[1]),
        plain=len(fixed) == len(reference.shapes) == len(other.shapes) and not any(pair.open for pair in made),
    )


def _grouped(groups: Sequence[Group]) -> tuple[set[str], set[str]]:
    """The names of each side that are in groups."""
    sides: tuple[set[str], set[str]] = (set(), set())
    for group in groups:
        sides[0 if group.of_reference else 1].add(group.whole)
        sides[1 if group.of_reference else 0].update(group.parts)
    return sides


def _crowded(reference: Side, other: Side, free: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arrays that cannot all find a partner of their size: fewer on the other side have it, or none."""
    sizes = Counter(math.prod(reference.shapes[n]) for n in free), Counter(math.prod(other.shapes[n]) for n in others)
    return (
        [n for n in free if sizes[0][size := math.prod(reference.shapes[n])] > sizes[1][size]],
        [n for n in others if sizes[1][size := math.prod(other.shapes[n])] > sizes[0][size]],
    )


def _forced(reference: Side, other: Side, texts: Mapping[str, str]) -> dict[str, str]:
    """The pairs that `rename` names in full."""
    by_style = {normalised(name): name for name in reference.shapes}
    return {
        name: partner
        for name, text in texts.items()
        if text != name
        and (partner := text if text in reference.shapes else by_style.get(normalised(text))) is not None
    }


def _check_forced(reference: Side, other: Side, forced: Mapping[str, str], transform: Mapping[str, Transform]) -> None:
    lines, first = [], {}
    for name, partner in forced.items():
        if first.setdefault(partner, name) != name:
            lines.append(f"{name} and {first[partner]} would both be {partner}")
        shapes = tuple(other.shapes[name]), tuple(reference.shapes[partner])
        if name not in transform and not changes_between(reference, other, partner, name):
            lines.append(f"{name} {shapes[0]} and {partner} {shapes[1]} differ in shape")
    lines += [
        f"transform names {name}, which is no array of the other model"
        for name in transform
        if name not in other.shapes
    ]
    if lines:
        raise ParameterMatchError("rename and transform do not fit:" + "".join(f"\n  - {line}" for line in lines))


def _transformed(
    pairs: tuple[Pair, ...], reference: Side, other: Side, transform: Mapping[str, Transform]
) -> tuple[Pair, ...]:
    result = []
    for pair in pairs:
        given = transform.get(pair.other)
        if given is None:
            result.append(pair)
            continue
        shapes = tuple(reference.shapes[pair.reference]), tuple(other.shapes[pair.other])
        result.append(pair.taking(as_rearrangement(given, *shapes, pair.other), "transform"))
    return tuple(result)


def as_rearrangement(given: Transform, shape: tuple[int, ...], wanted: tuple[int, ...], name: str) -> Rearrangement:
    """A user's transform as a change of layout; raises `ParameterMatchError` where it is none, or fits no shape."""
    marks = np.arange(math.prod(shape)).reshape(shape)
    try:
        made = np.asarray(given(marks) if callable(given) else np.transpose(marks, given))
    except (ValueError, TypeError, IndexError) as error:
        raise ParameterMatchError(f"transform of {name} fails on an array of shape {shape}: {error}") from error
    if made.shape != wanted:
        raise ParameterMatchError(f"transform of {name} makes {made.shape} of {shape}, but {wanted} is needed")
    for change in rearrangements(shape, wanted):
        if np.array_equal(change(marks), made):
            return change
    raise ParameterMatchError(f"transform of {name} does more than reshape and permute axes of {shape}")
