"""Sources of examples with random access: dicts of arrays, map-style datasets, tables.

A source answers `take(indices)` with a dict of numpy arrays whose first axis is the batch. The
trainer decides which examples go together, in which order. What has no random access is a `Stream`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.user_code import add_origin
from multibackend.core.validation import is_integer, shown
from multibackend.data.fields import (
    as_array,
    check_keys,
    check_name,
    check_numbers,
    check_one_shape,
    concatenate,
    field_names,
    flat_items,
    joined_fields,
    named,
)
from multibackend.data.memory import aligned_empty
from multibackend.errors import DataError

__all__ = ["ArraySource", "MapSource", "Source", "TableSource", "length_of", "rows_of"]


class Source(Protocol):
    """Examples with random access.

    Optional: `in_memory = True` where `take` only copies memory; `rows(indices)`, the examples one
    by one, each field an array [1, ...], where their shapes may differ.
    """

    # `in_memory` tells the feed that reading ahead in another thread would gain nothing.

    fields: tuple[str, ...]

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices` [n], each field an array [n, ...]."""
        ...


class ArraySource:
    """A dict of arrays of one length; nested dicts have dotted names.

    >>> ArraySource({"x": [[1.0], [2.0]], "y": [0, 1]}).take(np.array([1]))["x"]
    array([[2.]])
    """

    in_memory = True

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if not isinstance(arrays, Mapping):
            raise DataError(f"ArraySource takes a dict of arrays, got {shown(arrays)}")
        columns = joined_fields(_flat_columns(arrays))
        self._arrays = {name: _column(name, values) for name, values in columns.items()}
        self.fields = tuple(self._arrays)
        if not self._arrays:
            raise DataError("the data have no field; give a dict such as {'image': images, 'label': labels}")
        lengths = {name: len(array) for name, array in self._arrays.items()}
        self._length = lengths[self.fields[0]]
        if set(lengths.values()) != {self._length}:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(f"the arrays have unequal lengths ({listed}); every field needs one entry per example")
        if self._length == 0:
            raise DataError("the data are empty: every array has length 0")

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices` [n], each field an array [n, ...]."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._length):
            raise DataError(f"indices {indices.min()} to {indices.max()} do not fit data of length {self._length}")
        return {name: _take(array, indices) for name, array in self._arrays.items()}


class MapSource:
    """A map-style dataset: `len(dataset)` and `dataset[i]`, an example by fields.

    So torch's `Dataset`, grain's `MapDataset`, a list of dicts. Values may be numbers, lists, numpy
    arrays or tensors of any library that converts to numpy; nested dicts and tuples have dotted
    names. Examples that are tuples need `fields`, their names in order. `dataset.__getitems__`,
    where it exists, is used to fetch a batch in one call.

    >>> source = MapSource([(0.5, 1), (0.25, 0)], fields=("x", "label"))
    >>> source.take(np.array([1, 0]))["label"].tolist()
    [0, 1]
    """

    def __init__(self, dataset: Any, fields: Sequence[str] | None = None) -> None:
        length = length_of(dataset)
        if length == 0:
            raise DataError("the dataset is empty: its length is 0")
        if length == sys.maxsize:  # what grain's repeat() answers
            raise DataError(f"the dataset repeats without end (its length is {length}); leave .repeat() to the trainer")
        self._dataset = dataset
        self._length = length
        self._names = field_names(fields)
        self.fields = tuple(self._named(dataset[0]))

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices` [n], each field an array [n, ...]."""
        examples = self._examples(indices)
        return {name: _stack(name, examples) for name in self.fields}

    def rows(self, indices: np.ndarray) -> list[Fields]:
        """Return the examples one by one, each field an array [1, ...]; shapes may differ between them."""
        return [self._row(example) for example in self._examples(indices)]

    def _row(self, example: Mapping[str, Any]) -> Fields:
        return {name: as_array(name, example[name])[None] for name in self.fields}

    def _examples(self, indices: np.ndarray) -> list[Mapping[str, Any]]:
        # Python's integers, for datasets that hand an index on to a library that takes no other.
        chosen = [int(index) for index in indices]
        fetch = getattr(self._dataset, "__getitems__", None)
        items = fetch(chosen) if fetch else [self._item(index) for index in chosen]
        examples = [self._named(item) for item in items]
        for index, example in zip(chosen, examples, strict=True):
            if not example.keys() >= set(self.fields):
                fields = tuple(example)
                raise DataError(f"example {index} has the fields {fields}, the first one had {self.fields}")
        return examples

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            add_origin(error, f"{type(self._dataset).__name__}[{index}], read as an example of the data")
            raise

    def _named(self, example: Any) -> Mapping[str, Any]:
        if example is None:
            raise DataError(
                "an example is None, so the dataset was filtered and has no random access any more; of "
                "a grain MapDataset give the iterable: dataset.to_iter_dataset()"
            )
        repair = "for examples that are tuples name their parts: mb.data.MapSource(dataset, fields=('image', 'label'))"
        what = f"an example of the {type(self._dataset).__name__}"
        return named(example, self._names, what=what, repair=repair)


class TableSource:
    """A table with random access by batches, as a HuggingFace `datasets.Dataset`: columns are fields.

    A batch is one call, `table[indices]`. Where the table has no format of its own, numbers keep
    the type that the column has; a format set with `with_format("numpy")` or `with_format("torch")`
    or `set_transform` is respected.

    Raises:
        DataError: a column holds text, or rows of unequal length (see `data.pad_to_buckets`).
    """

    def __init__(self, table: Any) -> None:
        if not hasattr(table, "with_format") or not hasattr(table, "__len__"):
            raise DataError(f"TableSource takes a table with columns, a HuggingFace dataset, got {shown(table)}")
        if len(table) == 0:
            raise DataError("the dataset is empty: its length is 0")
        table_format = getattr(table, "format", None) or {}
        if not table_format.get("type"):
            # datasets' own default is Python lists, in which int32 and float32 lose their names.
            table = table.with_format("arrow", columns=table_format.get("columns"))
        self._table = table
        self.fields = tuple(self._columns(np.arange(1)))
        self.take(np.arange(1))  # refuses text at once

    def __len__(self) -> int:
        return len(self._table)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices` [n], each field an array [n, ...]."""
        return {name: _whole_column(name, values) for name, values in self._columns(indices).items()}

    def rows(self, indices: np.ndarray) -> list[Fields]:
        """Return the examples one by one, each field an array [1, ...]; lengths may differ."""
        columns = self._columns(indices)
        rows: list[Fields] = [{} for _ in indices]
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = as_array(name, value)[None]
        return rows

    def _columns(self, indices: np.ndarray) -> Mapping[str, Any]:
        batch = self._table[[int(index) for index in indices]]
        if hasattr(batch, "column_names"):  # an arrow table: to_numpy keeps the types of numbers
            batch = {name: _arrow_column(name, batch.column(name)) for name in batch.column_names}
        return named(batch, None, what="a batch of the table")


