"""Assign rows to columns at the least cost, and tell which might as well exchange them.

`scipy.optimize.linear_sum_assignment` solves the same problem, but scipy is no dependency of the
core, and one function is no reason to make it one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["assign", "exchange_costs", "tied_sets"]


def assign(cost: np.ndarray) -> np.ndarray:
    """For each row of `cost` [n, m] its column, -1 for rows that are left over where n > m.

    Shortest augmenting paths, O(n^2 m), the inner loop over columns being one vector operation
    (Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse
    linear assignment problems").

    >>> assign(np.array([[1.0, 2.0], [1.0, 5.0]])).tolist()
    [1, 0]
    """
    if cost.shape[0] > cost.shape[1]:
        columns = assign(cost.T)
        rows = np.full(cost.shape[0], -1)
        rows[columns] = np.arange(cost.shape[1])
        return rows
    n, m = cost.shape
    row_price = np.zeros(n)
    column_price = np.zeros(m)
    owner = np.full(m, -1)  # the row that has each column
    for start in range(n):
        distance = np.full(m, np.inf)
        before = np.full(m, -1)  # the column before each one on the shortest path to it
        done = np.zeros(m, bool)
        row = start
        column = -1
        shortest = 0.0
        while True:  # Dijkstra's algorithm: the prices keep reduced costs from being negative
            reduced = shortest + cost[row] - row_price[row] - column_price
            better = ~done & (reduced < distance)
            distance[better] = reduced[better]
            before[better] = column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            shortest = float(distance[column])
            done[column] = True
            if owner[column] < 0:
                break
            row = int(owner[column])
        closed = done & (owner >= 0)
        closed[column] = False
        row_price[start] += shortest
        row_price[owner[closed]] += shortest - distance[closed]
        column_price[closed] -= shortest - distance[closed]
        while column >= 0:  # give every column on the path to the row before it
            previous = int(before[column])
            owner[column] = start if previous < 0 else owner[previous]
            column = previous
    result = np.full(n, -1)
    result[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return result


def exchange_costs(cost: np.ndarray) -> np.ndarray:
    """What it costs more if rows i and j of [n, n] exchange columns, each having that of the diagonal.

    >>> exchange_costs(np.array([[1.0, 2.0], [1.0, 5.0]])).tolist()
    [[0.0, -3.0], [-3.0, 0.0]]
    """
    assigned = np.diag(cost)
    return cost + cost.T - assigned[:, None] - assigned[None, :]


def tied_sets(tied: np.ndarray, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The sets of two or more names that a relation [n, n] ties, directly or through others.

    >>> tied_sets(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], bool), ["a", "b", "c"])
    [('a', 'c')]
    """
    sets = []
    left = list(range(len(tied)))
    while left:
        members = [left.pop(0)]
        for member in members:  # which grows until nothing left is tied to any of them
            members += [row for row in left if tied[member, row]]
            left = [row for row in left if not tied[member, row]]
        if len(members) > 1:
            sets.append(tuple(names[row] for row in sorted(members)))
    return sets
