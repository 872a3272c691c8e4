"""Values for which open choices do not matter: what may be exchanged is equal, what may be transposed is symmetric."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.matching.layouts import rearrangements
from multibackend.matching.links import Link
from multibackend.matching.sides import Proposal, Side

__all__ = ["draw"]


def draw(proposal: Proposal, reference: Side, other: Side, initial: Arrays, *, seed: int) -> dict[str, np.ndarray]:
    """Random values for the reference, as large as its initial ones, with the symmetries of all that is open.

    Model state keeps its values, because running variances cannot be anything.
    """
    rng = np.random.default_rng(seed)
    values = {name: _like(array, rng) if name in reference.parameters else array for name, array in initial.items()}
    partner = {pair.reference: pair for pair in proposal.pairs}
    inside = {name for members in proposal.sets for name in members}
    alone = [(name,) for name, pair in partner.items() if pair.open and name not in inside]
    for members in [*proposal.sets, *alone]:
        if any(name in reference.parameters for name in members):
            base = values[members[0]]
            shapes: tuple[Any, list[Any]] = (tuple(base.shape), [tuple(values[name].shape) for name in members])
            others = [tuple(other.shapes[partner[name].other]) for name in members]
            allowed = None if len(members) > 1 else partner[members[0]].changes
            labels = _orbits(base.size, _permutations(*shapes, others, allowed))
            mean = float(np.mean([initial[name].mean() for name in members]))
            shared = _by_label(base - base.mean() + mean, labels)
            values.update(
                {name: rearrangements(*(shapes[0], tuple(values[name].shape)))[0](shared) for name in members}
            )
    for group in proposal.groups:
        if group.open:
            _draw_group(group.whole, group.parts, group.of_reference, [links for _, links in group.ways], values, rng)
    return values


def _like(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random, about the mean of an array and as spread, or spread a little where it was constant."""
    array = np.asarray(array, np.float64)
    least = 0.1 if array.ndim < 2 else 0.3 / math.sqrt(max(array.shape))
    spread = min(max(float(array.std()), least), 1.0) if array.size else 0.0
    mean = float(array.mean()) if array.ndim < 2 and array.size else 0.0
    return mean + spread * rng.standard_normal(array.shape)


def _permutations(
    base: tuple[int, ...], shapes: list[tuple[int, ...]], others: list[tuple[int, ...]], allowed: tuple | None
) -> Iterable[np.ndarray]:
    """The permutations of an array's elements under which its values must not change."""
    marks = np.arange(math.prod(base)).reshape(base)
    for there in dict.fromkeys(others):
        first = None
        for here in dict.fromkeys(shapes):
            placed = rearrangements(base, here)[0](marks)
            for change in rearrangements(here, there) if allowed is None else allowed:
                moved = change(placed).reshape(-1)
                if first is None:
                    first = np.argsort(moved)
                else:
                    yield moved[first]  # what stands where mark i stood


def _orbits(size: int, permutations: Iterable[np.ndarray]) -> np.ndarray:
    """For each element the least element that it can be exchanged with."""
    labels, found = np.arange(size), list(permutations)
    while True:
        before = labels
        for permutation in found:
            low = np.minimum(labels, labels[permutation])
            new = low.copy()
            np.minimum.at(new, permutation, low)
            labels = new
        labels = labels[labels]
        if np.array_equal(before, labels):
            return labels


def _by_label(array: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return array.reshape(-1)[labels].reshape(array.shape)


def _draw_group(
    whole: str,
    parts: tuple[str, ...],
    of_reference: bool,
    ways: list[tuple[Link, ...]],
    values: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Values of a whole that make the same parts whichever way it is cut, or of parts that make the same whole."""
    if of_reference:
        array = values[whole]
        marks = np.arange(array.size).reshape(array.shape)
        found = [np.concatenate([_part(links, part, marks) for part in parts]) for links in ways]
        first = np.argsort(found[0])
        values[whole] = _by_label(array, _orbits(array.size, (moved[first] for moved in found[1:])))
        return
    sizes = [values[part].size for part in parts]
    starts = np.cumsum([0, *sizes])
    marks = {p: (starts[i] + np.arange(sizes[i])).reshape(values[p].shape) for i, p in enumerate(parts)}
    total = int(starts[-1])
    joined = []
    for links in ways:
        array = np.zeros(links[0].other_shape, np.int64)
        for link in links:
            link.other_part.put(array, link.to_other(marks[link.reference]))  # type: ignore[union-attr]
        joined.append(array.reshape(-1))
    first = np.argsort(joined[0])
    labels = _orbits(total, (moved[first] for moved in joined[1:]))
    flat = np.concatenate([values[part].reshape(-1) for part in parts])[labels]
    for i, part in enumerate(parts):
        values[part] = flat[starts[i] : starts[i + 1]].reshape(values[part].shape)


def _part(links: tuple[Link, ...], part: str, marks: np.ndarray) -> np.ndarray:
    return next(link.to_other(marks) for link in links if link.other == part).reshape(-1)
