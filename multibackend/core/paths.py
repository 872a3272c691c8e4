"""Dotted paths into what a model returns: "cls", "heads.0", "encoder.last"."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from multibackend.core.validation import closest
from multibackend.errors import ConfigurationError

__all__ = ["Shapes", "arrays_by_path", "collect", "is_array", "pick", "shapes_by_path"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a model's outputs by their paths; that of a model that returns one array is at the path ""."""

_MOST_LISTED = 12


def pick(outputs: Any, path: str | None) -> Any:
    """Return the part of a model's outputs at a dotted path; all of it where there is none.

    A part of the path is a key of a mapping, an index of a tuple or list, a field of a namedtuple or dataclass,
    or an attribute of any other object that is no array. Nothing is converted: traced and native values stay
    what they are.

    Raises:
        ConfigurationError: there is nothing at that path; the message lists what there is.

    >>> pick({"cls": 1, "heads": (2, 3)}, "heads.1")
    3
    >>> pick({"cls": 1, "reg": 2}, "clss")
    Traceback (most recent call last):
        ...
    multibackend.errors.ConfigurationError: the model's outputs: 1 problem
      - output='clss' is not there: they have 'cls', 'reg'; did you mean 'cls'?
    """
    if not path:
        return outputs
    value = outputs
    rest = path
    while rest:
        value, rest = _step(value, rest, outputs, path)
    if value is None:
        raise _missing(outputs, path, "is None: the model did not return it")
    return value


def is_array(value: Any) -> bool:
    """Tell whether a value is an array of numpy or a framework, also a traced one."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def arrays_by_path(outputs: Any) -> dict[str, Any]:
    """Return every array in a model's outputs by its path, "" for outputs that are one array.

    >>> import numpy as np
    >>> list(arrays_by_path({"cls": np.zeros(2), "heads": (np.zeros(3), None)}))
    ['cls', 'heads.0']
    """
    return {path: value for path, value in _walk(outputs, "") if is_array(value)}


def collect(outputs: Any, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the arrays of what each path picks, by that path and by their paths below it.

    >>> import numpy as np
    >>> collect({"cls": np.ones(1), "reg": np.ones(2)}, ["reg"])
    {'reg': {'': array([1., 1.])}}
    """
    return {path: arrays_by_path(pick(outputs, path)) for path in paths}


def shapes_by_path(outputs: Any, picked: Iterable[str | None] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array in a model's outputs, and of those that somebody picks by another path.

    Raises:
        ConfigurationError: one of the paths that are picked is not there.
    """
    shapes = {path: _shape(array) for path, array in arrays_by_path(outputs).items()}
    # a field of a namedtuple has two paths, its name and its index, of which the walk names one
    for path in picked:
        part = pick(outputs, path)
        if is_array(part):
            shapes[path or ""] = _shape(part)
    return shapes


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in array.shape)


def _step(value: Any, rest: str, outputs: Any, path: str) -> tuple[Any, str]:
    """Return the child that the path leads to and what remains of the path below it."""
    children = _children(value)
    # a key may have dots of its own: the longest one that fits is the one that was meant
    key = rest
    while key not in children:
        shorter = key.rpartition(".")[0]
        if not shorter:
            break
        key = shorter
    if key in children:
        return children[key], rest[len(key) + 1 :]
    # neither a key nor a field: a property, such as the mean of a distribution
    if _has_attributes(value) and not key.startswith("_"):
        child = getattr(value, key, None)
        if child is not None and not callable(child):
            return child, rest[len(key) + 1 :]
    raise _missing(outputs, path, "is not there")


def _children(value: Any) -> dict[str, Any]:
    """Return the parts of a structure by the names that a path may give them; none of anything else."""
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if isinstance(value, tuple | list):
        indexed = {str(index): child for index, child in enumerate(value)}
        names = getattr(value, "_fields", ())
        return {**dict(zip(names, value, strict=False)), **indexed}
    if is_array(value) or isinstance(value, type):
        return {}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if _has_attributes(value):
        return {name: child for name, child in vars(value).items() if not name.startswith("_")}
    return {}


def _has_attributes(value: Any) -> bool:
    """Tell whether a value is an object of some class of its own: no array, container, number, text or function."""
    if is_array(value) or isinstance(value, Mapping | tuple | list | type):
        return False
    return hasattr(value, "__dict__") and not callable(value)


def _walk(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Go through the leaves of a structure with their paths."""
    children = _children(value)
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names:
        children = {name: children[name] for name in names}
    # objects may hold each other; no model's outputs are this deep
    if not children or depth > 8:
        yield path, value
        return
    for name, child in children.items():
        yield from _walk(child, f"{path}.{name}" if path else name, depth + 1)


def _missing(outputs: Any, path: str, what: str) -> ConfigurationError:
    """Make the error that lists what a path could have picked."""
    if is_array(outputs):
        sentence = f"output={path!r} picks a part, but the model returns one array {list(outputs.shape)}; drop output="
        return ConfigurationError("the model's outputs", [sentence])
    found = [leaf for leaf, value in _walk(outputs, "") if leaf and value is not None]
    listed = ", ".join(map(repr, found[:_MOST_LISTED]))
    if len(found) > _MOST_LISTED:
        listed += f" and {len(found) - _MOST_LISTED} more"
    has = f"they have {listed}" if listed else f"the model returned {type(outputs).__name__}, which has no parts"
    sentence = f"output={path!r} {what}: {has}{closest(path, found)}"
    return ConfigurationError("the model's outputs", [sentence])
