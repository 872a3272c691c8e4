"""How a Flax model is called, and how what it raises is told."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen.dtypes
import flax.nnx.nn.dtypes
import jax
import jax.numpy as jnp
from flax import linen, nnx

from multibackend.core.user_code import Layer, check_outputs, fields_of, name_of, user_code
from multibackend.experiment import Model
from multibackend_jax.model.pure import Batch

__all__ = ["Call", "caller", "mode_arguments", "rngs_repair"]

Call = Callable[[Any, Batch, bool], Any]
"""(module, batch, train) to outputs."""

# what Flax calls the argument that tells a module its mode, and its value in training
_MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
# where Flax decides in which dtype a layer computes
_PROMOTING: tuple[Any, ...] = (flax.nnx.nn.dtypes, flax.linen.dtypes)


def caller(model: Model, forward: Callable[..., Any]) -> Call:
    """Return how to call the module: the user's way, or on its inputs and with the mode."""
    custom = model.call("jax")
    if custom is not None:
        return _told(custom, f"call={name_of(custom)}, which is called as call(model, batch, train),")
    modes = tuple(name for name in _MODES if name in inspect.signature(forward).parameters)

    def call(module: Any, batch: Batch, train: bool) -> Any:
        return module(*model.arguments(batch), **mode_arguments(modes, train))

    return _told(call, "the model")


def mode_arguments(names: tuple[str, ...], train: bool) -> dict[str, bool]:
    """Return the values of mode arguments.

    >>> mode_arguments(("train", "deterministic"), True)
    {'train': True, 'deterministic': False}
    """
    return {name: train == _MODES[name] for name in names}


def rngs_repair(error: Exception) -> str:
    """Return the way out where a layer lacks its random numbers; "" for any other error.

    >>> rngs_repair(TypeError("Linear.__init__() missing 1 required keyword-only argument: 'rngs'"))[:40]
    'a layer lacks its random numbers: let th'
    """
    if not re.search(r"\brngs\b|Rng", f"{type(error).__name__} {error}"):
        return ""
    return (
        "a layer lacks its random numbers: let the builder take them and hand them on, "
        "jax=lambda rngs: Net(rngs=rngs), and inside nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)"
    )


def _told(call: Call, role: str) -> Call:
    """Return a call whose errors say in which layer they arose, and what was given to it.

    It runs while the model is traced, and so costs a step nothing.
    """

    def tell(module: Any, batch: Batch, train: bool) -> Any:
        with (
            user_code(role, partial(_layer_of, module), partial(fields_of, batch), rngs_repair),
            _promoting_no_integers(),
        ):
            outputs = call(module, batch, train)
        check_outputs(outputs, jax.Array)
        return outputs

    return tell


def _layer_of(root: Any, value: Any) -> Layer | None:
    if isinstance(value, nnx.Module):
        for path, part in nnx.iter_modules(root) if isinstance(root, nnx.Module) else ():
            if part is value:
                own = {name: leaf.shape for name, leaf in vars(part).items() if isinstance(leaf, nnx.Param)}
                return Layer(".".join(map(str, path)), type(value).__name__, own)
    if isinstance(value, linen.Module) and value.scope is not None:
        own = value.variables.get("params", {})
        shapes = {name: leaf.shape for name, leaf in own.items() if hasattr(leaf, "shape")}
        return Layer(".".join(value.path), type(value).__name__, shapes)
    return None


@contextlib.contextmanager
def _promoting_no_integers() -> Iterator[None]:
    """Refuse integers where a Flax layer would make them floats to match its parameters.

    torch's layers refuse them. A label or an id that reached a layer by mistake would train on in
    one framework only.
    """
    before = [module.canonicalize_dtype for module in _PROMOTING]
    try:
        for module, original in zip(_PROMOTING, before, strict=True):
            module.canonicalize_dtype = partial(_canonical, original)
        yield
    finally:
        for module, original in zip(_PROMOTING, before, strict=True):
            module.canonicalize_dtype = original


def _canonical(original: Callable[..., Any], *arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    if dtype is None and inexact:
        dtypes = [jnp.result_type(array) for array in arrays if hasattr(array, "dtype")]
        floating = [found for found in dtypes if jnp.issubdtype(found, jnp.inexact)]
        others = [found for found in dtypes if not jnp.issubdtype(found, jnp.inexact)]
        if floating and others:
            raise TypeError(
                f"the layer computes in {floating[0]} and was given {others[0]}; make the field floating-point in the "
                "data, or cast it in the model"
            )
    return original(*arrays, dtype=dtype, inexact=inexact)
