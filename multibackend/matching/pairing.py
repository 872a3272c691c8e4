"""Pairs of arrays from names, shapes, kinds and order: one assignment for each number of elements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.names import normalised
from multibackend.matching.assignment import assign, exchange_costs, tied_sets
from multibackend.matching.layouts import rearrangements
from multibackend.matching.likeness import Likeness
from multibackend.matching.links import Rearrangement
from multibackend.matching.sides import CANONICAL, Pair, Side
from multibackend.matching.words import pairwise, read_names

__all__ = ["changes_between", "equal_names", "make_pair", "pair_by_likeness"]

_ROUNDS = 3  # of assignments, each with the votes of the one before
_IMPOSSIBLE = 1e3  # far beyond any likeness, but finite, so that every assignment has a cost
_CLOSE = 0.12  # an exchange that costs less than this is not decided by names


@dataclass(frozen=True)
class _Block:
    """Arrays of one number of elements, as rows and columns of a `Likeness`."""

    rows: np.ndarray
    columns: np.ndarray
    allowed: np.ndarray  # [rows, columns], whether shapes and layers let the one become the other
    disorder: np.ndarray  # [rows, columns], the cost of standing elsewhere in the definition

    def cost(self, total: np.ndarray) -> np.ndarray:
        """Return this block's part of a cost that is known for all arrays."""
        return np.where(self.allowed, total[np.ix_(self.rows, self.columns)], _IMPOSSIBLE)


def equal_names(reference: Side, other: Side, texts: Mapping[str, str]) -> dict[str, str]:
    """{name of other: name of reference} where names are equal but for style, role by role, and shapes are equal.

    A role in which the numbers differ (`0, 2, 4` against `0, 1, 2`) is left out as a whole. `texts`
    are the other's names, renamed.
    """
    by_style = {normalised(name): name for name in reference.shapes}
    others_by_style = {normalised(text): name for name, text in texts.items()}
    if len(by_style) < len(reference.shapes) or len(others_by_style) < len(texts):
        return {}  # two names of one model differ in style alone
    pairs = {}
    other_roles = _by_role(others_by_style)
    for role, styles in _by_role(by_style).items():
        if styles.keys() != other_roles.get(role, {}).keys():
            continue
        for style in styles:
            name = by_style[style]
            partner = others_by_style[style]
            if reference.shapes[name] == other.shapes[partner]:
                pairs[partner] = name
    return pairs


def _by_role(names: Iterable[str]) -> dict[tuple[str, ...], dict[str, None]]:
    """Return the names of each role in order, which sets would lose: links have one order in every run."""
    roles: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for name in read_names(list(names)):
        roles[name.role][name.text] = None
    return roles


def changes_between(reference: Side, other: Side, name: str, partner: str) -> tuple[Rearrangement, ...]:
    """The changes of layout that shapes and layers allow: where both layouts are canonical, no axes move."""
    kinds = {reference.kind(name), other.kind(partner)}
    changes = rearrangements(tuple(reference.shapes[name]), tuple(other.shapes[partner]))
    if "" in kinds or (CANONICAL not in kinds and len(kinds) > 1):
        return changes
    return tuple(change for change in changes if not change.moves)


def make_pair(reference: Side, other: Side, name: str, partner: str, evidence: str) -> Pair:
    """A pair; open where shapes allow several changes and a layout is not known."""
    changes = changes_between(reference, other, name, partner)
    known = reference.kind(name) != "" and other.kind(partner) != ""
    if known and reference.shapes[name] == other.shapes[partner]:
        return Pair(name, partner, changes[:1], evidence)
    return Pair(name, partner, changes, evidence, open=len(changes) > 1)


def pair_by_likeness(
    reference: Side, other: Side, likeness: Likeness, fixed: Mapping[str, str]
) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """The best assignment, {name of other: name of reference}, and the sets within which it is not certain.

    `fixed`, pairs that stand already, vote for the arrays beside them. What is certain is judged
    without votes: two arrays of a module that were guessed support each other, right or wrong.
    """
    blocks = _blocks(reference, other, likeness, fixed)
    rows = [likeness.names.index(name) for name in fixed.values()]
    columns = [likeness.others.index(partner) for partner in fixed]
    fixed_pairs = np.array([rows, columns], int).T
    pairs = fixed_pairs
    for attempt in range(_ROUNDS):
        cost = -likeness.score
        if len(pairs):
            cost = cost - likeness.votes(pairs)
        assigned = [_assigned(cost, block) for block in blocks]
        before = pairs
        pairs = np.concatenate([fixed_pairs, *assigned])
        if attempt and np.array_equal(pairs, before):
            break
    partners = dict(pairs.tolist())
    uncertain: list[tuple[str, ...]] = []
    for block in blocks:
        uncertain += _uncertain(likeness, block, partners)
    return {likeness.others[column]: likeness.names[row] for row, column in partners.items()}, uncertain


def _blocks(reference: Side, other: Side, likeness: Likeness, fixed: Mapping[str, str]) -> list[_Block]:
    """Group the arrays that are not fixed by size, which no change of layout alters."""
    rows = _by_size(reference, likeness.names, fixed.values())
    columns = _by_size(other, likeness.others, fixed)

    def is_possible(row: int, column: int) -> bool:
        return bool(changes_between(reference, other, likeness.names[row], likeness.others[column]))

    blocks = []
    for size in sorted(rows.keys() & columns.keys()):
        allowed = pairwise(is_possible, rows[size], columns[size]) > 0
        # among equals the order of definition decides, too little to outvote names; that it did is
        # told by the set of equals being reported as uncertain
        disorder = np.zeros(allowed.shape)
        if reference.ordered and other.ordered:
            disorder = 0.05 * np.abs(_relative_ranks(rows[size])[:, None] - _relative_ranks(columns[size])[None, :])
        blocks.append(_Block(np.array(rows[size]), np.array(columns[size]), allowed, disorder))
    return blocks


def _by_size(side: Side, names: Iterable[str], fixed: Iterable[str]) -> dict[int, list[int]]:
    """Return the indices of names that are not fixed, in their order, by number of elements."""
    taken = set(fixed)
    sizes: dict[int, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if name not in taken:
            sizes[side.size(name)].append(index)
    return sizes


def _relative_ranks(members: Sequence[int]) -> np.ndarray:
    """Return the places of members that are in order, from 0 for the first to 1 for the last."""
    return np.arange(len(members)) / max(len(members) - 1, 1)


def _assigned(cost: np.ndarray, block: _Block) -> np.ndarray:
    """Return the pairs [n, 2] of a block's arrays that cost the least together."""
    block_cost = block.cost(cost) + block.disorder
    taken = assign(block_cost)
    possible = (taken >= 0) & (block_cost[np.arange(len(taken)), taken] < _IMPOSSIBLE / 2)
    return np.stack([block.rows[possible], block.columns[taken[possible]]], axis=1)


def _uncertain(likeness: Likeness, block: _Block, partners: Mapping[int, int]) -> list[tuple[str, ...]]:
    """Return the sets of names whose partners can be exchanged at little cost."""
    rows = [int(row) for row in block.rows if int(row) in partners]
    columns = [partners[row] for row in rows]
    total = np.full(likeness.score.shape, _IMPOSSIBLE)
    total[np.ix_(block.rows, block.columns)] = block.cost(-likeness.score)
    close = exchange_costs(total[np.ix_(rows, columns)]) < _CLOSE
    return tied_sets(close, [likeness.names[row] for row in rows])
