"""Values for which open choices do not matter: equal where exchangeable, else symmetric.

Elements that an open choice may exchange are found by sending marks, the elements' own numbers,
through every choice: marks that arrive in one place belong to elements that must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.matching.layouts import rearrangements
from multibackend.matching.sides import Group, Pair, Proposal, Side

__all__ = ["draw"]


def draw(proposal: Proposal, reference: Side, other: Side, initial: Arrays, *, seed: int) -> dict[str, np.ndarray]:
    """Draw values for the reference, as large as its initial ones, symmetric in all that is open.

    Model state keeps its values, because running variances cannot be anything.
    """
    rng = np.random.default_rng(seed)
    values = dict(initial)
    for name, array in initial.items():
        if name in reference.parameters:
            values[name] = _like(array, rng)
    pairs = {pair.reference: pair for pair in proposal.pairs}
    in_sets = set().union(*proposal.sets)
    alone = [(name,) for name, pair in pairs.items() if pair.open and name not in in_sets]
    for members in (*proposal.sets, *alone):
        if any(name in reference.parameters for name in members):
            values.update(_symmetric([pairs[name] for name in members], other, values, initial))
    for group in proposal.groups:
        if group.open and group.of_reference:
            values[group.whole] = _symmetric_whole(group, values[group.whole])
        elif group.open:
            values.update(_symmetric_parts(group, values))
    return values


def _like(array: Array, rng: np.random.Generator) -> Array:
    """Draw an array as spread as another and about its mean, spread a little if that is constant."""
    array = np.asarray(array, np.float64)
    if not array.size:
        return rng.standard_normal(array.shape)
    least = 0.1
    mean = float(array.mean())  # a gain stays about 1
    if array.ndim >= 2:
        least = 0.3 / math.sqrt(max(array.shape))
        mean = 0.0
    spread = min(max(float(array.std()), least), 1.0)
    return mean + spread * rng.standard_normal(array.shape)


def _symmetric(members: Sequence[Pair], other: Side, values: Arrays, initial: Arrays) -> Arrays:
    """Return equal values for arrays that may be exchanged, unchanged by every open layout."""
    names = [pair.reference for pair in members]
    # the first one's values about the mean of all, so that none is far from where it started
    base = values[names[0]]
    mean = float(np.mean([initial[name].mean() for name in names]))
    labels = _orbits(base.size, _open_permutations(members, other, values))
    shared = (base - base.mean() + mean).reshape(-1)[labels].reshape(base.shape)
    return {name: rearrangements(base.shape, values[name].shape)[0](shared) for name in names}


def _open_permutations(members: Sequence[Pair], other: Side, values: Arrays) -> list[Array]:
    """Return the permutations of the first member's elements that must not change its values."""
    shapes = [values[pair.reference].shape for pair in members]
    marks = np.arange(math.prod(shapes[0])).reshape(shapes[0])
    permutations = []
    for other_shape in dict.fromkeys(tuple(other.shapes[pair.other]) for pair in members):
        arrangements = []
        for shape in dict.fromkeys(shapes):
            changes = rearrangements(shape, other_shape)
            if len(members) == 1:  # which may have lost some of the changes that shapes allow
                changes = members[0].changes
            placed = rearrangements(shapes[0], shape)[0](marks)
            arrangements += [change(placed).reshape(-1) for change in changes]
        permutations += _permutations(arrangements)
    return permutations


def _symmetric_whole(group: Group, array: Array) -> Array:
    """Return values of a whole that make the same parts whichever way it is cut."""
    marks = np.arange(array.size).reshape(array.shape)
    arrangements = []
    for _, links in group.ways:
        pieces = {link.other: link.to_other(marks).reshape(-1) for link in links}
        arrangements.append(np.concatenate([pieces[part] for part in group.parts]))
    labels = _orbits(array.size, _permutations(arrangements))
    return array.reshape(-1)[labels].reshape(array.shape)


def _symmetric_parts(group: Group, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return values of parts that make the same whole whichever way they are put together."""
    flat = np.concatenate([values[part].reshape(-1) for part in group.parts])
    marks = {}
    start = 0
    for part in group.parts:
        array = values[part]
        marks[part] = np.arange(start, start + array.size).reshape(array.shape)
        start += array.size
    arrangements = []
    for _, links in group.ways:
        whole = np.zeros(links[0].other_shape, np.int64)
        for link in links:
            assert link.other_part is not None
            link.other_part.put(whole, link.to_other(marks[link.reference]))
        arrangements.append(whole.reshape(-1))
    symmetric = flat[_orbits(flat.size, _permutations(arrangements))]
    return {part: symmetric[marks[part]] for part in group.parts}


def _permutations(arrangements: Sequence[Array]) -> list[Array]:
    """Return, for each arrangement but the first, the mark that stands where the first has mark i."""
    if not arrangements:
        return []
    home = np.argsort(arrangements[0])
    return [marks[home] for marks in arrangements[1:]]


def _orbits(size: int, permutations: Sequence[Array]) -> Array:
    """For each element the least element that it can be exchanged with."""
    labels = np.arange(size)
    while True:
        before = labels
        for permutation in permutations:
            lower = np.minimum(labels, labels[permutation])
            labels = lower.copy()
            np.minimum.at(labels, permutation, lower)
        # labels of labels, lest a long cycle take a round for each element
        labels = labels[labels]
        if np.array_equal(before, labels):
            return labels
