"""What names, shapes, kinds and order say about two models' arrays, before either is run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import without
from multibackend.core.names import normalised, renamed
from multibackend.errors import ParameterMatchError
from multibackend.matching.groups import find_groups
from multibackend.matching.layouts import rearrangements
from multibackend.matching.likeness import Likeness
from multibackend.matching.links import Rearrangement
from multibackend.matching.pairing import changes_between, equal_names, make_pair, pair_by_likeness
from multibackend.matching.sides import Group, Pair, Proposal, Side

__all__ = ["Transform", "propose"]

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
        transform: {name of the other's array: the change from the reference's array to it}: a
            permutation of axes, or a function of an array that reshapes and permutes.

    Raises:
        ParameterMatchError: `rename` or `transform` does not fit.
    """
    transform = transform or {}
    texts = {name: renamed(name, rename or {}) for name in other.shapes}
    forced = _forced(reference, texts)
    _check_forced(reference, other, forced, transform)
    fixed = _fixed(equal_names(reference, other, texts), forced)
    # wholes and parts first where sizes alone tell that some find no partner, lest a projection be
    # paired with whatever has its size
    free = _without(reference.shapes, fixed.values(), reference.integers)
    other_free = _without(other.shapes, fixed, other.integers)
    crowded = _crowded(reference, free, other, other_free)
    other_crowded = _crowded(other, other_free, reference, free)
    groups = find_groups(reference, other, crowded, other_crowded, texts)
    matched, sets = _paired(reference, other, texts, fixed, groups)
    pairs = []
    for name, partner in matched.items():
        pair = make_pair(reference, other, partner, name, _evidence(name, fixed, forced))
        pairs.append(_transformed(pair, reference, other, transform.get(name)))
    references, others = _grouped(groups)
    reference_left = _without(reference.shapes, references, matched.values())
    other_left = _without(other.shapes, others, matched)
    groups += find_groups(reference, other, reference_left, other_left, texts)
    references, others = _grouped(groups)
    has_equal_names = len(fixed) == len(reference.shapes) == len(other.shapes)
    return Proposal(
        pairs=tuple(pairs),
        groups=tuple(groups),
        sets=tuple(sets),
        reference_left=tuple(_without(reference_left, references)),
        other_left=tuple(_without(other_left, others)),
        plain=has_equal_names and not any(pair.open for pair in pairs),
    )


def _forced(reference: Side, texts: Mapping[str, str]) -> dict[str, str]:
    """{name of other: name of reference} that `rename` names in full."""
    by_style = {normalised(name): name for name in reference.shapes}
    forced = {}
    for name, text in texts.items():
        if text == name:
            continue
        if text in reference.shapes:
            forced[name] = text
        elif normalised(text) in by_style:
            forced[name] = by_style[normalised(text)]
    return forced


def _check_forced(reference: Side, other: Side, forced: Mapping[str, str], transform: Mapping[str, Transform]) -> None:
    problems = []
    first: dict[str, str] = {}
    for name, partner in forced.items():
        if first.setdefault(partner, name) != name:
            problems.append(f"{name} and {first[partner]} would both be {partner}")
        if name not in transform and not changes_between(reference, other, partner, name):
            shape = tuple(other.shapes[name])
            reference_shape = tuple(reference.shapes[partner])
            problems.append(f"{name} {shape} and {partner} {reference_shape} differ in shape")
    unknown = without(transform, other.shapes)
    problems += [f"transform names {name}, which is no array of the other model" for name in unknown]
    if problems:
        raise ParameterMatchError("\n  - ".join(["rename and transform do not fit:", *problems]))


def _fixed(equal: Mapping[str, str], forced: Mapping[str, str]) -> dict[str, str]:
    """Return the certain pairs; a renamed array takes the partner of its namesake."""
    fixed = {**equal, **forced}
    taken = set(forced.values())
    for name, partner in equal.items():
        if name not in forced and partner in taken:
            del fixed[name]
    return fixed


def _crowded(side: Side, names: Sequence[str], other: Side, others: Sequence[str]) -> list[str]:
    """Return the names that cannot all find a partner of their size: fewer of the others have it."""
    sizes = [side.size(name) for name in names]
    other_sizes = [other.size(name) for name in others]
    surplus = Counter(sizes) - Counter(other_sizes)  # which drops what is not positive
    return [name for name, size in zip(names, sizes, strict=True) if surplus[size]]


def _paired(
    reference: Side, other: Side, texts: Mapping[str, str], fixed: Mapping[str, str], groups: Sequence[Group]
) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """Pair what is not in a group: {name of other: name of reference}, and the uncertain sets."""
    references, others = _grouped(groups)
    left_out = references | reference.integers - set(fixed.values())
    others_left_out = others | other.integers - fixed.keys()
    names = _without(reference.shapes, left_out)
    partners = _without(other.shapes, others_left_out)
    if len(names) == len(fixed) or len(partners) == len(fixed):
        return dict(fixed), []  # nothing is free on one side
    likeness = Likeness(reference, other, names, partners, texts)
    return pair_by_likeness(reference, other, likeness, fixed)


def _evidence(name: str, fixed: Mapping[str, str], forced: Mapping[str, str]) -> str:
    if name in forced:
        return "rename"
    if name in fixed:
        return "name"
    return "name and shape"


def _grouped(groups: Sequence[Group]) -> tuple[set[str], set[str]]:
    """Return the names of the reference and of the other model that are in groups."""
    references: set[str] = set()
    others: set[str] = set()
    for group in groups:
        if group.of_reference:
            references.add(group.whole)
            others.update(group.parts)
        else:
            others.add(group.whole)
            references.update(group.parts)
    return references, others


def _without(names: Iterable[str], *left_out: Iterable[str]) -> list[str]:
    excluded = set().union(*left_out)
    return [name for name in names if name not in excluded]


def _transformed(pair: Pair, reference: Side, other: Side, transform: Transform | None) -> Pair:
    """Return a pair with the change that the user gave, if any."""
    if transform is None:
        return pair
    shape = tuple(reference.shapes[pair.reference])
    other_shape = tuple(other.shapes[pair.other])
    return pair.taking(_as_rearrangement(transform, shape, other_shape, pair.other), "transform")


def _as_rearrangement(
    transform: Transform, shape: tuple[int, ...], other_shape: tuple[int, ...], name: str
) -> Rearrangement:
    """Read a transform as a change of layout; raises `ParameterMatchError` where it is none."""
    # an array whose elements all differ shows where each of them goes
    marks = np.arange(math.prod(shape)).reshape(shape)
    try:
        result = transform(marks) if callable(transform) else np.transpose(marks, transform)
        result = np.asarray(result)
    except (ValueError, TypeError, IndexError) as error:
        problem = f"transform of {name} fails on an array of shape {shape}: {error}"
        raise ParameterMatchError(problem) from error
    if result.shape != other_shape:
        problem = f"makes {result.shape} of {shape}, but {other_shape} is needed"
        raise ParameterMatchError(f"transform of {name} {problem}")
    for change in rearrangements(shape, other_shape):
        if np.array_equal(change(marks), result):
            return change
    raise ParameterMatchError(f"transform of {name} does more than reshape and permute axes of {shape}")
