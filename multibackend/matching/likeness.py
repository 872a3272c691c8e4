"""How alike any two arrays of two models are, by names, places and kinds of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.matching.sides import CANONICAL, Side
from multibackend.matching.words import LEAVES, Name, by_place, by_role, module_of, pairwise, read_names

__all__ = ["Likeness"]


class Likeness:
    """How alike any two arrays of two models are, without running them.

    Attributes:
        names, others: the arrays of the reference, as rows, and of the other model, as columns, as
            they were given.
        score: [rows, columns], the larger the more alike; a few units at most.
    """

    def __init__(
        self, reference: Side, other: Side, names: Sequence[str], others: Sequence[str], texts: Mapping[str, str]
    ) -> None:
        self.names = list(names)
        self.others = list(others)
        other_texts = [texts[name] for name in others]
        self._row_modules = _modules_of(names)
        self._column_modules = _modules_of(other_texts)
        readings = read_names(self.names)
        other_readings = read_names(other_texts)
        kinds = [reference.kind(name) for name in names]
        other_kinds = [other.kind(name) for name in others]
        is_trained = np.array([name in reference.parameters for name in names])
        other_is_trained = np.array([name in other.parameters for name in others])
        # role and place count up to 1 each; the rest counts less, for a user's own module may call
        # its arrays what it likes, and keep as state what the other model trains
        self.score = _by_distinct_role(readings, other_readings) + by_place(readings, other_readings)
        self.score += pairwise(_leaf_score, readings, other_readings)
        self.score += pairwise(_kind_score, kinds, other_kinds)
        self.score -= 0.3 * (is_trained[:, None] != other_is_trained[None, :])

    def votes(self, pairs: np.ndarray) -> np.ndarray:
        """Return a bonus [rows, columns] for arrays whose modules hold others of `pairs` [n, 2]."""
        bonus = np.zeros_like(self.score)
        row_modules = self._row_modules
        column_modules = self._column_modules
        for weight in (0.5, 0.25):  # of the module itself, then of the one that it lies in
            _, row_codes, row_sizes = np.unique(row_modules, return_inverse=True, return_counts=True)
            _, column_codes, column_sizes = np.unique(column_modules, return_inverse=True, return_counts=True)
            counts = np.zeros((len(row_sizes), len(column_sizes)))
            np.add.at(counts, (row_codes[pairs[:, 0]], column_codes[pairs[:, 1]]), 1.0)
            # relative to the larger module, lest a module of everything be every small
            # one's partner
            shares = counts / np.maximum(row_sizes[:, None], column_sizes[None, :])
            bonus += weight * shares[np.ix_(row_codes, column_codes)]
            row_modules = _modules_of(row_modules)
            column_modules = _modules_of(column_modules)
        return bonus


def _by_distinct_role(names: Sequence[Name], others: Sequence[Name]) -> np.ndarray:
    """Compare roles, each listed once: a word counts by how few roles, not layers, have it."""
    distinct = {name.role: name for name in names}
    other_distinct = {name.role: name for name in others}
    order = list(distinct)
    rows = [order.index(name.role) for name in names]
    columns = [list(other_distinct).index(name.role) for name in others]
    table = by_role(list(distinct.values()), list(other_distinct.values()))
    return table[np.ix_(rows, columns)]


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
    if kind == other:
        return 0.3
    return -0.5


def _modules_of(names: Sequence[str]) -> list[str]:
    """Return the module that each array or module lies in."""
    return [module_of(name) for name in names]
