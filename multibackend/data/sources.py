"""Sources of examples with random access: a dict of arrays, a map-style dataset, a table with columns.

A source answers `take(indices)` with a dict of numpy arrays whose first axis is the batch. The
trainer decides which examples go together and in which order, so both backends see the same ones.
What has no random access is a `Stream` (`multibackend.data.streams`), whose own order is the order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.data.fields import as_array, check_numbers, concatenate, flat_items, named
from multibackend.data.memory import aligned_empty
from multibackend.errors import DataError

__all__ = ["ArraySource", "MapSource", "Source", "TableSource", "rows_of"]


class Source(Protocol):
    """Examples with random access.

    Optional: `in_memory = True` where `take` only copies memory, so that there is nothing to gain
    from reading ahead; `rows(indices)`, the examples one by one, each field an array [1, ...],
    where their shapes may differ.
    """

    fields: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        ...


class ArraySource:
    """A dict of arrays of one length; nested dicts have dotted names.

    >>> ArraySource({"x": [[1.0], [2.0]], "y": [0, 1]}).take(np.array([1]))["x"]
    array([[2.]])
    """

    in_memory = True

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = {name: _column(name, values) for name, values in _flat_columns(arrays)}
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

    So torch's `Dataset`, grain's `MapDataset`, a list of dicts. Values may be numbers, lists, numpy
    arrays or tensors of any library that converts to numpy; nested dicts and tuples have dotted
    names. Examples that are tuples need `fields`, their names in order. `dataset.__getitems__(list
    of indices)`, where it exists, is used to fetch a batch in one call.

    >>> MapSource([(0.5, 1), (0.25, 0)], fields=("x", "label")).take(np.array([1, 0]))["label"].tolist()
    [0, 1]
    """

    def __init__(self, dataset: Any, fields: Sequence[str] | None = None) -> None:
        length = len(dataset)
        if length == 0:
            raise DataError("the dataset is empty: its length is 0")
        if length == sys.maxsize:
            raise DataError(f"the dataset repeats without end (its length is {length}); leave .repeat() to the trainer")
        self._dataset, self._length = dataset, length
        self._names = None if fields is None else tuple(fields)
        self.fields = tuple(self._named(dataset[0]))

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        examples = self._examples(indices)
        return {name: _stack(name, [example[name] for example in examples]) for name in self.fields}

    def rows(self, indices: np.ndarray) -> list[Fields]:
        """The examples one by one, each field an array [1, ...]; shapes may differ between them."""
        return [
            {name: as_array(name, example[name])[None] for name in self.fields} for example in self._examples(indices)
        ]

    def _examples(self, indices: np.ndarray) -> list[Mapping[str, Any]]:
        chosen = [int(index) for index in indices]
        fetch = getattr(self._dataset, "__getitems__", None)
        examples = [self._named(e) for e in (fetch(chosen) if fetch else [self._dataset[i] for i in chosen])]
        for index, example in zip(chosen, examples, strict=True):
            if not example.keys() >= set(self.fields):
                raise DataError(f"example {index} has the fields {tuple(example)}, the first one had {self.fields}")
        return examples

    def _named(self, example: Any) -> Mapping[str, Any]:
        if example is None:
            raise DataError(
                "an example is None, so the dataset was filtered and has no random access any more; of a grain "
                "MapDataset give the iterable: dataset.to_iter_dataset()"
            )
        repair = "for examples that are tuples name their parts: mb.data.MapSource(dataset, fields=('image', 'label'))"
        return named(example, self._names, repair=repair)


class TableSource:
    """A table with columns and random access by batches, so a HuggingFace `datasets.Dataset`: columns are fields.

    A batch is one call, `table[indices]`. Where the table has no format of its own, numbers keep
    the type that the column has; a format set with `with_format("numpy")` or `with_format("torch")`
    or `set_transform` is respected.

    Raises:
        DataError: a column holds text, or rows of unequal length (see
            `multibackend.data.pad_to_buckets`).
    """

    def __init__(self, table: Any) -> None:
        if len(table) == 0:
            raise DataError("the dataset is empty: its length is 0")
        own = getattr(table, "format", None) or {}
        self._table = table if own.get("type") else table.with_format("arrow", columns=own.get("columns"))
        self.fields = tuple(self._columns(np.arange(1)))
        self.take(np.arange(1))  # refuses text at once

    def __len__(self) -> int:
        return len(self._table)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices` [n], each field an array [n, ...]."""
        return {name: _whole_column(name, values) for name, values in self._columns(indices).items()}

    def rows(self, indices: np.ndarray) -> list[Fields]:
        """The examples one by one, each field an array [1, ...]; lengths may differ between them."""
        columns = self._columns(indices)
        return [{n: as_array(n, values[row])[None] for n, values in columns.items()} for row in range(len(indices))]

    def _columns(self, indices: np.ndarray) -> Mapping[str, Any]:
        batch = self._table[[int(index) for index in indices]]
        if hasattr(batch, "column_names"):  # an arrow table: to_numpy keeps the types of numbers
            batch = {name: _arrow_column(name, batch.column(name)) for name in batch.column_names}
        return named(batch, None, what="a batch of the table")


def rows_of(source: Any, indices: np.ndarray) -> list[Fields]:
    """The examples at `indices` one by one, each field an array [1, ...]."""
    if hasattr(source, "rows"):
        return source.rows(indices)
    return [source.take(indices[row : row + 1]) for row in range(len(indices))]


def _take(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    rows = aligned_empty((len(indices), *array.shape[1:]), array.dtype)
    # the indices were checked; mode "raise" would go through another buffer
    return np.take(array, indices, axis=0, out=rows, mode="clip")


def _flat_columns(arrays: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Columns with dotted names; a tuple is a column here, its items the examples."""
    items: list[tuple[str, Any]] = []
    for name, values in arrays.items():
        if isinstance(values, Mapping):
            items += [(f"{name}.{inner}", value) for inner, value in _flat_columns(values)]
        else:
            items.append((name, values))
    return items


def _column(name: str, values: Any) -> np.ndarray:
    array = as_array(name, values)
    if array.ndim == 0:
        raise DataError(f"field {name!r} must be an array with one entry per example, got the scalar {values!r}")
    return array


def _arrow_column(name: str, column: Any) -> Any:
    if column.null_count:
        raise DataError(f"column {name!r} has missing values; fill them in or drop those rows: dataset.filter(...)")
    kind = str(column.type)
    if kind.startswith("struct"):
        return dict(flat_items({key: [row[key] for row in column.to_pylist()] for key in column.to_pylist()[0]}))
    # nested lists and extension types would come as arrays of objects within objects
    return column.to_pylist() if kind.count("list") > 1 or kind.startswith("extension") else column.to_numpy()


def _whole_column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind == "O" and isinstance(values.flat[0], np.ndarray):
        return concatenate([{name: as_array(name, value)[None]} for value in values])[name]
    array = as_array(name, values)
    return array if array.flags.writeable else array.copy()  # an arrow column's memory is read-only


def _stack(name: str, values: list[Any]) -> np.ndarray:
    arrays = [as_array(name, value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"examples of field {name!r} have different shapes: {sorted(shapes)}; pad them to one shape, or sequences "
            "of unequal length to a few: mb.data.pad_to_buckets"
        )
    return check_numbers(name, np.stack(arrays))
