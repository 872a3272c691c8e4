"""Optimizer specs as `torch.optim` optimizers, with fused kernels.

The learning rate is written into the parameter group before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from multibackend import optimizers
from multibackend.errors import ConfigurationError

__all__ = ["build_optimizer", "read_slots", "slot_names", "write_slots"]

Parameters = Mapping[str, torch.nn.Parameter]


@singledispatch
def build_optimizer(spec: optimizers.Optimizer, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """The native optimizer of a spec."""
    raise ConfigurationError(
        type(spec).__name__, ["the torch backend has no such optimizer; register it with build_optimizer"]
    )


@build_optimizer.register
def _(spec: optimizers.SGD, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=0.0,
        momentum=float(spec.momentum),
        nesterov=spec.nesterov,
        weight_decay=float(spec.weight_decay),
        fused=True,
    )


@build_optimizer.register
def _(spec: optimizers.Adam, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, **_adam_options(spec))


@build_optimizer.register
def _(spec: optimizers.AdamW, parameters: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_adam_options(spec))


def _adam_options(spec: optimizers.Adam | optimizers.AdamW) -> dict[str, Any]:
    betas = (float(spec.beta1), float(spec.beta2))
    return {"lr": 0.0, "betas": betas, "eps": float(spec.eps), "weight_decay": float(spec.weight_decay), "fused": True}


def slot_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of its per-parameter tensors."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def read_slots(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, dict[str, torch.Tensor]]:
    """The optimizer's per-parameter tensors by slot; zeros where it has not stepped yet."""
    return {
        slot: {name: optimizer.state[p].get(slot, torch.zeros_like(p)) for name, p in parameters.items()}
        for slot in slot_names(optimizer)
    }


def write_slots(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    slots: Mapping[str, Mapping[str, np.ndarray]],
    update: int,
) -> None:
    """Replace the optimizer's per-parameter tensors and its count of updates."""
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        for slot in slot_names(optimizer):
            state[slot] = torch.tensor(slots[slot][name], dtype=parameter.dtype, device=parameter.device)
        if not isinstance(optimizer, torch.optim.SGD):
            state["step"] = torch.tensor(float(update), device=parameter.device)
