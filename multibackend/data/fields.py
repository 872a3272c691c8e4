"""Values of examples and batches as numpy arrays under flat names, whatever library made them.

Nested dicts and tuples become dotted names, `{"image": {"left": a, "right": b}}` the fields
"image.left" and "image.right"; `nested` puts such a structure together again for the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.validation import as_names
from multibackend.data.memory import aligned_empty
from multibackend.errors import DataError

__all__ = [
    "as_array",
    "check_keys",
    "check_name",
    "check_numbers",
    "check_one_shape",
    "concatenate",
    "empty_rows",
    "field_names",
    "flat_items",
    "joined_fields",
    "named",
    "nested",
]


def as_array(name: str, value: Any) -> np.ndarray:
    """Turn a number, list or tensor into a numpy array of numbers; raise `DataError` if it is none.

    Tensors are taken by their own `detach()`, `cpu()` and `__array__`: no framework is imported.
    """
    if np.ma.is_masked(value):
        raise DataError(
            f"field {name!r} is a masked array, and no framework knows masks; give {name}.filled(value), and where it "
            "is masked as a field of weights, which the loss reads by weights="
        )
    for step in ("detach", "cpu"):
        if hasattr(value, step):
            value = getattr(value, step)()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"field {name!r} cannot be made a numpy array ({type(error).__name__}: {error}); convert it "
            "in the dataset, and pad sequences of unequal length: mb.data.pad_to_buckets"
        ) from error
    return check_numbers(name, array)


def check_numbers(name: str, array: np.ndarray) -> np.ndarray:
    """Return `array` in native byte order; raise `DataError` unless it holds numbers."""
    # Text of unequal lengths may also come as an array of objects, arrow's for one.
    objects = array.dtype.kind == "O" and array.size > 0
    if array.dtype.kind in "US" or (objects and isinstance(array.flat[0], str | bytes)):
        raise DataError(
            f"field {name!r} must hold numbers, got text ({array.dtype}); drop it (of a HuggingFace "
            f"dataset: dataset.remove_columns([{name!r}]); of a data frame: frame.drop(columns=[{name!r}])) or turn it "
            "into numbers first, for example with a tokenizer"
        )
    if array.dtype.kind not in "biuf":
        kind = f" of {type(array.flat[0]).__name__}" if objects else ""
        raise DataError(
            f"field {name!r} must hold numbers, got dtype {array.dtype}{kind}; a ragged list needs padding "
            "and weights: mb.data.pad_to_buckets"
        )
    # Frameworks refuse memory in another byte order.
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def check_one_shape(name: str, shapes: set[tuple[int, ...]]) -> None:
    """Raise `DataError` where the examples of a field have several shapes."""
    if len(shapes) > 1:
        raise DataError(
            f"examples of field {name!r} have different shapes: {sorted(shapes)}; pad them to one shape, "
            "or sequences of unequal length to a few: mb.data.pad_to_buckets"
        )


def named(
    example: Any, names: Sequence[str] | None, *, what: str = "an example", repair: str = ""
) -> Mapping[str, Any]:
    """Return an example or batch by field names, a tuple's from `names`, nested ones dotted."""
    if names is not None and isinstance(example, tuple | list):
        if len(example) != len(names):
            raise DataError(f"{what} has {len(example)} parts, but fields= names {len(names)}: {tuple(names)}")
        example = dict(zip(names, example, strict=True))
    if not isinstance(example, Mapping):
        kind = type(example).__name__
        raise DataError(f"{what} must be a mapping from fields to values, got {kind}; {repair}")
    if any(isinstance(value, Mapping | tuple) for value in example.values()):
        return joined_fields(flat_items(example))
    for name in example:
        check_name(name)
    return example


def check_name(name: object) -> None:
    """Raise `DataError` unless `name` can be that of a field."""
    if not isinstance(name, str) or not name:
        raise DataError(f"the name of a field must be a string that is not empty, got {name!r}")


