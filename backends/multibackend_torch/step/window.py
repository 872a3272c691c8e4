"""One window in torch: gradients accumulate in place in `.grad`, then one step.

The divisor of the window is known before its first backward pass, so it enters as the gradient of
each micro-batch's loss, and no second pass over the gradients is needed. Nothing in a window waits
for the device; its end does once, for the norm that decides whether the update is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from multibackend.core.precision import LossScale
from multibackend.experiment import Experiment
from multibackend_torch.model.names import named_parameters, named_state
from multibackend_torch.step.optimizers import set_learning_rate

__all__ = ["Batch", "Forward", "TrainState", "Window", "WindowFunctions", "WindowRow"]

Batch = dict[str, torch.Tensor]
Forward = Callable[[torch.nn.Module, Batch], tuple[list[torch.Tensor], torch.Tensor | None]]
"""Each term's sum of weighted losses over a micro-batch, and the sum of its weights where only the loss knows it."""
Stamp = Callable[[int, int], None]
"""Called with (update, micro-batch) before each forward pass: what decides about random numbers."""


@dataclass
class TrainState:
    """What a run carries from window to window; mutated in place.

    Attributes:
        module: the user's model, with its parameters.
        optimizer: over the parameters that are not frozen.
        update: updates made.
        failed: freezes the state after a window with `on_nonfinite="raise"`.
        loss_scale: of an fp16 run.
        frozen: names of the parameters that stay as they are.
        ema: the moving average of the parameters; empty where none is kept.
        parameters, model_state: by canonical name.
        trained: the parameters that are not frozen.
        buffers: what a forward pass may change besides gradients.
    """

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    update: int = 0
    failed: bool = False
    loss_scale: LossScale | None = None
    frozen: frozenset[str] = frozenset()
    ema: dict[str, torch.Tensor] = field(default_factory=dict)
    parameters: dict[str, torch.nn.Parameter] = field(init=False)
    trained: dict[str, torch.nn.Parameter] = field(init=False)
    model_state: dict[str, torch.Tensor] = field(init=False)
    buffers: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = named_parameters(self.module)
        self.trained = {name: p for name, p in self.parameters.items() if name not in self.frozen}
        self.model_state = named_state(self.module)
        self.buffers = list(self.module.buffers())
        for name in self.frozen:
            self.parameters[name].requires_grad_(False)


@dataclass(slots=True)  # read and written at every micro-batch
class Window:
    """What a window carries from micro-batch to micro-batch, besides the gradients in `.grad`.

    Attributes:
        buffers_before: copies of `TrainState.buffers` as the window began, put back where it
            makes no update.
        loss_scale: what its losses are multiplied by before the backward pass; 1 but for fp16.
        micro_batches: how many have run.
        totals: by micro-batch and term the sums of weighted losses, on the device.
        inverse_divisors: what each of them is multiplied by.
        weights: by micro-batch the sums of the weights, where only the loss knows them.
    """

    buffers_before: list[torch.Tensor]
    loss_scale: float
    micro_batches: int = 0
    totals: list[torch.Tensor] = field(default_factory=list)
    inverse_divisors: list[float] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    # the gradients of the losses, kept from one micro-batch to the next where their divisors are
    # the same
    loss_gradients: list[torch.Tensor] = field(default_factory=list)
    loss_gradients_of: list[float] | None = None


@dataclass(frozen=True)
class WindowRow:
    """What one window measured.

    Attributes:
        totals, inverse_divisors: as `Window` has them, on the host.
        weights: [terms], the sums of the weights.
        inverse_weight: what the losses are still to be multiplied by: 1 / weight where only the
            loss knew the weights.
        gradient_scale: what the norms are still to be multiplied by: `inverse_weight` / loss scale.
        norm: the global norm, normalised.
        norms: [trained parameters], as accumulated.
        finite, applied: as in `multibackend.protocol.WindowResults`.
        loss_scale: what the gradients were computed with.
    """

    totals: list[float]
    inverse_divisors: list[float]
    weights: list[float]
    inverse_weight: float
    gradient_scale: float
    norm: float
    norms: torch.Tensor
    finite: bool
    applied: bool
    loss_scale: float


