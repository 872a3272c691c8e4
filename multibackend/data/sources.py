"""Sources of examples with random access: a dict of arrays, or a map-style dataset.

A source answers `take(indices)` with a dict of numpy arrays whose first axis is the batch. The trainer decides which
examples go together and in which order, so both backends see the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from multibackend.data.memory import aligned_empty
from multibackend.errors import DataError

__all__ = ["ArraySource", "MapSource", "Source", "as_source"]


class Source(Protocol):
    """Examples with random access."""

    fields: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        ...


class ArraySource:
    """A dict of arrays of one length.

    >>> ArraySource({"x": [[1.0], [2.0]], "y": [0, 1]}).take(np.array([1]))["x"]
    array([[2.]])
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: _as_array(name, values) for name, values in arrays.items()}
        self.fields = tuple(self._arrays)
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if not lengths:
            raise DataError("the data have no field; give a dict such as {'image': images, 'label': labels}")
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(f"the arrays have unequal lengths ({listed}); every field needs one entry per example")
        self._length = next(iter(lengths.values()))
        if self._length == 0:
            raise DataError("the data are empty: every array has length 0")

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._length):
            raise DataError(f"indices {indices.min()} to {indices.max()} do not fit data of length {self._length}")
        return {name: _take(array, indices) for name, array in self._arrays.items()}


class MapSource:
    """A map-style dataset: `len(dataset)` and `dataset[i]`, each example a mapping from fields to arrays or numbers.

    `dataset.__getitems__(list of indices)`, where it exists, is used to fetch a batch in one call. Examples that are
    tuples need `fields`, their names in order.
    """

    def __init__(self, dataset: Any, fields: Sequence[str] | None = None) -> None:
        if len(dataset) == 0:
            raise DataError("the dataset is empty: its length is 0")
        self._dataset = dataset
        self._names = None if fields is None else tuple(fields)
        self.fields = tuple(self._named(dataset[0]))

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        chosen = [int(index) for index in indices]
        fetch = getattr(self._dataset, "__getitems__", None)
        examples = [self._named(e) for e in (fetch(chosen) if fetch else [self._dataset[i] for i in chosen])]
        return {name: _stack(name, [example[name] for example in examples]) for name in self.fields}

    def _named(self, example: Any) -> Mapping[str, Any]:
        if self._names is not None and isinstance(example, tuple | list):
            if len(example) != len(self._names):
                raise DataError(f"an example has {len(example)} parts, but the fields are {self._names}")
            return dict(zip(self._names, example, strict=True))
        if not isinstance(example, Mapping):
            raise DataError(
                f"an example must be a mapping from fields to values, got {type(example).__name__}; for examples "
                "that are tuples name their parts: mb.data.MapSource(dataset, fields=('image', 'label'))"
            )
        return example


def as_source(data: Any) -> Source:
    """The source for what a user gave as `train_data` or `eval_data`; raises `DataError`."""
    if isinstance(data, ArraySource | MapSource):
        return data
    if isinstance(data, Mapping):
        return ArraySource(data)
    if hasattr(data, "take") and hasattr(data, "fields") and hasattr(data, "__len__"):
        return data
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return MapSource(data)
    raise DataError(
        f"data must be a dict of arrays or a map-style dataset (len and []), got {type(data).__name__}: {data!r:.80}"
    )


def _take(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    rows = aligned_empty((len(indices), *array.shape[1:]), array.dtype)
    # the indices were checked; mode "raise" would go through another buffer
    return np.take(array, indices, axis=0, out=rows, mode="clip")


def _as_array(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 0:
        raise DataError(f"field {name!r} must be an array with one entry per example, got the scalar {values!r}")
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"field {name!r} must hold numbers, got dtype {array.dtype}; a ragged list needs padding and weights"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _stack(name: str, values: list[Any]) -> np.ndarray:
    arrays = [np.asarray(value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(f"examples of field {name!r} have different shapes: {sorted(shapes)}; pad them to one shape")
    return _as_array(name, np.stack(arrays))
