"""Pairs of arrays from names, shapes, kinds and order: an assignment problem for each number of elements."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.core.names import normalised
from multibackend.matching.assignment import assign
from multibackend.matching.layouts import rearrangements
from multibackend.matching.links import Rearrangement
from multibackend.matching.sides import CANONICAL, Pair, Side
from multibackend.matching.words import LEAVES, Name, index_similarity, leaf_of, module_of, read_names, role_similarity

__all__ = ["Likeness", "changes_between", "equal_names", "make_pair", "pair_by_likeness"]

_ROUNDS = 3
_IMPOSSIBLE = 1e3
_TELLING = 0.12  # an exchange that costs less than this is not decided by names


def equal_names(reference: Side, other: Side, texts: Mapping[str, str]) -> dict[str, str]:
    """{name of other: name of reference} where names are equal but for style, role by role, and shapes are equal.

    A role in which the numbers differ (`0, 2, 4` against `0, 1, 2`) is left out as a whole. `texts` are the other's
    names, renamed.
    """
    ours = {normalised(name): name for name in reference.shapes}
    theirs = {normalised(text): name for name, text in texts.items()}
    if len(ours) < len(reference.shapes) or len(theirs) < len(texts):
        return {}
    roles = [Counter(zip((n.role for n in read_names(list(names))), names, strict=True)) for names in (ours, theirs)]
    whole: dict[tuple[str, ...], set[str]] = defaultdict(set)
    there: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for role, name in roles[0]:
        whole[role].add(name)
    for role, name in roles[1]:
        there[role].add(name)
    same = [name for role, names in whole.items() if names == there.get(role) for name in names]
    return {theirs[name]: ours[name] for name in same if reference.shapes[ours[name]] == other.shapes[theirs[name]]}


def changes_between(reference: Side, other: Side, name: str, partner: str) -> tuple[Rearrangement, ...]:
    """The changes of layout that shapes and layers allow: where both layouts are canonical, no axes move."""
    kinds = reference.kind(name), other.kind(partner)
    changes = rearrangements(tuple(reference.shapes[name]), tuple(other.shapes[partner]))
    if "" in kinds or (CANONICAL not in kinds and kinds[0] != kinds[1]):
        return changes
    return tuple(change for change in changes if not change.moves)


def make_pair(reference: Side, other: Side, name: str, partner: str, evidence: str) -> Pair:
    """A pair; open where shapes allow several changes and a layout is not known."""
    changes = changes_between(reference, other, name, partner)
    known = reference.kind(name) != "" and other.kind(partner) != ""
    if known and reference.shapes[name] == other.shapes[partner]:
        return Pair(name, partner, changes[:1], evidence)
    return Pair(name, partner, changes, evidence, open=len(changes) > 1)


class Likeness:
    """How alike any two arrays of two models are, without running them."""

    def __init__(
        self, reference: Side, other: Side, names: Sequence[str], others: Sequence[str], texts: Mapping[str, str]
    ) -> None:
        self.names, self.others = list(names), list(others)
        ours, theirs = read_names(list(names)), read_names([texts[name] for name in others])
        self._modules = [module_of(name) for name in names], [module_of(texts[name]) for name in others]
        self.score = _by_role(ours, theirs) + _by_place(ours, theirs)
        self.score += _by_leaf([leaf_of(n.text) for n in ours], [leaf_of(n.text) for n in theirs])
        kinds = [reference.kind(n) for n in names], [other.kind(n) for n in others]
        self.score += _by_kind(*kinds)
        trained = (
            np.array([n in reference.parameters for n in names]),
            np.array([n in other.parameters for n in others]),
        )
        self.score -= 0.3 * (trained[0][:, None] != trained[1][None, :])
        self.rank = None
        if reference.ordered and other.ordered:
            self.rank = _ranks(names, reference), _ranks(others, other)

    def votes(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """A bonus for arrays whose modules hold other arrays that were paired."""
        bonus = np.zeros_like(self.score)
        modules = self._modules
        for share in (0.5, 0.25):
            codes = [np.unique(side, return_inverse=True) for side in modules]
            table = np.zeros((len(codes[0][0]), len(codes[1][0])))
            np.add.at(table, (codes[0][1][rows], codes[1][1][columns]), 1.0)
            most = np.maximum(np.bincount(codes[0][1])[:, None], np.bincount(codes[1][1])[None, :])
            bonus += share * (table / most)[np.ix_(codes[0][1], codes[1][1])]
            modules = [module_of(m) for m in modules[0]], [module_of(m) for m in modules[1]]
        return bonus


def pair_by_likeness(
    reference: Side, other: Side, likeness: Likeness, fixed: Mapping[str, str]
) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """The best assignment, {name of other: name of reference}, and the sets within which it is not certain.

    `fixed`, pairs that stand already, vote for the arrays beside them. What is certain is judged without votes: two
    arrays of a module that were guessed support each other, right or wrong.
    """
    names, others = likeness.names, likeness.others
    where = {name: i for i, name in enumerate(names)}, {name: j for j, name in enumerate(others)}
    blocks = _blocks(
        reference, other, [n for n in names if n not in fixed.values()], [n for n in others if n not in fixed]
    )
    rows = np.array([where[0][name] for name in fixed.values()], int)
    columns = np.array([where[1][name] for name in fixed], int)
    blocks = [
        (np.array([where[0][n] for n in a]), np.array([where[1][n] for n in b]), allowed) for a, b, allowed in blocks
    ]
    found = rows, columns
    cost = np.zeros((0, 0))
    for step in range(_ROUNDS):
        cost = -likeness.score - (likeness.votes(*found) if len(found[0]) else 0.0)
        parts = [_solve(cost, *block, likeness.rank) for block in blocks]
        new = np.concatenate([rows, *(part[0] for part in parts)]), np.concatenate([columns, *(p[1] for p in parts)])
        if step and np.array_equal(new[0], found[0]) and np.array_equal(new[1], found[1]):
            break
        found = new
    pairs = {others[int(j)]: names[int(i)] for i, j in zip(*found, strict=True)}
    sets = [
        s
        for block in blocks
        for s in _uncertain(-likeness.score, *block, dict(zip(found[0].tolist(), found[1].tolist(), strict=True)))
    ]
    return pairs, [tuple(names[i] for i in found) for found in sets]


Block = tuple[Sequence[str], Sequence[str], np.ndarray]


def _blocks(reference: Side, other: Side, names: Sequence[str], others: Sequence[str]) -> list[Block]:
    """Arrays of one number of elements, and which of them can become which."""
    ours, theirs = defaultdict(list), defaultdict(list)
    for name in names:
        ours[math.prod(reference.shapes[name])].append(name)
    for name in others:
        theirs[math.prod(other.shapes[name])].append(name)
    blocks: list[Block] = []
    for size in sorted(ours.keys() & theirs.keys()):
        allowed = np.array([[bool(changes_between(reference, other, a, b)) for b in theirs[size]] for a in ours[size]])
        blocks.append((ours[size], theirs[size], allowed))
    return blocks


def _solve(
    cost: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    allowed: np.ndarray,
    rank: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    block = np.where(allowed, cost[np.ix_(rows, columns)], _IMPOSSIBLE)
    if rank is not None:  # among equals the order of definition decides, and says so by being reported as uncertain
        block = block + 0.05 * np.abs(_relative(rank[0][rows])[:, None] - _relative(rank[1][columns])[None, :])
    taken = assign(block)
    keep = (taken >= 0) & (block[np.arange(len(rows)), taken] < _IMPOSSIBLE / 2)
    return rows[keep], columns[taken[keep]]


def _uncertain(
    cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, allowed: np.ndarray, found: Mapping[int, int]
) -> list[list[int]]:
    """Sets of rows whose partners can be exchanged at little cost."""
    full = np.full(cost.shape, _IMPOSSIBLE)
    full[np.ix_(rows, columns)] = np.where(allowed, cost[np.ix_(rows, columns)], _IMPOSSIBLE)
    taken = [int(i) for i in rows if int(i) in found]
    partners = [found[i] for i in taken]
    block = full[np.ix_(taken, partners)]
    own = np.diag(block)
    exchange = block + block.T - own[:, None] - own[None, :]
    close = (exchange < _TELLING) & ~np.eye(len(taken), dtype=bool)
    left, sets = set(range(len(taken))), []
    while left:  # connected components
        edge, members = [left.pop()], []
        while edge:
            i = edge.pop()
            members.append(i)
            reached = {int(j) for j in np.flatnonzero(close[i])} & left
            left -= reached
            edge.extend(reached)
        if len(members) > 1:
            sets.append([taken[i] for i in sorted(members)])
    return sets


def _by_role(ours: Sequence[Name], theirs: Sequence[Name]) -> np.ndarray:
    roles = [list(dict.fromkeys(name.role for name in names)) for names in (ours, theirs)]
    table = role_similarity(*roles)
    index = [{role: i for i, role in enumerate(found)} for found in roles]
    return table[np.ix_([index[0][n.role] for n in ours], [index[1][n.role] for n in theirs])]


def _by_place(ours: Sequence[Name], theirs: Sequence[Name]) -> np.ndarray:
    places = [list(dict.fromkeys(name.places for name in names)) for names in (ours, theirs)]
    table = np.array([[index_similarity(a, b) for b in places[1]] for a in places[0]])
    index = [{place: i for i, place in enumerate(found)} for found in places]
    return table[np.ix_([index[0][n.places] for n in ours], [index[1][n.places] for n in theirs])]


def _by_leaf(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    def score(a: str, b: str) -> float:
        if a == b:
            return 0.5
        return -0.5 if a in LEAVES and b in LEAVES else 0.0

    return np.array([[score(a, b) for b in theirs] for a in ours])


def _by_kind(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    def score(a: str, b: str) -> float:
        if "" in (a, b) or CANONICAL in (a, b):
            return 0.0
        return 0.3 if a == b else -0.5

    return np.array([[score(a, b) for b in theirs] for a in ours])


def _ranks(names: Sequence[str], side: Side) -> np.ndarray:
    order = {name: i for i, name in enumerate(side.shapes)}
    return np.array([order[name] for name in names], float)


def _relative(ranks: np.ndarray) -> np.ndarray:
    order = np.argsort(np.argsort(ranks))
    return order / max(len(ranks) - 1, 1)
