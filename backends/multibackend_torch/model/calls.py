"""How a torch model is called, and how what it raises is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from multibackend.core.user_code import Layer, LayerOf, fields_of, user_code

__all__ = ["Batch", "Call", "index_repair", "running", "told"]

# what torch says of an index outside a table
_INDEX_REFUSALS = ("index out of range in self", "is out of bounds for dimension", "which is not in the valid range")

Batch = Mapping[str, torch.Tensor]
Call = Callable[[torch.nn.Module, Batch, bool], Any]
"""The user's function from (module, batch, train) to outputs."""


def running(
    role: str,
    layer_of: LayerOf | None = None,
    hint: str | Callable[[], str] = "",
    repair: Callable[[Exception], str] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Tell what a user's code raises inside the `with`; see `multibackend.core.user_code`."""
    # a graph holds no context of Python's; what is compiled has run on the example before
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return user_code(role, layer_of, hint, repair)


def told(call: Call, role: str) -> Call:
    """Return a call whose errors say in which layer they arose, and what was given to it."""

    def tell(module: torch.nn.Module, batch: Batch, train: bool) -> Any:
        with running(role, partial(_layer_of, module), partial(fields_of, batch), index_repair):
            return call(module, batch, train)

    return tell


def index_repair(error: Exception) -> str:
    """Say what to do where torch refuses an index; "" for any other error.

    >>> index_repair(IndexError("index out of range in self"))[:40]
    'an index that the model computed lies ou'
    """
    if not any(words in str(error) for words in _INDEX_REFUSALS):
        return ""
    return (
        "an index that the model computed lies outside the table in which it is looked up: compute it within "
        "[0, rows), or give the table more rows"
    )


def _layer_of(root: torch.nn.Module, value: Any) -> Layer | None:
    if not isinstance(value, torch.nn.Module):
        return None
    shapes = {name: tuple(parameter.shape) for name, parameter in value.named_parameters(recurse=False)}
    for path, part in root.named_modules():
        if part is value:
            return Layer(path, type(value).__name__, shapes)
    return None
