"""One window in torch: gradients accumulate in place in `.grad`, then one step.

The divisor of the window is known before its first backward pass, so it enters as the gradient of each micro-batch's
loss, and no second pass over the gradients is needed. Nothing in a window waits for the device; its end does once,
for the norm that decides whether the update is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch

from multibackend.experiment import Experiment
from multibackend_torch.names import named_parameters, named_state

__all__ = ["Batch", "MicroBatch", "TrainState", "WindowRow", "run_window"]

Batch = dict[str, torch.Tensor]
MicroBatch = tuple[Batch, float]  # with its factor
Forward = Callable[[torch.nn.Module, Batch], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class TrainState:
    """What a run carries from window to window; mutated in place."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    update: int = 0
    failed: bool = False
    ema: dict[str, torch.Tensor] = field(default_factory=dict)  # of the parameters; empty where none is kept
    parameters: dict[str, torch.nn.Parameter] = field(init=False)
    model_state: dict[str, torch.Tensor] = field(init=False)
    buffers: list[torch.Tensor] = field(init=False)  # what a forward pass may change: no frozen parameters

    def __post_init__(self) -> None:
        self.parameters = named_parameters(self.module)
        self.model_state = named_state(self.module)
        self.buffers = list(self.module.buffers())


@dataclass(frozen=True)
class WindowRow:
    """What one window measured; the losses stay on the device."""

    totals: list[torch.Tensor]
    factors: list[float]
    weight: float
    scale: float
    norm: float
    norms: torch.Tensor
    finite: bool
    applied: bool


def run_window(
    state: TrainState,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    weight: float,
    rate: float,
    stamp: Callable[[int, int], None],
) -> WindowRow:
    """Accumulate, normalise, check, clip, update. `weight` is NaN where only the loss knows it."""
    before = [buffer.clone() for buffer in state.buffers]
    totals, factors, weights = _accumulate(state, micro_batches, forward, experiment, stamp)
    gradients = _gradients(state.parameters.values())
    if math.isnan(weight):
        weight = float(sum(w.item() for w in weights))
    scale = 1.0 / weight if weights and weight > 0 and experiment.normalize == "window" else 1.0
    norms = _norms(gradients)
    norm = torch.linalg.vector_norm(norms).item() * scale
    finite = math.isfinite(norm)
    applied = finite and weight > 0
    if applied:
        _clip(gradients, scale, norm, experiment.max_grad_norm)
        _step(state, rate)
        if state.ema:
            _average(state, experiment)
    else:
        for buffer, old in zip(state.buffers, before, strict=True):
            buffer.copy_(old)
        state.failed |= not finite and experiment.on_nonfinite == "raise"
    state.optimizer.zero_grad(set_to_none=True)
    return WindowRow(totals, factors, weight, scale, norm, norms, finite, applied)


def _accumulate(
    state: TrainState,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    stamp: Callable[[int, int], None],
) -> tuple[list[torch.Tensor], list[float], list[torch.Tensor]]:
    """Backward passes of all micro-batches: their losses' sums, their factors, and their weights if dynamic."""
    totals, factors, weights = [], [], []
    seed, seed_factor = None, None
    for index, (batch, factor) in enumerate(micro_batches):
        stamp(state.update, index)
        total, weight = forward(state.module, batch)
        if weight is not None:
            weights.append(weight)
            if experiment.normalize == "microbatch":
                total = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        if factor != seed_factor:
            seed, seed_factor = torch.full_like(total, factor), factor
        torch.autograd.backward(total, seed)
        totals.append(total.detach())
        factors.append(factor)
    return totals, factors, weights


def _gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The gradients; a parameter that no micro-batch used has gradient 0, as in JAX, not none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The norm of each gradient: [parameters]."""
    if gradients[0].is_cuda:
        return torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage] - as torch.nn
    # on CPU a dot product reads memory faster than torch's norm does: 22 us against 79 us for 670 k parameters
    flat = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([torch.dot(values, values) for values in flat]).sqrt_()


def _clip(gradients: list[torch.Tensor], scale: float, norm: float, limit: float | None) -> None:
    if limit is not None and norm > limit:
        scale *= limit / norm
    if scale != 1.0:
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage] - what torch.optim uses


def _step(state: TrainState, rate: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.update += 1


@torch.no_grad()
def _average(state: TrainState, experiment: Experiment) -> None:
    """e + (1 - d) * (p - e) after the update that was just made."""
    share = 1 - float(experiment.ema_decay or 0.0)
    if experiment.ema_warmup:  # 1 - (1 + t) / (10 + t), t the index of that update
        share = max(share, 9 / (10 + state.update - 1))
    torch._foreach_lerp_(list(state.ema.values()), list(state.parameters.values()), share)  # pyright: ignore[reportPrivateImportUsage] - as above
