"""How a Flax model is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from multibackend.experiment import Model
from multibackend_jax.model.pure import Batch

__all__ = ["Call", "caller", "mode_arguments"]

Call = Callable[[Any, Batch, bool], Any]
"""(module, batch, train) to outputs."""

# what Flax calls the argument that tells a module its mode, and its value in training
_MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}


def caller(model: Model, forward: Callable[..., Any]) -> Call:
    """Return how to call the module: the user's way, or on its inputs and with the mode."""
    custom = model.call("jax")
    if custom is not None:
        return custom
    modes = tuple(name for name in _MODES if name in inspect.signature(forward).parameters)

    def call(module: Any, batch: Batch, train: bool) -> Any:
        return module(*model.arguments(batch), **mode_arguments(modes, train))

    return call


def mode_arguments(names: tuple[str, ...], train: bool) -> dict[str, bool]:
    """Return the values of mode arguments.

    >>> mode_arguments(("train", "deterministic"), True)
    {'train': True, 'deterministic': False}
    """
    return {name: train == _MODES[name] for name in names}
