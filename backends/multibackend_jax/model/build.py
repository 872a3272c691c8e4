"""Flax modules, built from the user's function and made pure functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen, nnx

from multibackend.core.user_code import name_of, user_code
from multibackend.errors import ConfigurationError
from multibackend.experiment import Model
from multibackend.experiment.rematerialization import Rematerialize
from multibackend_jax.model.calls import rngs_repair
from multibackend_jax.model.linen_model import wrap_linen
from multibackend_jax.model.nnx_model import wrap_nnx
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import Batch, FlaxModel, ModelOptions
from multibackend_jax.model.transformers_models import is_holder

__all__ = ["build_model"]


def build_model(
    model: Model,
    precision: Precision,
    seed: int,
    example: Batch,
    *,
    portable_dropout: bool = False,
    frozen: bool = False,
    rematerialize: Rematerialize = False,
) -> FlaxModel:
    """Call the user's builder; raises `ConfigurationError` for what is no Flax module."""
    builder = model.builder("jax")
    hint = "the jax builder is called without arguments, or with rngs= where it takes them"
    with user_code(f"the jax builder{name_of(builder)}", hint=hint, repair=rngs_repair):
        module = builder(rngs=nnx.Rngs(seed)) if _takes_rngs(builder) else builder()
    options = ModelOptions(seed, portable_dropout, frozen, rematerialize)
    if isinstance(module, nnx.Module):
        return wrap_nnx(module, model, precision, options)
    if isinstance(module, linen.Module) or is_holder(module):
        return wrap_linen(module, model, precision, options, example)
    raise ConfigurationError(
        "Model", [f"the jax builder must return a flax nnx or linen Module, got {type(module).__name__}"]
    )


def _takes_rngs(builder: Callable[..., Any]) -> bool:
    """Whether a builder wants `rngs` and a `functools.partial` has not given them already."""
    bound: set[str] = set()
    while isinstance(builder, functools.partial):
        bound |= builder.keywords.keys()
        builder = builder.func
    # the metaclass of nnx modules hides the arguments of `__init__` from the signature of a class
    target = builder.__init__ if isinstance(builder, type) else builder
    return "rngs" in inspect.signature(target).parameters and "rngs" not in bound
