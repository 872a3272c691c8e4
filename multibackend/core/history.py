"""The record of a run, one entry per update, kept in columns and read as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import numpy as np

from multibackend.core.growing import GrowingArray

__all__ = ["History", "SkippedWindow", "UpdateRecord", "records", "term_name"]


@dataclass(frozen=True)
class UpdateRecord:
    """One update.

    Attributes:
        update: its number, 1 for the first.
        loss: the weighted mean loss over the window, before the update.
        grad_norm: the global norm of the gradient, before clipping.
        learning_rate: of this update.
        weight: the sum of the weights of the window's loss elements; of several terms the first's.
        examples: in the window.
        epoch: 0 for the first.
        terms: where the loss has several terms, what each adds to it, as "loss/NAME".
    """

    update: int
    loss: float
    grad_norm: float
    learning_rate: float
    weight: float
    examples: int
    epoch: int
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SkippedWindow:
    """A window that made no update.

    Attributes:
        update: the number of the update that it would have made.
        epoch, offset: where the window begins in the data.
        reason: "nonfinite"; "weightless": its weights sum to zero; "overflow": of
            fp16's loss scale.
    """

    update: int
    epoch: int
    offset: int
    reason: str


# The fields of a record in their order, so that a row of columns is the arguments of a record.
_COLUMNS = tuple(column.name for column in fields(UpdateRecord) if column.name != "terms")
_INTEGERS = frozenset({"update", "examples", "epoch"})
_RECORDS_AT_ONCE = 4096


def term_name(name: str, terms: int) -> str:
    """Return the name under which a term is reported: its own, "loss", if alone, else "loss/NAME"."""
    return name if terms == 1 else f"loss/{name}"


def records(columns: Mapping[str, np.ndarray], terms: Sequence[str] = ()) -> Iterator[UpdateRecord]:
    """Read columns of equal length row by row."""
    # tolist() makes Python's own numbers, which records are printed and written as JSON with.
    lists = [columns[name].tolist() for name in (*_COLUMNS, *terms)]
    for row in zip(*lists, strict=True):
        term_values = dict(zip(terms, row[len(_COLUMNS) :], strict=True))
        yield UpdateRecord(*row[: len(_COLUMNS)], terms=term_values)


class History(Sequence[UpdateRecord]):
    """A sequence of `UpdateRecord`; `history["loss"]` is a column as a numpy array, and so is
    `history["loss/NAME"]` where the loss has several terms.

    >>> history = History()
    >>> history.extend(update=np.array([1, 2]), loss=np.array([0.5, 0.25]), grad_norm=np.ones(2),
    ...     learning_rate=np.ones(2), weight=np.ones(2), examples=np.ones(2, int),
    ...     epoch=np.zeros(2, int))
    >>> history[-1].loss, history["loss"].tolist()
    (0.25, [0.5, 0.25])
    """

    def __init__(self, terms: Iterable[str] = ()) -> None:
        self.terms: tuple[str, ...] = tuple(terms)
        self.columns: tuple[str, ...] = (*_COLUMNS, *self.terms)
        self._columns: dict[str, GrowingArray] = {}
        for name in self.columns:
            self._columns[name] = GrowingArray("int64" if name in _INTEGERS else "float64")

    def extend(self, **columns: np.ndarray) -> None:
        """Append updates, given as columns of equal length."""
        for name, column in self._columns.items():
            column.extend(columns[name])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every column, by name; `extend(**arrays)` of an empty history makes it this one."""
        return {name: self[name] for name in self.columns}

    def __len__(self) -> int:
        return len(self._columns["update"])

    def __repr__(self) -> str:
        if not len(self):
            return "<History of no updates>"
        return f"<History of {len(self)} updates: loss {self[0].loss:.4f} to {self[-1].loss:.4f}>"

    def __iter__(self) -> Iterator[UpdateRecord]:
        return self.since(0)

    def since(self, start: int) -> Iterator[UpdateRecord]:
        """Iterate over the records from index `start` on."""
        stop = len(self)
        for first in range(start, stop, _RECORDS_AT_ONCE):  # Python's own numbers take ten times the memory
            part = slice(first, min(first + _RECORDS_AT_ONCE, stop))
            yield from records({name: self[name][part] for name in self.columns}, self.terms)

    @overload
    def __getitem__(self, index: int) -> UpdateRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UpdateRecord]: ...
    @overload
    def __getitem__(self, index: str) -> np.ndarray: ...
    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, str):
            return self._columns[index].rows
        if isinstance(index, slice):
            return list(records({name: self[name][index] for name in self.columns}, self.terms))
        row = {name: self[name][[index]] for name in self.columns}
        return next(records(row, self.terms))
