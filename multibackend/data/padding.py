"""Sequences of unequal length, padded to a few lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.validation import Problems
from multibackend.data.conversion import as_source
from multibackend.data.fields import concatenate
from multibackend.data.memory import aligned_empty
from multibackend.data.sources import MapSource, rows_of
from multibackend.data.streams import is_stream
from multibackend.errors import DataError

__all__ = ["PaddedSource", "PaddedStream", "pad_to_buckets"]


def pad_to_buckets(
    data: Any, *, fields: Mapping[str, float], lengths: Sequence[int], weights: str | None = "weight"
) -> PaddedSource | PaddedStream:
    """Pad sequences of unequal length to the smallest of a few lengths that fits all examples of a dispatch.

    With weights 0 on the padding the loss of a window, sum(w * l) / sum(w), is that of the tokens
    that are there, so which length is chosen does not show in the result, if the model treats each
    position alone or masks by the weights. A compiling backend compiles once for each length that
    occurs (and once more for a ragged micro-batch).

    Args:
        data: anything that `Experiment(train_data=...)` takes with single examples; or a dict of
            ragged lists.
        fields: the fields that hold sequences, arrays [length, ...], and the value that pads each.
            Those of one example are equally long.
        lengths: ascending; no sequence may be longer than the last.
        weights: the name of a new field, float32 [batch, length]: 1 for what is there, 0 for
            padding; for the loss's `weights=` and the model's `inputs=`. None for no such field,
            where an ignored label does the same.

    Raises:
        ConfigurationError: an argument is wrong.
        DataError: a field is missing or its name is taken; later, a sequence is too long.

    >>> data = {"tokens": [[5, 6, 7], [8]], "labels": [[6, 7, 1], [1]]}
    >>> padded = pad_to_buckets(data, fields={"tokens": 0, "labels": -100}, lengths=(2, 4))
    >>> padded.take(np.array([0, 1]))["labels"].tolist()
    [[6, 7, 1, -100], [1, -100, -100, -100]]
    >>> padded.take(np.array([1]))["weight"].tolist()
    [[1.0, 0.0]]
    """
    source = MapSource(_Columns(data)) if isinstance(data, Mapping) else as_source(data)
    padding = _Padding(source.fields, fields, lengths, weights)
    return PaddedStream(source, padding) if is_stream(source) else PaddedSource(source, padding)


class PaddedSource:
    """Random access to padded sequences; made by `pad_to_buckets`."""

    def __init__(self, source: Any, padding: _Padding) -> None:
        self._source, self._padding = source, padding
        self.fields, self.padded = padding.all_fields, padding.padded

    def __len__(self) -> int:
        return len(self._source)

    def take(self, indices: np.ndarray) -> Fields:
        """The examples at `indices` [n], sequences as arrays [n, length, ...] of one length."""
        return self._padding.join(rows_of(self._source, indices))


class PaddedStream:
    """Padded sequences in an order of their own; made by `pad_to_buckets`."""

    def __init__(self, stream: Any, padding: _Padding) -> None:
        self._stream, self._padding = stream, padding
        self.fields, self.padded = padding.all_fields, padding.padded
        self.read_ahead = getattr(stream, "read_ahead", True)

    def chunks(self, epoch: int, seed: int) -> Iterator[Fields]:
        """The examples of an epoch, not padded yet."""
        return self._stream.chunks(epoch, seed)

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Chunks one below the other, sequences padded to one length."""
        return self._padding.join(chunks)


class _Padding:
    """What is padded, with what, to which lengths."""

    def __init__(
        self, available: Sequence[str], fields: Mapping[str, float], lengths: Sequence[int], weights: str | None
    ) -> None:
        problems = Problems("pad_to_buckets")
        if not isinstance(fields, Mapping) or not fields:
            problems.add(f"fields must map names of fields to the value that pads them, got {fields!r}")
        listed = list(lengths) if isinstance(lengths, Sequence) and not isinstance(lengths, str) else []
        if not listed or not all(problems.integer("lengths", length, minimum=1) for length in listed):
            problems.add(f"lengths must be a sequence of integers >= 1, got {lengths!r}")
        elif sorted(set(listed)) != listed:
            problems.add(f"lengths must ascend, got {lengths!r}")
        if weights is not None:
            problems.field_name("weights", weights)
        problems.raise_if_any()
        missing = [name for name in fields if name not in available]
        if missing:
            raise DataError(f"the data have no field {missing[0]!r} to pad; they have {tuple(available)}")
        if weights in available:
            raise DataError(f"the data have a field {weights!r} already; choose another name with weights=")
        self.padded = frozenset(fields)
        self.all_fields = (*available, *((weights,) if weights is not None else ()))
        self._values, self._lengths, self._weights = dict(fields), [int(length) for length in listed], weights

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Chunks of examples one below the other."""
        plain = [{name: array for name, array in chunk.items() if name not in self.padded} for chunk in chunks]
        rows = concatenate(plain)
        longest = np.array([self._length(chunk) for chunk in chunks])
        bucket = self._bucket(int(longest.max()))
        for name, value in self._values.items():
            rows[name] = _pad([chunk[name] for chunk in chunks], bucket, value)
        if self._weights is not None:
            sizes = [len(next(iter(chunk.values()))) for chunk in chunks]
            rows[self._weights] = (np.arange(bucket) < np.repeat(longest, sizes)[:, None]).astype(np.float32)
        return rows

    def _length(self, chunk: Fields) -> int:
        shapes = {name: chunk[name].shape for name in self._values}
        if any(len(shape) < 2 for shape in shapes.values()) or len({shape[1] for shape in shapes.values()}) > 1:
            listed = ", ".join(f"{name}: {shape[1:]}" for name, shape in shapes.items())
            raise DataError(f"the sequences of one example must be equally long arrays, got the shapes {listed}")
        return next(iter(shapes.values()))[1]

    def _bucket(self, longest: int) -> int:
        for length in self._lengths:
            if longest <= length:
                return length
        raise DataError(
            f"a sequence has the length {longest}, more than the largest of lengths={tuple(self._lengths)}; cut it, or "
            "add a length"
        )


class _Columns:
    """A dict of lists of one length as a map-style dataset."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"every field needs one entry per example, got the lengths {lengths}")
        self._columns, self._length = columns, next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self._columns.items()}


def _pad(arrays: Sequence[np.ndarray], length: int, value: float) -> np.ndarray:
    """Arrays [n, l, ...] of any lengths one below the other: [sum of n, length, ...]."""
    rows, dtype = sum(map(len, arrays)), np.result_type(*{array.dtype for array in arrays})
    result = aligned_empty((rows, length, *arrays[0].shape[2:]), dtype)
    result[...] = value
    row = 0
    for array in arrays:
        result[row : row + len(array), : array.shape[1]] = array
        row += len(array)
    return result
