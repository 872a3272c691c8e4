"""One micro-batch in torch, recorded layer by layer, forward and backward; the state is unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from multibackend.core.arrays import Array
from multibackend.losses import Loss
from multibackend.protocol.tracing import Forced, LayerCall, Trace, arrays_in
from multibackend.protocol.values import inverse
from multibackend_torch.model.build import Call
from multibackend_torch.model.names import named_state
from multibackend_torch.model.observe import Observer, host, is_tensor, observing
from multibackend_torch.model.rematerialize import kept_activations
from multibackend_torch.step.losses import loss_sum
from multibackend_torch.step.window import Batch, TrainState

__all__ = ["trace_micro_batch"]


def trace_micro_batch(
    state: TrainState,
    call: Call,
    losses: Sequence[Loss],
    batch: Batch,
    divisors: Array,
    *,
    train: bool,
    gradients: bool,
    forced: Mapping[tuple[str, int], Forced] | None,
    by_micro_batch: bool,
) -> Trace:
    """Run and record one micro-batch, see `multibackend.protocol.Traceable`.

    The caller has stamped the random numbers. `by_micro_batch`: divide by weights that only
    the loss knows.
    """
    module = state.module
    observer = Observer(module, state.parameters, forced)
    totals: list[torch.Tensor] = []
    with _unchanged(module), kept_activations(module), torch.set_grad_enabled(gradients):
        module.train(train)
        with observing(module, observer):
            outputs = call(module, batch, train)
        for loss in losses:
            total, weight = loss_sum(loss, outputs, batch)
            if by_micro_batch and weight is not None:
                total = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
            totals.append(total)
        gradient_arrays = _gradients(state, totals, inverse(divisors)) if gradients else {}
        model_state = {name: host(tensor) for name, tensor in named_state(module).items()}
    output_arrays = tuple(host(tensor) for tensor in arrays_in(outputs, is_tensor))
    return Trace(
        layers=_with_root(observer.layers, type(module).__name__, output_arrays),
        outputs=output_arrays,
        terms=np.array([float(total.detach()) for total in totals]) * inverse(divisors),
        gradients=gradient_arrays,
        model_state=model_state,
    )


def _gradients(state: TrainState, totals: list[torch.Tensor], inverse_divisors: Array) -> dict[str, Array]:
    """Return the gradient of the sum of total / divisor by name, 0 for a parameter that has no part.

    `.grad` stays as it is: a window that has begun may have its gradients there.
    """
    loss_scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    dependent: list[torch.Tensor] = []
    loss_gradients: list[torch.Tensor] = []
    for total, inverse_divisor in zip(totals, inverse_divisors, strict=True):
        if total.requires_grad:  # autograd refuses a term that does not depend on the parameters
            dependent.append(total)
            loss_gradients.append(torch.full_like(total, float(inverse_divisor) * loss_scale))
    parameters = list(state.trained.values())
    gradients: Sequence[torch.Tensor | None] = [None] * len(parameters)
    if dependent:
        gradients = torch.autograd.grad(dependent, parameters, loss_gradients, allow_unused=True)
    arrays: dict[str, Array] = {}
    for (name, parameter), gradient in zip(state.trained.items(), gradients, strict=True):
        if gradient is None:
            arrays[name] = np.zeros_like(host(parameter))
        else:
            arrays[name] = host(gradient) / loss_scale
    return arrays


def _with_root(layers: list[LayerCall], kind: str, outputs: tuple[Array, ...]) -> tuple[LayerCall, ...]:
    """Return the calls, the whole model first even where `Model(call=...)` calls its parts only."""
    if layers and layers[0].name == "":
        return tuple(layers)
    return (LayerCall("", 0, kind, (), outputs, leaf=not layers), *layers)


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Undo what a module does to its modes and its buffers, even where it binds new ones."""
    modes = [(part, part.training) for part in module.modules()]  # `train` would set one for all
    buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]] = []
    for part in module.modules():
        for name, buffer in part._buffers.items():
            buffers.append((part, name, buffer, None if buffer is None else buffer.clone()))
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for part, name, buffer, before in buffers:
            part._buffers[name] = buffer
            if buffer is not None and before is not None:
                with torch.no_grad():
                    buffer.copy_(before)
