"""How alike any two arrays of two models are, from their names, places, kinds and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.matching.sides import CANONICAL, Side
from multibackend.matching.words import (
    LEAVES,
    Name,
    index_similarity,
    module_of,
    read_names,
    role_similarity,
    similarity_table,
)

__all__ = ["Likeness"]


class Likeness:
    """How alike any two arrays of two models are, without running them.

    Attributes:
        names, others: the arrays of the reference, as rows, and of the other model, as columns.
        score: [rows, columns], the larger the more alike; a few units at most.
    """

    def __init__(
        self, reference: Side, other: Side, names: Sequence[str], others: Sequence[str], texts: Mapping[str, str]
    ) -> None:
        self.names = list(names)
        self.others = list(others)
        self._row_modules = [module_of(name) for name in names]
        self._column_modules = [module_of(texts[name]) for name in others]
        self._row_positions = _positions(names, reference)
        self._column_positions = _positions(others, other)
        self._is_ordered = reference.ordered and other.ordered
        readings = read_names(self.names)
        other_readings = read_names([texts[name] for name in others])
        kinds = [reference.kind(name) for name in names]
        other_kinds = [other.kind(name) for name in others]
        is_trained = np.array([name in reference.parameters for name in names])
        other_is_trained = np.array([name in other.parameters for name in others])
        # role and place count up to 1 each; the rest counts less, for a user's own module may call its arrays what it
        # likes, and keep as state what the other model trains
        self.score = _name_similarity(readings, other_readings)
        self.score += similarity_table(_leaf_score, readings, other_readings)
        self.score += similarity_table(_kind_score, kinds, other_kinds)
        self.score -= 0.3 * (is_trained[:, None] != other_is_trained[None, :])

    def votes(self, pairs: np.ndarray) -> np.ndarray:
        """Return a bonus [rows, columns] for arrays whose modules hold other arrays of `pairs` [n, 2]."""
        bonus = np.zeros_like(self.score)
        row_modules = self._row_modules
        column_modules = self._column_modules
        for weight in (0.5, 0.25):  # of the module itself, then of the one that it lies in
            _, row_codes, row_sizes = np.unique(row_modules, return_inverse=True, return_counts=True)
            _, column_codes, column_sizes = np.unique(column_modules, return_inverse=True, return_counts=True)
            counts = np.zeros((len(row_sizes), len(column_sizes)))
            np.add.at(counts, (row_codes[pairs[:, 0]], column_codes[pairs[:, 1]]), 1.0)
            # relative to the larger module, lest a module of everything be the partner of every small one
            shares = counts / np.maximum(row_sizes[:, None], column_sizes[None, :])
            bonus += weight * shares[np.ix_(row_codes, column_codes)]
            row_modules = [module_of(module) for module in row_modules]
            column_modules = [module_of(module) for module in column_modules]
        return bonus

    def disorder(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return [rows, columns] in [0, 1]: how far apart they stand in the orders of definition, if both are known."""
        if not self._is_ordered:
            return np.zeros((len(rows), len(columns)))
        places = _relative_ranks(self._row_positions[rows])
        other_places = _relative_ranks(self._column_positions[columns])
        return np.abs(places[:, None] - other_places[None, :])


def _name_similarity(names: Sequence[Name], others: Sequence[Name]) -> np.ndarray:
    """Return how well roles and places in the structure agree: [names, others] in [0, 2]."""
    # once each: a word counts by how few roles have it, however many layers repeat them
    roles = list(dict.fromkeys(name.role for name in names))
    other_roles = list(dict.fromkeys(name.role for name in others))
    rows = [roles.index(name.role) for name in names]
    columns = [other_roles.index(name.role) for name in others]
    by_role = role_similarity(roles, other_roles)[np.ix_(rows, columns)]
    by_place = similarity_table(index_similarity, [name.places for name in names], [name.places for name in others])
    return by_role + by_place


def _leaf_score(name: Name, other: Name) -> float:
    """Score the arrays' roles in their modules: a weight is no bias."""
    if name.leaf == other.leaf:
        return 0.5
    if name.leaf in LEAVES and other.leaf in LEAVES:
        return -0.5
    return 0.0


def _kind_score(kind: str, other: str) -> float:
    """Score the kinds of layers that arrays belong to; an unknown kind says nothing."""
    if "" in (kind, other) or CANONICAL in (kind, other):
        return 0.0
    return 0.3 if kind == other else -0.5


def _positions(names: Sequence[str], side: Side) -> np.ndarray:
    """Return the position of each name in the order of definition."""
    order = {name: position for position, name in enumerate(side.shapes)}
    return np.array([order[name] for name in names], float)


def _relative_ranks(positions: np.ndarray) -> np.ndarray:
    """Return the rank of each position among all, from 0 for the first to 1 for the last."""
    ranks = np.argsort(np.argsort(positions))
    return ranks / max(len(positions) - 1, 1)
