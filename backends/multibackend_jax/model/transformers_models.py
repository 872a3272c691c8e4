"""Objects that hold a linen module and its parameters, as model libraries hand them out.

Such an object has `.module`, `.params` and a `__call__` that completes the arguments (masks,
positions) and then runs `self.module.apply({"params": ...}, ...)`. Its call stays the user's way
in; what it applies is the module bound to the variables of the moment, so that everything a linen
module can do here (state, dropout, rematerialisation) works alike.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from multibackend_jax.model.calls import Call, mode_arguments
from multibackend_jax.model.precision import Precision

__all__ = ["held_call", "held_module", "held_variables", "holding", "is_holder"]

_MODES = ("train", "deterministic")  # by which the calls of such objects ask for the mode


def is_holder(candidate: object) -> bool:
    """Whether an object holds a linen module that it runs itself."""
    # not by its class, which would take an import of every library that has such objects
    module = getattr(candidate, "module", None)
    return isinstance(module, linen.Module) and callable(candidate)


def held_module(holder: Any, precision: Precision) -> linen.Module:
    """Return the module; its float32 arithmetic is widened in a float64 run."""
    module = holder.module
    dtype = getattr(module, "dtype", None)
    if precision.name == "float64" and dtype is not None and jnp.dtype(dtype) == jnp.float32:
        return module.clone(dtype=jnp.float64)
    return module


def held_variables(holder: Any) -> dict[str, Any]:
    """Return the holder's initial values by collection; nothing where it made none."""
    try:
        values = holder.params
    except (AttributeError, ValueError):  # transformers raises ValueError with `_do_init=False`
        return {}
    if not isinstance(values, Mapping) or not values:
        return {}
    return dict(values) if "params" in values else {"params": values}


def held_call(holder: Any, call: Call) -> Call:
    """Return the user's call, given the holder with the bound module in the place of its own."""

    def call_holder(bound: linen.Module, batch: Any, train: bool) -> Any:
        return call(_live(holder, bound, train), batch, train)

    return call_holder


def holding(holder: Any, variables: dict[str, Any]) -> Any:
    """Return a copy of a holder that has these variables in the place of its own."""
    live = copy.copy(holder)
    live.params = variables if set(variables) != {"params"} else variables["params"]
    return live


class _Unchanged(dict):
    """Stands for the collections that `apply` returns; the bound module's changed in place."""


class _Bound:
    """A module whose variables are already there: `apply` runs it and ignores those that it is given."""

    def __init__(self, bound: linen.Module) -> None:
        self._bound = bound

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)

    def apply(
        self, variables: Any, *args: Any, rngs: Any = None, mutable: Any = False, method: Any = None, **kwargs: Any
    ) -> Any:
        """Stand in for `linen.Module.apply`, with the streams and collections of the call around."""
        if callable(method):
            outputs = method(self._bound, *args, **kwargs)
        else:
            outputs = getattr(self._bound, method or "__call__")(*args, **kwargs)
        return outputs if mutable is False else (outputs, _Unchanged())


def _live(holder: Any, bound: linen.Module, train: bool) -> Any:
    """Copy a holder around a bound module, called in the mode of the moment unless told another."""
    kind = type(holder)
    signature = inspect.signature(kind.__call__)
    modes = mode_arguments(tuple(name for name in _MODES if name in signature.parameters), train)
    variables = held_variables(holder)
    stateful = set(variables) - {"params"}
    # what the user's code reads of `params` has the structure that it had, with or
    # without collections
    params = variables if stateful else variables.get("params", {})

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind_partial(self, *args, **kwargs).arguments
        missing = {name: mode for name, mode in modes.items() if name not in arguments}
        outputs = kind.__call__(self, *args, **kwargs, **missing)
        if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], _Unchanged):
            return outputs[0]
        return outputs

    properties = {
        "__call__": call,
        "module": property(lambda self: _Bound(bound)),
        "params": property(lambda self: params),
    }
    live = copy.copy(holder)
    live.__class__ = type(kind.__name__, (kind,), properties)
    dtype = getattr(bound, "dtype", None)
    if dtype is not None and "dtype" in vars(holder):  # its call makes masks and the like of this dtype
        live.dtype = jax.dtypes.canonicalize_dtype(dtype)
    return live