class WindowFunctions:
    """Start a window, accumulate its micro-batches, finish it with one update.

    Args:
        experiment: what is trained.
        forward: the losses of a micro-batch.
        stamp: called before each forward pass.
    """

    def __init__(self, experiment: Experiment, forward: Forward, stamp: Stamp) -> None:
        self._experiment = experiment
        self._forward = forward
        self._stamp = stamp
        self._by_micro_batch = experiment.normalize == "microbatch"

    def start(self, state: TrainState) -> Window:
        """Begin a window."""
        loss_scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        return Window([buffer.clone() for buffer in state.buffers], loss_scale)

    def accumulate(self, state: TrainState, window: Window, batch: Batch, inverse_divisors: list[float]) -> None:
        """Add the gradient of one micro-batch's `sum over terms of sum(w * l) / divisor` to `.grad`."""
        self._stamp(state.update, window.micro_batches)
        totals, weight = self._forward(state.module, batch)
        if weight is not None:
            window.weights.append(weight)
            if self._by_micro_batch:
                totals = [total / weight.clamp(min=torch.finfo(weight.dtype).tiny) for total in totals]
        # all full micro-batches of a window share their divisors: one tensor a term serves them all
        if inverse_divisors != window.loss_gradients_of:
            window.loss_gradients = [
                torch.full_like(total, inverse_divisor * window.loss_scale)
                for total, inverse_divisor in zip(totals, inverse_divisors, strict=True)
            ]
            window.loss_gradients_of = inverse_divisors
        _backward(totals, window.loss_gradients)
        window.totals += [total.detach() for total in totals]
        window.inverse_divisors += inverse_divisors
        window.micro_batches += 1

    def finish(self, state: TrainState, window: Window, weights: list[float], learning_rate: float) -> WindowRow:
        """Normalise, check, clip, update. `weights` of the terms are NaN where only the loss knows them."""
        gradients = _gradients(state.trained.values())
        # the only numbers that a window with such a loss brings to the host, at its end
        if window.weights:
            weights = [float(sum(weight.item() for weight in window.weights))]
        weight = sum(weights)
        weighed_by_model = bool(window.weights) and weight > 0 and not self._by_micro_batch
        inverse_weight = 1.0 / weight if weighed_by_model else 1.0
        gradient_scale = inverse_weight / window.loss_scale
        norms = _norms(gradients)
        # the losses come with the norm: one wait brings all that decides about the update
        *totals, norm = torch.stack([*window.totals, torch.linalg.vector_norm(norms)]).tolist()
        norm *= gradient_scale
        is_loss_finite = all(map(math.isfinite, totals))
        finite = is_loss_finite and math.isfinite(norm)
        applied = finite and weight > 0
        # losses are measured before they are scaled, so no scale can have spoilt them
        overflow = is_loss_finite and not finite and window.loss_scale > LossScale.smallest
        if state.loss_scale is not None and (applied or overflow):
            state.loss_scale = state.loss_scale.after(overflow=overflow)
        if applied:
            self._update(state, gradients, gradient_scale, norm, learning_rate)
        else:
            for buffer, before in zip(state.buffers, window.buffers_before, strict=True):
                buffer.copy_(before)
            state.failed |= not finite and not overflow and self._experiment.on_nonfinite == "raise"
        state.optimizer.zero_grad(set_to_none=True)
        return WindowRow(
            totals=totals,
            inverse_divisors=window.inverse_divisors,
            weights=weights,
            inverse_weight=inverse_weight,
            gradient_scale=gradient_scale,
            norm=norm,
            norms=norms,
            finite=finite,
            applied=applied,
            loss_scale=window.loss_scale,
        )

    def _update(
        self, state: TrainState, gradients: list[torch.Tensor], scale: float, norm: float, learning_rate: float
    ) -> None:
        """Make one step of the optimizer on the gradients times `scale`, clipped."""
        limit = self._experiment.max_grad_norm
        if limit is not None and norm > limit:
            scale *= limit / norm
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage] - what torch.optim uses
        set_learning_rate(state.optimizer, learning_rate)
        state.optimizer.step()
        state.update += 1
        if state.ema:
            _average(state, self._experiment)


def _backward(totals: list[torch.Tensor], loss_gradients: list[torch.Tensor]) -> None:
    """Run one backward pass through all terms; one that does not depend on the parameters has no gradient."""
    if len(totals) > 1:
        pairs = zip(totals, loss_gradients, strict=True)
        dependent = [(total, gradient) for total, gradient in pairs if total.requires_grad]
        totals = [total for total, _ in dependent]
        loss_gradients = [gradient for _, gradient in dependent]
    if totals and totals[0].requires_grad:  # else this micro-batch met frozen parameters only
        torch.autograd.backward(totals, loss_gradients)


def _gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Gradients; a parameter that no micro-batch used has gradient 0, as in JAX, not none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of each gradient: [parameters]."""
    if gradients[0].is_cuda:
        return torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage] - as torch.nn
    # on CPU a dot product reads memory faster than torch's norm does: 22 us against 79 us for
    # 670 k parameters
    flat = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([torch.dot(values, values) for values in flat]).sqrt_()


@torch.no_grad()
def _average(state: TrainState, experiment: Experiment) -> None:
    """Move the average e to e + (1 - d) * (p - e), after the update that was just made."""
    weight = 1 - float(experiment.ema_decay or 0.0)
    if experiment.ema_warmup:  # 1 - (1 + t) / (10 + t), t the index of that update
        weight = max(weight, 9 / (10 + state.update - 1))
    averages = list(state.ema.values())
    parameters: list[torch.Tensor] = list(state.parameters.values())
    torch._foreach_lerp_(averages, parameters, weight)  # pyright: ignore[reportPrivateImportUsage] - as above
