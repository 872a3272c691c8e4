"""Torch modules, built from the user's function and called the user's way."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from multibackend.core.user_code import name_of, user_code
from multibackend.errors import ConfigurationError
from multibackend.experiment import Model
from multibackend_torch.model.calls import Batch, Call, told
from multibackend_torch.model.precision import Precision
from multibackend_torch.model.randomness import seeded

__all__ = ["build_model", "caller"]


def build_model(model: Model, precision: Precision, seed: int, device: torch.device) -> torch.nn.Module:
    """Call the user's builder with seeded generators; anything but a module is a `ConfigurationError`."""
    builder = model.builder("torch")
    hint = "the torch builder is called without arguments"
    with seeded(seed, device), user_code(f"the torch builder{name_of(builder)}", hint=hint):
        module = builder()
    if not isinstance(module, torch.nn.Module):
        problem = f"the torch builder must return a torch.nn.Module, got {type(module).__name__}"
        raise ConfigurationError("Model", [problem])
    return module.to(device=device, dtype=precision.dtype)


def caller(model: Model, module: torch.nn.Module) -> Call:
    """Return the user's way to call the module, or one with its inputs, and `train` where it takes that."""
    custom = model.call("torch")
    if custom is not None:
        role = f"call={name_of(custom)}, which is called as call(model, batch, train),"
        return told(custom, role)
    # once, not for every micro-batch: `signature` takes longer than a small layer
    takes_train = "train" in inspect.signature(module.forward).parameters

    def call(module: torch.nn.Module, batch: Batch, train: bool) -> Any:
        inputs = model.arguments(batch)
        if takes_train:
            return module(*inputs, train=train)
        return module(*inputs)

    return told(call, "the model")
