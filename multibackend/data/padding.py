"""Sequences of unequal length, padded to a few lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields, without
from multibackend.core.validation import Problems, is_real
from multibackend.data.conversion import as_source
from multibackend.data.fields import concatenate, empty_rows
from multibackend.data.sources import rows_of
from multibackend.data.streams import is_stream
from multibackend.errors import DataError

__all__ = ["PaddedSource", "PaddedStream", "pad_to_buckets"]


def pad_to_buckets(
    data: Any, *, fields: Mapping[str, float], lengths: Sequence[int], weights: str | None = "weight"
) -> PaddedSource | PaddedStream:
    """Pad sequences of unequal length to the smallest of a few lengths that fits a dispatch.

    With weights 0 on the padding the loss of a window, sum(w * l) / sum(w), is that of the tokens
    that are there, so which length is chosen does not show in the result, if the model treats each
    position alone or masks by the weights. A compiling backend compiles once for each length that
    occurs (and once more for a ragged micro-batch).

    Args:
        data: whatever `Experiment(train_data=...)` takes as single examples; a dict of ragged
            lists.
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
    # A dict of ragged lists is no `ArraySource`: its columns have no array before they are padded.
    if isinstance(data, Mapping):
        data = _Columns(data)
    source = as_source(data)
    padding = _Padding(source.fields, fields, lengths, weights)
    if is_stream(source):
        return PaddedStream(source, padding)
    return PaddedSource(source, padding)


class PaddedSource:
    """Random access to padded sequences; made by `pad_to_buckets`."""

    def __init__(self, source: Any, padding: _Padding) -> None:
        self._source = source
        self._padding = padding
        self.fields = padding.all_fields
        self.padded = padding.padded

    def __len__(self) -> int:
        return len(self._source)

    def take(self, indices: np.ndarray) -> Fields:
        """Return the examples at `indices` [n], sequences as arrays [n, length, ...]."""
        return self._padding.join(rows_of(self._source, indices))


class PaddedStream:
    """Padded sequences in an order of their own; made by `pad_to_buckets`."""

    def __init__(self, stream: Any, padding: _Padding) -> None:
        self._stream = stream
        self._padding = padding
        self.fields = padding.all_fields
        self.padded = padding.padded
        self.read_ahead = getattr(stream, "read_ahead", True)

    def chunks(self, epoch: int, seed: int) -> Iterator[Fields]:
        """Iterate over the examples of an epoch, not padded yet."""
        # Padded by `join`, which alone sees all that a dispatch has to fit.
        return self._stream.chunks(epoch, seed)

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Put chunks one below the other, sequences padded to one length."""
        return self._padding.join(chunks)


class _Padding:
    """What is padded, with what, to which lengths."""

    def __init__(
        self, available: Sequence[str], fields: Mapping[str, float], lengths: Sequence[int], weights: str | None
    ) -> None:
        problems = Problems("pad_to_buckets")
        if not isinstance(fields, Mapping) or not fields:
            what = "fields must map names of fields to the value that pads them"
            problems.add(f"{what}, got {fields!r}")
        _check_pads(problems, fields)
        is_list = isinstance(lengths, Sequence) and not isinstance(lengths, str)
        checked = []
        if is_list:
            checked = list(lengths)
        if not checked or not all(problems.integer("lengths", length, minimum=1) for length in checked):
            problems.add(f"lengths must be a sequence of integers >= 1, got {lengths!r}")
        elif sorted(set(checked)) != checked:
            problems.add(f"lengths must be ascending, got {lengths!r}")
        if weights is not None:
            problems.field_name("weights", weights)
        problems.raise_if_any()
        for name in fields:
            if name not in available:
                problem = f"the data have no field {name!r} to pad; they have {tuple(available)}"
                raise DataError(problem)
        if weights in available:
            problem = f"the data have a field {weights!r} already"
            raise DataError(f"{problem}; choose another name with weights=")
        self.padded = frozenset(fields)
        self.all_fields = tuple(available)
        if weights is not None:
            self.all_fields += (weights,)
        self._values = dict(fields)
        self._lengths = [int(length) for length in checked]
        self._weights = weights

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Put chunks of examples one below the other."""
        rows = concatenate([self._without_sequences(chunk) for chunk in chunks])
        lengths = np.array([self._length(chunk) for chunk in chunks])
        bucket = self._bucket(int(lengths.max()))
        for name, value in self._values.items():
            rows[name] = _pad([chunk[name] for chunk in chunks], bucket, value)
        if self._weights is not None:
            sizes = [len(next(iter(chunk.values()))) for chunk in chunks]
            present = np.arange(bucket) < np.repeat(lengths, sizes)[:, None]
            rows[self._weights] = present.astype(np.float32)
        return rows

    def _without_sequences(self, chunk: Fields) -> Fields:
        return without(chunk, self.padded)

    def _length(self, chunk: Fields) -> int:
        shapes = {name: chunk[name].shape for name in self._values}
        # As slices: a field [n] has no second axis, and () is not the length of any other field.
        lengths = {shape[1:2] for shape in shapes.values()}
        if len(lengths) > 1 or lengths == {()}:
            listed = ", ".join(f"{name!r}: {shape[1:]}" for name, shape in shapes.items())
            raise DataError(f"the sequences of one example must be equally long arrays, got the shapes {listed}")
        (length,) = lengths.pop()
        return length

    def _bucket(self, longest: int) -> int:
        for length in self._lengths:
            if longest <= length:
                return length
        raise DataError(
            f"a sequence has the length {longest}, more than the largest of "
            f"lengths={tuple(self._lengths)}; cut it, or add a length"
        )


def _check_pads(problems: Problems, fields: Any) -> None:
    for name, value in fields.items() if isinstance(fields, Mapping) else ():
        if not is_real(value):
            problems.add(f"fields[{name!r}] must be the number that pads it, got {value!r}", wrong_type=True)


class _Columns:
    """A dict of lists of one length as a map-style dataset."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"every field needs one entry per example, got the lengths {lengths}")
        self._columns = columns
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self._columns.items()}


def _pad(arrays: Sequence[np.ndarray], length: int, value: float) -> np.ndarray:
    """Put arrays [n, l, ...] of any lengths l one below the other: [sum of n, length, ...]."""
    result = empty_rows(arrays, (length, *arrays[0].shape[2:]))
    result[...] = value
    row = 0
    for array in arrays:
        result[row : row + len(array), : array.shape[1]] = array
        row += len(array)
    return result
