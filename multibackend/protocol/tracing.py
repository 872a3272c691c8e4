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
    """What to put in place of a layer's inputs and outputs, in its own layout; None leaves them.

    Feeding every layer of one model what the other's got shows each wrong layer, not
    the first alone.
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
        gradients: of their sum, by canonical name and layout; empty where not asked for.
        model_state: after the pass, by canonical name.
    """

    layers: tuple[LayerCall, ...]
    outputs: tuple[np.ndarray, ...]
    terms: np.ndarray
    gradients: Arrays = field(default_factory=dict)
    model_state: Arrays = field(default_factory=dict)


def arrays_in(tree: Any, is_array: IsArray) -> list[Any]:
    """List the arrays of nested tuples, lists, mappings and dataclasses, depth first.

    >>> arrays_in(({"a": 1.0}, [2.0, "x"]), lambda leaf: isinstance(leaf, float))
    [1.0, 2.0]
    """
    if is_array(tree):
        return [tree]
    arrays: list[Any] = []
    for part in _parts(tree).values():
        arrays += arrays_in(part, is_array)
    return arrays


def with_arrays(tree: Any, arrays: Sequence[Any | None], is_array: IsArray) -> Any:
    """Return the tree with other arrays where `arrays_in` lists them; None leaves one as it is.

    >>> with_arrays((1.0, {"a": 2.0}), [None, 5.0], lambda leaf: isinstance(leaf, float))
    (1.0, {'a': 5.0})
    """
    return _filled(tree, iter(arrays), is_array)


def forced_arrays(present: Sequence[Any], forced: Sequence[Any | None], what: str) -> list[Any | None]:
    """Make `forced` as long as `present`; raise `DataError` for a wrong shape or too many arrays."""
    if len(forced) > len(present):
        raise DataError(f"{what}: {len(forced)} arrays are to be put in place of {len(present)}")
    for index, (old, new) in enumerate(zip(present, forced, strict=False)):
        if new is not None and tuple(old.shape) != tuple(new.shape):
            raise DataError(f"{what}: array {index} has the shape {tuple(old.shape)}, not {tuple(new.shape)}")
    # Arrays beyond the last that is forced stay what they are.
    return [*forced, *[None] * (len(present) - len(forced))]


def plain_settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Select the attributes for `LayerCall.settings`: public, plain enough to compare and print.

    >>> plain_settings({"_hidden": 1, "child": object(), "activation": len, "stride": [2, 2]})
    {'activation': 'len', 'stride': (2, 2)}
    """
    public = {name: _plain(value) for name, value in attributes.items() if not name.startswith("_")}
    return {name: value for name, value in public.items() if value is not _COMPLEX}


_COMPLEX = object()  # no setting; None is one


def _plain(value: Any) -> Any:
    """Return a value as a setting tells it, alike in both frameworks; `_COMPLEX` for what is none."""
    plain: Any = _COMPLEX
    if value is None or isinstance(value, bool | int | float | str):
        plain = value
    elif isinstance(value, np.generic):
        plain = value.item()
    elif isinstance(value, tuple | list):
        parts = tuple(_plain(part) for part in value)
        plain = _COMPLEX if _COMPLEX in parts else parts
    elif isinstance(value, functools.partial):
        # Flax code sets the options of an activation so: `partial(gelu, approximate=True)`.
        arguments = [str(argument) for argument in value.args]
        arguments += [f"{name}={setting!r}" for name, setting in value.keywords.items()]
        plain = f"{getattr(value.func, '__name__', value.func)}({', '.join(arguments)})"
    elif isinstance(getattr(value, "__name__", None), str) and callable(value):
        plain = value.__name__
    elif type(value).__name__ == "dtype" or isinstance(value, np.dtype):
        # "torch.float32" and "float32" are one setting; torch's class is known by name only here.
        plain = str(value).rpartition(".")[2]
    return plain


def _parts(tree: Any) -> dict[Any, Any]:
    """Return what a container holds, by field, key or place; nothing for what is no container."""
    # A callable dataclass is a module, as linen's are, and no container.
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not callable(tree):
        return {entry.name: getattr(tree, entry.name, None) for entry in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        return dict(tree)
    if isinstance(tree, tuple | list):
        return dict(enumerate(tree))
    return {}


def _filled(tree: Any, arrays: Iterator[Any | None], is_array: IsArray) -> Any:
    """Rebuild a tree with the next of `arrays` in place of each of its own, in the same order."""
    if is_array(tree):
        array = next(arrays)
        return tree if array is None else array
    old = _parts(tree)
    new = {key: _filled(part, arrays, is_array) for key, part in old.items()}
    changed = {key: part for key, part in new.items() if part is not old[key]}
    # Left as it is, because a container of some library's may not be made anew from its
    # parts alone.
    if not changed:
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(tree, **changed)
    rebuild: Any = type(tree)
    if isinstance(tree, Mapping):
        return rebuild(new)
    if hasattr(tree, "_fields"):  # a named tuple takes its parts one by one
        return rebuild(*new.values())
    return rebuild(new.values())