def length_of(dataset: Any) -> int:
    """Return the length of a dataset; raise `DataError` where it has none that can be one."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"a map-style dataset needs len() and [], which {shown(dataset)} has not")
    try:
        # not len(), which refuses what is no length without showing it
        length = type(dataset).__len__(dataset)
    except Exception as error:
        add_origin(error, f"len() of {type(dataset).__name__}, given as data")
        raise
    if not is_integer(length) or not 0 <= length <= sys.maxsize:
        kind = type(length).__name__
        what = f"len() of {type(dataset).__name__} must be an integer from 0 to {sys.maxsize}"
        raise DataError(f"{what}, got {shown(length)} ({kind})")
    return int(length)


def rows_of(source: Any, indices: np.ndarray) -> list[Fields]:
    """Return the examples at `indices` one by one, each field an array [1, ...]."""
    if hasattr(source, "rows"):
        return source.rows(indices)
    return [source.take(indices[row : row + 1]) for row in range(len(indices))]


def _take(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    rows = aligned_empty((len(indices), *array.shape[1:]), array.dtype)
    # The indices were checked; mode "raise" would go through another buffer.
    return np.take(array, indices, axis=0, out=rows, mode="clip")


def _flat_columns(arrays: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over columns with dotted names; unlike in `flat_items` a tuple is a column."""
    if not arrays and prefix:
        raise DataError(f"the field {prefix[:-1]!r} is an empty dict; drop it or fill it")
    check_keys(arrays, prefix)
    for name, values in arrays.items():
        check_name(name)
        if isinstance(values, Mapping):
            yield from _flat_columns(values, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", values


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
        rows = column.to_pylist()
        parts: dict[str, list[Any]] = {}
        for key in rows[0]:
            parts[key] = [row[key] for row in rows]
        return dict(flat_items(parts))
    # Nested lists and extension types would come as arrays of objects within objects.
    if kind.count("list") > 1 or kind.startswith("extension"):
        return column.to_pylist()
    return column.to_numpy()


def _whole_column(name: str, values: Any) -> np.ndarray:
    is_objects = isinstance(values, np.ndarray) and values.dtype.kind == "O"
    if is_objects and isinstance(values.flat[0], np.ndarray):
        return concatenate([{name: as_array(name, value)[None]} for value in values])[name]
    array = as_array(name, values)
    if array.flags.writeable:
        return array
    return array.copy()  # an arrow column's memory is read-only


def _stack(name: str, examples: list[Mapping[str, Any]]) -> np.ndarray:
    arrays = [as_array(name, example[name]) for example in examples]
    check_one_shape(name, {array.shape for array in arrays})
    return check_numbers(name, np.stack(arrays))
