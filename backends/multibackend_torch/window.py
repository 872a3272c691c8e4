"""One window in torch: gradients accumulate in place in `.grad`, then one step.

The divisor of the window is known before its first backward pass, so it enters as the gradient of each micro-batch's
loss, and no second pass over the gradients is needed. Nothing in a window waits for the device; its end does once,
for the norm that decides whether the update is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from multibackend.experiment import Experiment
from multibackend.precision import LossScale
from multibackend_torch.names import named_parameters, named_state
from multibackend_torch.optimizers import set_learning_rate

__all__ = ["Batch", "Forward", "MicroBatch", "Sums", "TrainState", "WindowRow", "accumulate", "finish", "run_window"]

Batch = dict[str, torch.Tensor]
MicroBatch = tuple[Batch, list[float]]  # with its factors, one per term of the loss
Forward = Callable[[torch.nn.Module, Batch], tuple[list[torch.Tensor], torch.Tensor | None]]


@dataclass
class TrainState:
    """What a run carries from window to window; mutated in place."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    update: int = 0
    failed: bool = False
    loss_scale: LossScale | None = None  # of fp16
    frozen: frozenset[str] = frozenset()
    ema: dict[str, torch.Tensor] = field(default_factory=dict)  # of the parameters; empty where none is kept
    parameters: dict[str, torch.nn.Parameter] = field(init=False)
    trained: dict[str, torch.nn.Parameter] = field(init=False)  # those that are not frozen
    model_state: dict[str, torch.Tensor] = field(init=False)
    buffers: list[torch.Tensor] = field(init=False)  # what a forward pass may change: no frozen parameters

    def __post_init__(self) -> None:
        self.parameters = named_parameters(self.module)
        self.trained = {name: p for name, p in self.parameters.items() if name not in self.frozen}
        self.model_state = named_state(self.module)
        self.buffers = list(self.module.buffers())
        for name in self.frozen:
            self.parameters[name].requires_grad_(False)


@dataclass(frozen=True)
class WindowRow:
    """What one window measured; the losses, in one list by micro-batch and term, stay on the device."""

    totals: list[torch.Tensor]
    factors: list[float]
    weights: list[float]
    share: float  # what the losses are still to be multiplied by
    scale: float  # the same for the norms
    norm: float
    norms: torch.Tensor
    finite: bool
    applied: bool
    loss_scale: float


class Sums(NamedTuple):
    """What the micro-batches of a window gave: by micro-batch and term the losses' sums and their factors; and by
    micro-batch the weights where only the loss knows them.
    """

    totals: list[torch.Tensor]
    factors: list[float]
    weights: list[torch.Tensor]


def run_window(
    state: TrainState,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    weights: list[float],
    rate: float,
    stamp: Callable[[int, int], None],
) -> WindowRow:
    """Accumulate, normalise, check, clip, update. `weights` of the terms are NaN where only the loss knows them."""
    before = [buffer.clone() for buffer in state.buffers]
    sums = accumulate(state, micro_batches, forward, experiment, stamp)
    return finish(state, sums, before, experiment, weights, rate)


def finish(
    state: TrainState,
    sums: Sums,
    before: list[torch.Tensor],
    experiment: Experiment,
    weights: list[float],
    rate: float,
) -> WindowRow:
    """Normalise, check, clip, update. `before` is what `state.buffers` held as the window began."""
    totals, factors, found = sums
    loss_scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    gradients = _gradients(state.trained.values())
    if found:
        weights = [float(sum(weight.item() for weight in found))]
    weight = sum(weights)
    share = 1.0 / weight if found and weight > 0 and experiment.normalize == "window" else 1.0
    scale = share / loss_scale
    norms = _norms(gradients)
    norm = torch.linalg.vector_norm(norms).item() * scale
    finite = math.isfinite(norm)
    applied, overflow = finite and weight > 0, not finite and loss_scale > LossScale.smallest
    if state.loss_scale is not None and (applied or overflow):
        state.loss_scale = state.loss_scale.after(overflow=overflow)
    if applied:
        _clip(gradients, scale, norm, experiment.max_grad_norm)
        _step(state, rate)
        if state.ema:
            _average(state, experiment)
    else:
        for buffer, old in zip(state.buffers, before, strict=True):
            buffer.copy_(old)
        state.failed |= not finite and not overflow and experiment.on_nonfinite == "raise"
    state.optimizer.zero_grad(set_to_none=True)
    return WindowRow(totals, factors, weights, share, scale, norm, norms, finite, applied, loss_scale)


def accumulate(
    state: TrainState,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    stamp: Callable[[int, int], None],
    first: int = 0,
) -> Sums:
    """Backward passes of micro-batches, from the one with index `first` on."""
    loss_scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    totals, factors, weights = [], [], []
    seeds, seed_factors = [], None
    for index, (batch, shares) in enumerate(micro_batches, first):
        stamp(state.update, index)
        sums, weight = forward(state.module, batch)
        if weight is not None:
            weights.append(weight)
            if experiment.normalize == "microbatch":
                sums = [total / weight.clamp(min=torch.finfo(weight.dtype).tiny) for total in sums]
        if shares != seed_factors:
            seeds = [torch.full_like(total, share * loss_scale) for total, share in zip(sums, shares, strict=True)]
            seed_factors = shares
        _backward(sums, seeds)
        totals += [total.detach() for total in sums]
        factors += shares
    return Sums(totals, factors, weights)


def _backward(sums: list[torch.Tensor], seeds: list[torch.Tensor]) -> None:
    """One backward pass through all terms; one that does not depend on the parameters has no gradient."""
    if len(sums) > 1:
        live = [(total, seed) for total, seed in zip(sums, seeds, strict=True) if total.requires_grad]
        sums, seeds = [total for total, _ in live], [seed for _, seed in live]
    if sums and sums[0].requires_grad:  # else this micro-batch met frozen parameters only
        torch.autograd.backward(sums, seeds)


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
    set_learning_rate(state.optimizer, rate)
    state.optimizer.step()
    state.update += 1


@torch.no_grad()
def _average(state: TrainState, experiment: Experiment) -> None:
    """e + (1 - d) * (p - e) after the update that was just made."""
    share = 1 - float(experiment.ema_decay or 0.0)
    if experiment.ema_warmup:  # 1 - (1 + t) / (10 + t), t the index of that update
        share = max(share, 9 / (10 + state.update - 1))
    torch._foreach_lerp_(list(state.ema.values()), list(state.parameters.values()), share)  # pyright: ignore[reportPrivateImportUsage] - as above
