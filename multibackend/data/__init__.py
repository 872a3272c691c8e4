"""Where examples come from."""

from multibackend.data.sources import ArraySource, MapSource, Source, as_source

__all__ = ["ArraySource", "MapSource", "Source", "as_source"]
