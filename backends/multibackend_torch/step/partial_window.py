"""A window that has begun, kept aside so that the state is the one before it.

Only a run that stops inside a window comes here. Adding to a gradient that was put back gives the
bits of adding to one that never left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from multibackend.protocol import PartialWindow
from multibackend_torch.model.names import to_host
from multibackend_torch.step.window import TrainState, Window, WindowFunctions

__all__ = ["BegunWindow", "from_host", "in_module", "set_aside", "to_partial_window"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BegunWindow:
    """A window outside the module.

    Attributes:
        window: what its micro-batches gave.
        gradients: of the parameters that they used.
        buffers: of the module as they left them.
    """

    window: Window
    gradients: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)


@contextlib.contextmanager
def in_module(state: TrainState, begun: BegunWindow) -> Iterator[Tensors]:
    """Let the module hold a window's gradients and buffers; it loses them again where the body fails.

    Yields the buffers that the module had before.
    """
    before = _copied_buffers(state)
    try:
        _fill(state, begun.buffers)
        for name, parameter in state.trained.items():
            parameter.grad = begun.gradients.get(name)
        yield before
    except BaseException:
        _clear(state, before)
        raise


def set_aside(state: TrainState, window: Window, before: Tensors) -> BegunWindow:
    """Take a window's gradients and buffers out of the module, which gets back the buffers that it had `before`."""
    # the tensors themselves: the module lets go of them
    gradients = {name: p.grad for name, p in state.trained.items() if p.grad is not None}
    begun = BegunWindow(window, gradients, _copied_buffers(state))
    _clear(state, before)
    return begun


def to_partial_window(state: TrainState, begun: BegunWindow, terms: int) -> PartialWindow:
    """Copy a begun window to the host."""
    window = begun.window
    inverse_divisors = np.array(window.inverse_divisors).reshape(-1, terms)
    weights = [[float(weight)] for weight in window.weights]
    return PartialWindow(
        done=window.micro_batches,
        accumulator=to_host(begun.gradients),
        model_state=to_host({name: b for name, b in begun.buffers.items() if name in state.model_state}),
        totals=torch.stack(window.totals).reshape(-1, terms).cpu().numpy().copy(),
        inverse_divisors=inverse_divisors,
        weights=np.array(weights).reshape(-1, terms),
    )


@torch.no_grad()
def from_host(
    functions: WindowFunctions, state: TrainState, partial: PartialWindow, *, weighed_by_model: bool
) -> BegunWindow:
    """Make a begun window of its copy, also of one that another backend made."""
    window = functions.start(state)
    window.micro_batches = partial.done
    window.inverse_divisors = partial.inverse_divisors.reshape(-1).tolist()
    like = next(iter(state.parameters.values()))
    totals = torch.from_numpy(np.asarray(partial.totals)).to(device=like.device, dtype=like.dtype)
    window.totals = list(totals.reshape(-1).unbind())
    if weighed_by_model:
        weights = torch.from_numpy(np.asarray(partial.weights)).to(like)
        window.weights = list(weights[:, 0].unbind())
    # what only torch counts, such as num_batches_tracked, stays the state's own
    buffers = _copied_buffers(state)
    for name in buffers.keys() & partial.model_state.keys():
        buffers[name].copy_(_tensor(partial.model_state[name]))
    gradients = {}
    for name in state.trained.keys() & partial.accumulator.keys():
        gradients[name] = torch.empty_like(state.trained[name], requires_grad=False)
        gradients[name].copy_(_tensor(partial.accumulator[name]))
    return BegunWindow(window, gradients, buffers)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, order="C"))


def _copied_buffers(state: TrainState) -> Tensors:
    return {name: buffer.clone() for name, buffer in state.module.named_buffers()}


def _clear(state: TrainState, buffers: Tensors) -> None:
    """Leave the module with these buffers and without gradients."""
    _fill(state, buffers)
    for parameter in state.trained.values():
        parameter.grad = None


@torch.no_grad()
def _fill(state: TrainState, buffers: Tensors) -> None:
    for name, buffer in state.module.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
