"""The assignment problem: rows to columns at the least total cost."""

from __future__ import annotations

import numpy as np

__all__ = ["assign"]


def assign(cost: np.ndarray) -> np.ndarray:
    """For each row of `cost` [n, m] its column, -1 for rows that are left over where n > m.

    Shortest augmenting paths, O(n^2 m), the inner loop over columns being one vector operation (Jonker and Volgenant
    1987, "A shortest augmenting path algorithm for dense and sparse linear assignment problems").

    >>> assign(np.array([[1.0, 2.0], [1.0, 5.0]])).tolist()
    [1, 0]
    """
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T), np.full(cost.shape[0], -1)
        rows[columns] = np.arange(cost.shape[1])
        return rows
    n, m = cost.shape
    u, v = np.zeros(n), np.zeros(m)
    owner = np.full(m, -1)  # the row that has each column
    for start in range(n):
        distance, before = np.full(m, np.inf), np.full(m, -1)
        done = np.zeros(m, bool)
        row, column, shortest = start, -1, 0.0
        while True:
            reduced = shortest + cost[row] - u[row] - v
            better = ~done & (reduced < distance)
            distance[better], before[better] = reduced[better], column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            shortest = float(distance[column])
            done[column] = True
            if owner[column] < 0:
                break
            row = int(owner[column])
        closed = done & (owner >= 0)
        closed[column] = False
        u[start] += shortest
        u[owner[closed]] += shortest - distance[closed]
        v[closed] -= shortest - distance[closed]
        while column >= 0:  # give every column on the path to the row before it
            previous = int(before[column])
            owner[column] = start if previous < 0 else owner[previous]
            column = previous
    result = np.full(n, -1)
    result[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return result
