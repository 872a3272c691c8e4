"""One micro-batch in torch, forward and backward, told layer by layer; the state stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from multibackend.losses import Loss
from multibackend.protocol.tracing import Forced, LayerCall, Trace, arrays_in
from multibackend.protocol.values import inverse
from multibackend_torch.model.build import Call
from multibackend_torch.model.names import named_state
from multibackend_torch.model.observe import Observer, host, is_tensor, observing
from multibackend_torch.model.rematerialize import kept_activations
from multibackend_torch.step.losses import weighted_sum
from multibackend_torch.step.window import Batch, TrainState

__all__ = ["trace_micro_batch"]


def trace_micro_batch(
    state: TrainState,
    call: Call,
    losses: Sequence[Loss],
    batch: Batch,
    divisors: np.ndarray,
    *,
    train: bool,
    gradients: bool,
    forced: Mapping[tuple[str, int], Forced] | None,
    by_micro_batch: bool,
) -> Trace:
    """See `multibackend.protocol.Traceable`; the caller has stamped the random numbers.

    `by_micro_batch`: weights that only the loss knows divide its sum here.
    """
    module, observer = state.module, Observer(state.module, state.parameters, forced)
    with _as_it_was(state), kept_activations(module), torch.set_grad_enabled(gradients):
        module.train(train)
        with observing(module, observer):
            outputs = call(module, batch, train)
        sums = [weighted_sum(loss, outputs, batch) for loss in losses]
        totals = [
            total / weight.clamp(min=torch.finfo(weight.dtype).tiny) if by_micro_batch and weight is not None else total
            for total, weight in sums
        ]
        found = _gradients(state, totals, inverse(divisors)) if gradients else {}
        model_state = {name: host(tensor) for name, tensor in named_state(module).items()}
    arrays = tuple(host(tensor) for tensor in arrays_in(outputs, is_tensor))
    return Trace(
        layers=_with_root(observer.layers, type(module).__name__, arrays),
        outputs=arrays,
        terms=np.array([float(total.detach()) for total in totals]) * inverse(divisors),
        gradients=found,
        model_state=model_state,
    )


def _gradients(
    state: TrainState, totals: Sequence[torch.Tensor], inverse_divisors: np.ndarray
) -> dict[str, np.ndarray]:
    """Gradient of sum over terms of total / divisor by name, 0 where a parameter has no part in it; `.grad` stays."""
    scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
    live = [(total, float(factor) * scale) for total, factor in zip(totals, inverse_divisors, strict=True)]
    live = [(total, torch.full_like(total, seed)) for total, seed in live if total.requires_grad]
    names, parameters = list(state.trained), list(state.trained.values())
    found: Sequence[torch.Tensor | None] = [None] * len(parameters)
    if live:
        sums, seeds = [total for total, _ in live], [seed for _, seed in live]
        found = torch.autograd.grad(sums, parameters, seeds, allow_unused=True)
    return {
        name: np.zeros(tuple(parameter.shape), host(parameter).dtype) if gradient is None else host(gradient) / scale
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def _with_root(layers: list[LayerCall], kind: str, outputs: tuple[np.ndarray, ...]) -> tuple[LayerCall, ...]:
    """The calls, the whole model first even where `Model(call=...)` calls its parts only."""
    if layers and layers[0].name == "":
        return tuple(layers)
    return (LayerCall("", 0, kind, (), outputs, leaf=not layers), *layers)


@contextlib.contextmanager
def _as_it_was(state: TrainState) -> Iterator[None]:
    """Where a module may change its mode and its buffers, even bind new ones, without effect."""
    modes = [(part, part.training) for part in state.module.modules()]
    buffers = [(part, name, buffer) for part in state.module.modules() for name, buffer in part._buffers.items()]
    before = [None if buffer is None else buffer.clone() for _, _, buffer in buffers]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for (part, name, buffer), old in zip(buffers, before, strict=True):
            part._buffers[name] = buffer
            if buffer is not None and old is not None:
                with torch.no_grad():
                    buffer.copy_(old)
