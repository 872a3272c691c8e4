"""A hand-written float64 PyTorch loop and numpy optimizers, which share no code with the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

Arrays = Mapping[str, np.ndarray]


def large_batch_steps(
    module: torch.nn.Module,
    start: Arrays,
    data: Arrays,
    batches: Sequence[np.ndarray],
    loss: Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor],
    build: Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer],
    max_grad_norm: float | None = None,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """One optimizer step per batch of example indices, from the parameters `start`: (parameters, losses)."""
    module = module.double()
    module.load_state_dict({name: torch.tensor(array, dtype=torch.float64) for name, array in start.items()})
    optimizer, losses = build(module.parameters()), []
    for index in batches:
        batch = {name: torch.tensor(array[index]) for name, array in data.items()}
        optimizer.zero_grad()
        value = loss(module(batch["x"]), batch)
        value.backward()
        if max_grad_norm is not None:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
            for p in module.parameters():
                p.grad *= min(1.0, max_grad_norm / float(norm))
        optimizer.step()
        losses.append(value.item())
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}, losses


def sgd(
    p: np.ndarray,
    gradients: np.ndarray,
    rate: Callable[[int], float],
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """The equations of the docstring of `SGD`."""
    p, b = p.copy(), np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        b = momentum * b + d
        d = d + momentum * b if nesterov else b
        p = p - rate(index) * d
    return p


def adam(
    p: np.ndarray,
    gradients: np.ndarray,
    rate: Callable[[int], float],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> np.ndarray:
    """The equations of the docstrings of `Adam` and, decoupled, of `AdamW`."""
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for index, g in enumerate(gradients):
        t = index + 1
        d = g if decoupled else g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        p = p - rate(index) * (step + (weight_decay * p if decoupled else 0.0))
    return p
