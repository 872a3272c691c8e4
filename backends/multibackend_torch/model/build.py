"""Torch modules, built from the user's function and called the user's way."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from multibackend.errors import ConfigurationError
from multibackend.experiment import Model
from multibackend_torch.model.calls import Batch, Call
from multibackend_torch.model.precision import Precision
from multibackend_torch.model.randomness import seeded

__all__ = ["build_model", "caller"]


def build_model(model: Model, precision: Precision, seed: int, device: torch.device) -> torch.nn.Module:
    """Call the user's builder, the random generators seeded; raises `ConfigurationError` for what is no module."""
    builder = model.builder("torch")
    with seeded(seed, device):
        module = builder()
    if not isinstance(module, torch.nn.Module):
        raise ConfigurationError(
            "Model", [f"the torch builder must return a torch.nn.Module, got {type(module).__name__}"]
        )
    return module.to(device=device, dtype=precision.dtype)


def caller(model: Model, module: torch.nn.Module) -> Call:
    """How to call the module: the user's way, or on its inputs, told the mode where its signature asks for it."""
    custom = model.call("torch")
    if custom is not None:
        return custom
    asks = "train" in inspect.signature(module.forward).parameters

    def call(module: torch.nn.Module, batch: Batch, train: bool) -> Any:
        inputs = model.arguments(batch)
        return module(*inputs, train=train) if asks else module(*inputs)

    return call
