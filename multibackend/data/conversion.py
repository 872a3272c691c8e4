"""From what a user gave as data to a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multibackend.data.sources import ArraySource, MapSource, Source, TableSource
from multibackend.data.streams import IterableSource, Stream, is_stream
from multibackend.errors import DataError

__all__ = ["as_source"]


def as_source(data: Any) -> Source | Stream:
    """The source for what a user gave as `train_data` or `eval_data`; raises `DataError`.

    A dict of arrays, a table with columns, a map-style dataset, an iterable or a function that
    returns an iterator, asked for in this order; or something that is a `Source` or a `Stream`
    already.
    """
    if hasattr(data, "fields") and (is_stream(data) or (hasattr(data, "take") and hasattr(data, "__len__"))):
        return data
    if isinstance(data, Mapping):
        return ArraySource(data)
    indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if indexed and hasattr(data, "column_names") and hasattr(data, "with_format"):
        return TableSource(data)
    if indexed:
        try:
            return MapSource(data)
        except NotImplementedError:  # torch's IterableDataset inherits a __getitem__ that it does not have
            return IterableSource(data)
    if hasattr(data, "__iter__") or callable(data):
        return IterableSource(data)  # pyright: ignore[reportArgumentType] - what it returns shows when it is called
    raise DataError(
        "data must be a dict of arrays, a map-style dataset (len and []), an iterable of examples or a function that "
        f"returns one, got {type(data).__name__}: {data!r:.80}"
    )
