"""Objects that hold a linen module and its parameters, as model libraries hand them out.

Such an object has `.module`, `.params` and a `__call__` that completes the arguments (masks, positions) and then runs
`self.module.apply({"params": ...}, ...)`. Its call stays the user's way in; what it applies is the module bound to the
variables of the moment, so that everything a linen module can do here (state, dropout, rematerialisation) works alike.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from multibackend_jax.model.precision import Precision

__all__ = ["held_call", "held_module", "held_variables", "is_holder"]

_MODES: dict[str, Callable[[bool], bool]] = {"train": lambda train: train, "deterministic": lambda train: not train}


def is_holder(candidate: object) -> bool:
    """Whether an object holds a linen module that it runs itself; told by what it has, not by its class."""
    module = getattr(candidate, "module", None)
    return isinstance(module, linen.Module) and callable(candidate)


def held_module(holder: Any, precision: Precision) -> linen.Module:
    """The module, its float32 arithmetic widened in a float64 run, which proves nothing otherwise."""
    module, dtype = holder.module, getattr(holder.module, "dtype", None)
    if precision.name == "float64" and dtype is not None and jnp.dtype(dtype) == jnp.float32:
        return module.clone(dtype=jnp.float64)
    return module


def held_variables(holder: Any) -> dict[str, Any]:
    """The holder's initial values by collection; empty where it was told not to make any."""
    try:
        values = holder.params
    except (AttributeError, ValueError):
        return {}
    if not isinstance(values, Mapping) or not values:
        return {}
    return dict(values) if "params" in values else {"params": values}


def held_call(holder: Any, call: Callable[[Any, Any, bool], Any]) -> Callable[[Any, Any, bool], Any]:
    """The user's call, given the holder with the bound module in the place of its own."""

    def called(bound: linen.Module, batch: Any, train: bool) -> Any:
        return call(_live(holder, bound, train), batch, train)

    return called


class _Unchanged(dict):
    """Stands for the collections that `apply` returns: the variables of the bound module changed in place."""


class _Bound:
    """A module whose variables are already there: `apply` runs it and ignores those that it is given."""

    def __init__(self, bound: linen.Module) -> None:
        self._bound = bound

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def apply(
        self, variables: Any, *args: Any, rngs: Any = None, mutable: Any = False, method: Any = None, **kwargs: Any
    ) -> Any:
        """As `linen.Module.apply`; randomness and mutable collections are those of the enclosing call."""
        if callable(method):
            outputs = method(self._bound, *args, **kwargs)
        else:
            outputs = getattr(self._bound, method or "__call__")(*args, **kwargs)
        return outputs if mutable is False else (outputs, _Unchanged())


def _live(holder: Any, bound: linen.Module, train: bool) -> Any:
    """A shallow copy of the holder around a bound module, called in the mode of the moment unless told another."""
    kind, initial = type(holder), held_variables(holder)
    accepted = inspect.signature(kind.__call__).parameters
    modes = {name: mode(train) for name, mode in _MODES.items() if name in accepted}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(kind.__call__).bind_partial(self, *args, **kwargs).arguments
        outputs = kind.__call__(self, *args, **kwargs, **{n: mode for n, mode in modes.items() if n not in given})
        if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], _Unchanged):
            return outputs[0]
        return outputs

    fields = {
        "__call__": call,
        "module": property(lambda self: _Bound(bound)),
        "params": property(lambda self: initial if set(initial) - {"params"} else initial.get("params", {})),
    }
    live = copy.copy(holder)
    live.__class__ = type(kind.__name__, (kind,), fields)
    dtype = getattr(bound, "dtype", None)
    if dtype is not None and "dtype" in vars(holder):
        live.dtype = jax.dtypes.canonicalize_dtype(dtype)
    return live
