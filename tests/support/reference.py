"""A hand-written float64 PyTorch loop, which shares no code with the library."""

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
    frozen: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], list[float]]:
    """One optimizer step per batch of example indices, from the parameters `start`: (parameters, losses)."""
    module = module.double()
    module.load_state_dict({name: torch.tensor(array, dtype=torch.float64) for name, array in start.items()})
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    optimizer, losses = build(module.parameters()), []
    for index in batches:
        batch = {name: torch.tensor(array[index]) for name, array in data.items()}
        optimizer.zero_grad()
        value = loss(module(batch["x"]), batch)
        value.backward()
        if max_grad_norm is not None:
            trained = [p for p in module.parameters() if p.requires_grad]
            norm = torch.sqrt(sum((p.grad**2).sum() for p in trained))
            for p in trained:
                p.grad *= min(1.0, max_grad_norm / float(norm))
        optimizer.step()
        losses.append(value.item())
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}, losses
