"""What one forward and backward pass of a model did, layer by layer, as both backends tell it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import DataError

__all__ = ["Forced", "LayerCall", "Trace", "arrays_in", "forced_arrays", "plain_settings", "with_arrays"]

IsArray = Callable[[Any], bool]


@dataclass(frozen=True)
class LayerCall:
    """One call of one module.

    Attributes:
        name: the module's dotted name in canonical style, "" for the whole model.
        call: 0 for its first call in this pass, 1 for the second, and so on.
        kind: the module's class, for example "Linear", "LayerNorm", "Block".
        inputs: the arrays that it was called with as they arrived, positional ones first, nested
            ones flattened; its own layout (torch's images are [n, c, h, w], Flax's [n, h, w, c]).
        outputs: the arrays that it returned, flattened.
        leaf: whether it called no other module.
        settings: its hyperparameters that are numbers, booleans, strings or tuples of them, by the
            framework's names, for example {"eps": 1e-05}; functions by their name.
        parameters: canonical names of the parameters that are its own, not those of its submodules.
        depth: how many modules it was called from.
    """

    name: str
    call: int
    kind: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    leaf: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    depth: int = 0


@dataclass(frozen=True)
class Forced:
    """What to put in place of a layer's inputs and of its outputs, in its own layout; None leaves what is there.

    Feeding every layer of one model what the other's layers got shows each wrong layer, not only
    the first.
    """

    inputs: tuple[np.ndarray | None, ...] | None = None
    outputs: tuple[np.ndarray | None, ...] | None = None


@dataclass(frozen=True)
class Trace:
    """One micro-batch, forward and backward.

    Attributes:
        layers: the calls in the order in which they began; the whole model is the first.
        outputs: the arrays of the model's outputs as the loss sees them, flattened.
        terms: float64 [terms], factor * sum(w * l) for each term of the loss.
        gradients: of their sum, by canonical name and in canonical layout; empty where not asked
            for.
        model_state: after the pass, by canonical name.
    """

    layers: tuple[LayerCall, ...]
    outputs: tuple[np.ndarray, ...]
    terms: np.ndarray
    gradients: Arrays = field(default_factory=dict)
    model_state: Arrays = field(default_factory=dict)


def arrays_in(tree: Any, is_array: IsArray) -> list[Any]:
    """The arrays of nested tuples, lists, mappings and dataclasses, depth first; everything else is passed over.

    >>> arrays_in(({"a": 1.0}, [2.0, "x"]), lambda leaf: isinstance(leaf, float))
    [1.0, 2.0]
    """
    if is_array(tree):
        return [tree]
    return [array for part in _parts(tree).values() for array in arrays_in(part, is_array)]


def with_arrays(tree: Any, arrays: Sequence[Any | None], is_array: IsArray) -> Any:
    """The tree with other arrays in the places that `arrays_in` lists; None leaves one as it is.

    >>> with_arrays((1.0, {"a": 2.0}), [None, 5.0], lambda leaf: isinstance(leaf, float))
    (1.0, {'a': 5.0})
    """
    return _filled(tree, iter(arrays), is_array)


def forced_arrays(found: Sequence[Any], wanted: Sequence[Any | None], what: str) -> list[Any | None]:
    """`wanted` made as long as `found`; raises `DataError` where a shape differs or there are too many."""
    if len(wanted) > len(found):
        raise DataError(f"{what}: {len(wanted)} arrays are to be put in place of {len(found)}")
    for index, (old, new) in enumerate(zip(found, wanted, strict=False)):
        if new is not None and tuple(old.shape) != tuple(new.shape):
            raise DataError(f"{what}: array {index} has the shape {tuple(old.shape)}, not {tuple(new.shape)}")
    return [*wanted, *[None] * (len(found) - len(wanted))]


def plain_settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a layer's attributes that `LayerCall.settings` tells: public, and plain enough to compare and print.

    >>> plain_settings({"eps": 1e-5, "_hidden": 1, "child": object(), "activation": len, "stride": [2, 2]})
    {'eps': 1e-05, 'activation': 'len', 'stride': (2, 2)}
    """
    found = {name: _plain(value) for name, value in attributes.items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if value is not _COMPLEX}


_COMPLEX = object()


def _plain(value: Any) -> Any:
    """A value as a setting tells it."""
    plain: Any = _COMPLEX
    if value is None or isinstance(value, bool | int | float | str):
        plain = value
    elif isinstance(value, np.generic):
        plain = value.item()
    elif isinstance(value, tuple | list):
        parts = tuple(_plain(part) for part in value)
        plain = _COMPLEX if _COMPLEX in parts else parts
    elif isinstance(value, functools.partial):
        given = [*map(str, value.args), *(f"{name}={setting!r}" for name, setting in value.keywords.items())]
        plain = f"{getattr(value.func, '__name__', value.func)}({', '.join(given)})"
    elif isinstance(getattr(value, "__name__", None), str) and callable(value):
        plain = value.__name__
    elif type(value).__name__ == "dtype" or isinstance(value, np.dtype):
        plain = str(value).rpartition(".")[2]
    return plain


def _parts(tree: Any) -> dict[Any, Any]:
    """What a container holds, by field, key or place; nothing for what is no container."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not callable(tree):  # a module is no container
        return {entry.name: getattr(tree, entry.name, None) for entry in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        return dict(tree)
    return dict(enumerate(tree)) if isinstance(tree, tuple | list) else {}


def _filled(tree: Any, arrays: Iterator[Any | None], is_array: IsArray) -> Any:
    if is_array(tree):
        new = next(arrays)
        return tree if new is None else new
    old = _parts(tree)
    new = {key: _filled(part, arrays, is_array) for key, part in old.items()}
    changed = {key: part for key, part in new.items() if part is not old[key]}
    if not changed:
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(tree, **changed)
    rebuild: Any = type(tree)
    if isinstance(tree, Mapping):
        return rebuild(new)
    return rebuild(*new.values()) if hasattr(tree, "_fields") else rebuild(new.values())
