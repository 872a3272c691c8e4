"""Training loops as one writes them by hand in PyTorch: eager, `loss / k`, one optimizer step per window.

The rows of a window are gathered from numpy in one call. Losses stay on the device until the end of a slice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_models
from benchmarks.timing import Contender
from benchmarks.workloads import Workload, windows_of_rows

__all__ = ["hand_written", "names"]

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, **options: torch.optim.SGD(parameters, momentum=0.9, **options),
    "adam": torch.optim.Adam,
    "adamw": lambda parameters, **options: torch.optim.AdamW(parameters, weight_decay=0.01, **options),
}


def _cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), labels.reshape(-1))


_LOSSES = {"mean_squared_error": F.mse_loss, "cross_entropy": _cross_entropy}


def names(workload: Workload) -> list[str]:
    """The loops worth trying: one with each of torch's two fast optimizer implementations."""
    return ["eager, foreach", "eager, fused"]


def hand_written(workload: Workload, name: str) -> Contender:
    """The loop of that name."""
    return Contender(name, _loop(workload, name.removeprefix("eager, ")))


def _loop(workload: Workload, kind: str) -> Callable[[int], np.ndarray]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = getattr(torch_models, workload.name)().to(device).train()
    optimizer = _OPTIMIZERS[workload.optimizer](model.parameters(), lr=workload.learning_rate, **{kind: True})
    loss_of, size, steps = _LOSSES[workload.loss], workload.micro_batch, workload.steps
    windows = windows_of_rows(workload.data("torch"), size * steps)

    def train(updates: int) -> np.ndarray:
        losses = []
        for _ in range(updates):
            rows = next(windows)
            inputs = torch.from_numpy(rows["x"]).to(device, non_blocking=True).split(size)
            targets = torch.from_numpy(rows["y"]).to(device, non_blocking=True).split(size)
            for x, y in zip(inputs, targets, strict=True):
                loss = loss_of(model(x), y) / steps
                loss.backward()
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).view(updates, steps).sum(dim=1).cpu().numpy()

    return train
