"""From what a user gave as data to a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multibackend.core.validation import shown
from multibackend.data.frames import frame_columns, is_frame
from multibackend.data.sources import ArraySource, MapSource, Source, TableSource
from multibackend.data.streams import IterableSource, Stream, is_stream
from multibackend.errors import DataError

__all__ = ["as_source"]


def as_source(data: Any) -> Source | Stream:
    """Return the source for what a user gave as `train_data` or `eval_data`; raise `DataError`.

    A dict of arrays, a data frame, a table with columns, a map-style dataset, an iterable or a function that
    returns an iterator, asked for in this order; a `Source` or a `Stream` is returned as it is. The columns of a
    data frame (pandas, polars) are fields.
    """
    if isinstance(data, str | bytes | type):  # which have a length and parts too
        raise _no_data(data)
    has_random_access = hasattr(data, "take") and hasattr(data, "__len__")
    if hasattr(data, "fields") and (is_stream(data) or has_random_access):
        return data
    if is_frame(data):
        data = frame_columns(data)
    if isinstance(data, Mapping):
        return ArraySource(data)
    indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    # A table is indexed too, but reads a batch in one call.
    if indexed and hasattr(data, "column_names") and hasattr(data, "with_format"):
        return TableSource(data)
    if indexed:
        try:
            return MapSource(data)
        except NotImplementedError:  # torch's IterableDataset inherits one that it does not have
            return IterableSource(data)
    if hasattr(data, "__iter__") or callable(data):
        # What a function returns shows when it is called.
        return IterableSource(data)  # pyright: ignore[reportArgumentType]
    raise _no_data(data)


def _no_data(data: object) -> DataError:
    return DataError(
        "data must be a dict of arrays, a data frame, a map-style dataset (len and []), an iterable of examples or "
        f"a function that returns one, got {type(data).__name__}: {shown(data)}"
    )
