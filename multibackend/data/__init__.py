"""Where examples come from."""

from multibackend.data.conversion import as_source
from multibackend.data.padding import PaddedSource, PaddedStream, pad_to_buckets
from multibackend.data.sources import ArraySource, MapSource, Source, TableSource
from multibackend.data.streams import IterableSource, Stream

__all__ = [
    "ArraySource",
    "IterableSource",
    "MapSource",
    "PaddedSource",
    "PaddedStream",
    "Source",
    "Stream",
    "TableSource",
    "as_source",
    "pad_to_buckets",
]
