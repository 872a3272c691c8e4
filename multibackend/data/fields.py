"""Values of examples and batches as numpy arrays under flat names, whatever array library they come from.

Nested dicts and tuples become dotted names, `{"image": {"left": a, "right": b}}` the fields
"image.left" and "image.right"; `nested` puts such a structure together again for the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.data.memory import aligned_empty
from multibackend.errors import DataError

__all__ = ["Fields", "as_array", "check_numbers", "concatenate", "flat_items", "named", "nested"]


def as_array(name: str, value: Any) -> np.ndarray:
    """A number, list, numpy array or tensor as a numpy array of numbers; raises `DataError`.

    Tensors are taken through their own `detach()`, `cpu()` and `__array__`, so no framework is
    imported.
    """
    for step in ("detach", "cpu"):
        if hasattr(value, step):
            value = getattr(value, step)()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"field {name!r} cannot be made a numpy array ({type(error).__name__}: {error}); convert it in the "
            "dataset, and pad sequences of unequal length: mb.data.pad_to_buckets"
        ) from error
    return check_numbers(name, array)


def check_numbers(name: str, array: np.ndarray) -> np.ndarray:
    """`array` in native byte order; raises `DataError` unless it holds numbers."""
    if array.dtype.kind in "US" or (array.dtype.kind == "O" and array.size and isinstance(array.flat[0], str | bytes)):
        raise DataError(
            f"field {name!r} must hold numbers, got text ({array.dtype}); drop it (of a HuggingFace dataset: "
            f"dataset.remove_columns([{name!r}])) or turn it into numbers first, for example with a tokenizer"
        )
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"field {name!r} must hold numbers, got dtype {array.dtype}; a ragged list needs padding and weights: "
            "mb.data.pad_to_buckets"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def named(
    example: Any, names: Sequence[str] | None, *, what: str = "an example", repair: str = ""
) -> Mapping[str, Any]:
    """An example or batch by field names, those of a tuple given by `names`; nested parts under dotted names."""
    if names is not None and isinstance(example, tuple | list):
        if len(example) != len(names):
            raise DataError(f"{what} has {len(example)} parts, but the fields are {tuple(names)}")
        example = dict(zip(names, example, strict=True))
    if not isinstance(example, Mapping):
        raise DataError(f"{what} must be a mapping from fields to values, got {type(example).__name__}; {repair}")
    if any(isinstance(value, Mapping | tuple) for value in example.values()):
        return dict(flat_items(example))
    return example


def flat_items(value: Mapping[Any, Any] | tuple[Any, ...], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves with dotted names. A tuple of plain numbers is a leaf."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        if isinstance(item, Mapping) or (isinstance(item, tuple) and not _is_leaf(item)):
            yield from flat_items(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def nested(batch: Mapping[str, Any], name: str) -> Any:
    """What `name` stands for in a flat batch: one field, or the dict or tuple of all the fields below it.

    >>> nested({"image.left": 1, "image.right.0": 2, "image.right.1": 3}, "image")
    {'left': 1, 'right': (2, 3)}
    """
    if name in batch:
        return batch[name]
    tree: dict[str, Any] = {}
    for field, value in batch.items():
        if field.startswith(f"{name}."):
            node, *path = tree, *field[len(name) + 1 :].split(".")
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
    return _with_tuples(tree)


def concatenate(parts: Sequence[Fields]) -> Fields:
    """Rows of several chunks one below the other, each field in new memory that a device can adopt."""
    return {name: _concatenate(name, [part[name] for part in parts]) for name in parts[0]}


def _concatenate(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"examples of field {name!r} have different shapes: {sorted(shapes)}; pad them to one shape, or sequences "
            "of unequal length to a few: mb.data.pad_to_buckets"
        )
    rows, dtype = sum(map(len, arrays)), np.result_type(*{array.dtype for array in arrays})
    result = aligned_empty((rows, *shapes.pop()), dtype)
    return np.concatenate(arrays, out=result)


def _is_leaf(value: tuple[Any, ...]) -> bool:
    return all(isinstance(item, int | float | np.number) for item in value)


def _with_tuples(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    parts = {key: _with_tuples(value) for key, value in tree.items()}
    if parts and parts.keys() == {str(index) for index in range(len(parts))}:
        return tuple(parts[str(index)] for index in range(len(parts)))
    return parts
