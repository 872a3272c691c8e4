"""Which fields of the data are indices into a table of the model, and the check that they lie inside it.

Frameworks part over an index that does not: torch raises what names no field, JAX wraps negative
ones round and reads NaN, or the last row, for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import DataError

__all__ = ["IndexRange", "check_indices"]


@dataclass(frozen=True)
class IndexRange:
    """A table that is indexed with a field as the data have it.

    Attributes:
        table: its canonical name, for example "embed.weight".
        rows: how many it has: indices are in [0, rows).
    """

    table: str
    rows: int


def check_indices(
    batch: Arrays, ranges: Mapping[str, IndexRange], example_of: Callable[[int], str] | None = None
) -> None:
    """Check that indices lie inside their tables.

    Args:
        batch: fields on the host, [batch, ...].
        ranges: by field; one that the batch lacks is not looked for.
        example_of: names the example in a row of the batch, for the message; the row's number
            unless given.

    Raises:
        DataError: the first index that does not, by field, value and example.

    >>> check_indices({"ids": np.array([[0, 4], [1, 5]])}, {"ids": IndexRange("embed.weight", 5)})
    Traceback (most recent call last):
    multibackend.errors.DataError: the index 5 in the field 'ids', of example 1, is outside [0, 5)...
    """
    for field, table in ranges.items():
        values = batch.get(field)
        # two passes without new memory settle the usual case, of every window
        if values is None or values.size == 0 or (values.min() >= 0 and values.max() < table.rows):
            continue
        outside = np.argwhere((values < 0) | (values >= table.rows))
        place = tuple(outside[0])
        row = int(place[0])
        example = f"example {row}" if example_of is None else example_of(row)
        raise DataError(
            f"the index {values[place]} in the field {field!r}, of {example}, is outside [0, {table.rows}): "
            f"the model looks it up in {table.table!r}, which has {table.rows} rows. Map the indices into that range, "
            "give the table more rows, or, where such an index means that nothing is there, replace it in the model "
            "before it is looked up"
        )
