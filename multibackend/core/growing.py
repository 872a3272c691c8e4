"""An array that grows at its end, for what a run records at every update."""

from __future__ import annotations

import numpy as np

__all__ = ["GrowingArray"]

_FIRST_ROWS = 256


class GrowingArray:
    """Rows of one dtype and shape, appended a few at a time and read as one array.

    Takes the bytes of its rows, and room for as many again that the system hands out only as it is
    filled: a list of the arrays that were appended takes ten times as many where each has one row.

    >>> column = GrowingArray("float64")
    >>> column.extend(np.array([0.5, 0.25]))
    >>> column.extend(np.array([0.125]))
    >>> column.rows.tolist(), len(column)
    ([0.5, 0.25, 0.125], 3)
    """

    def __init__(self, dtype: str, shape: tuple[int, ...] = ()) -> None:
        self._rows = np.empty((0, *shape), dtype)
        self._length = 0

    def extend(self, rows: np.ndarray) -> None:
        """Append rows."""
        stop = self._length + len(rows)
        if stop > len(self._rows):
            # twofold: each row is copied about once, however many come
            size = max(stop, 2 * len(self._rows), _FIRST_ROWS)
            grown = np.empty((size, *self._rows.shape[1:]), self._rows.dtype)
            grown[: self._length] = self.rows
            self._rows = grown
        self._rows[self._length : stop] = rows
        self._length = stop

    @property
    def rows(self) -> np.ndarray:
        """All rows so far; a view, which later rows leave as it is."""
        return self._rows[: self._length]

    def __len__(self) -> int:
        return self._length