def field_names(fields: Any) -> tuple[str, ...] | None:
    """Check `fields=` of a source, the names of the parts of tuples; None for none."""
    if fields is None:
        return None
    names = as_names(fields)
    if not names:
        raise DataError(f"fields must be the names of an example's parts in order, got {fields!r}")
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f"fields must be names that are not empty, got {name!r} among {names}")
    if len(set(names)) < len(names):
        raise DataError(f"fields must be distinct names, got {names}")
    return names


def joined_fields(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Collect fields by their dotted names; raise `DataError` where two have one name, or one lies in another."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in fields:
            raise DataError(
                f"two fields are called {name!r}: one by its own name, one as a part of another; rename one"
            )
        fields[name] = value
    # a field that is also the whole of which others are parts could not be told from it
    for name in fields:
        parents = [name[:index] for index, letter in enumerate(name) if letter == "."]
        taken = next((parent for parent in parents if parent in fields), None)
        if taken is not None:
            raise DataError(f"the field {name!r} would be a part of {taken!r}, which is a field of its own; rename one")
    return fields


def flat_items(value: Mapping[Any, Any] | tuple[Any, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves with dotted names. A tuple of plain numbers is a leaf."""
    if not value and prefix:
        raise DataError(f"the field {prefix[:-1]!r} is an empty {type(value).__name__}; drop it or fill it")
    is_mapping = isinstance(value, Mapping)
    if isinstance(value, Mapping):
        check_keys(value, prefix)
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if is_mapping:
            check_name(key)
        if isinstance(item, Mapping) or (isinstance(item, tuple) and not _is_leaf(item)):
            yield from flat_items(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def check_keys(value: Mapping[Any, Any], prefix: str) -> None:
    """Raise `DataError` where the keys of a dict inside a field are those by which a tuple is told."""
    if prefix and value and {str(key) for key in value} == _indices(len(value)):
        raise DataError(
            f"the field {prefix.removesuffix('.')!r} is a dict with the keys {', '.join(map(repr, value))}, which "
            "reads as a tuple: give it as a tuple, or name its keys otherwise"
        )


def nested(batch: Mapping[str, Any], name: str) -> Any:
    """Return what `name` stands for in a flat batch: a field, or the dict or tuple of those below.

    >>> nested({"image.left": 1, "image.right.0": 2, "image.right.1": 3}, "image")
    {'left': 1, 'right': (2, 3)}
    """
    if name in batch:
        return batch[name]
    prefix = f"{name}."
    tree: dict[str, Any] = {}
    for field, value in batch.items():
        if field.startswith(prefix):
            *parents, leaf = field.removeprefix(prefix).split(".")
            node = tree
            for part in parents:
                node = node.setdefault(part, {})
            node[leaf] = value
    return _with_tuples(tree)


def concatenate(chunks: Sequence[Fields]) -> Fields:
    """Put the rows of chunks one below the other, in new memory that a device can adopt."""
    return {name: _concatenate(name, chunks) for name in chunks[0]}


def _concatenate(name: str, chunks: Sequence[Fields]) -> np.ndarray:
    arrays = [chunk[name] for chunk in chunks]
    shapes = {array.shape[1:] for array in arrays}
    check_one_shape(name, shapes)
    return np.concatenate(arrays, out=empty_rows(arrays, shapes.pop()))


def empty_rows(arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Allocate a row of `shape` for each row of `arrays`, in the dtype that holds all of them."""
    rows = sum(len(array) for array in arrays)
    # A set: there may be an array for each of thousands of examples, and few dtypes among them.
    dtype = np.result_type(*{array.dtype for array in arrays})
    return aligned_empty((rows, *shape), dtype)


def _is_leaf(value: tuple[Any, ...]) -> bool:
    return all(isinstance(item, int | float | np.number) for item in value)


def _with_tuples(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    parts = {key: _with_tuples(value) for key, value in tree.items()}
    # Tuples were flattened to the names "0", "1", ..., and `check_keys` has refused dicts of these.
    if parts and parts.keys() == _indices(len(parts)):
        return tuple(parts[str(index)] for index in range(len(parts)))
    return parts


def _indices(count: int) -> set[str]:
    return {str(index) for index in range(count)}
