"""A window that has begun: what its micro-batches have given so far, kept aside so that the state is the one before it.

Only a run that stops inside a window comes here. Adding to a gradient that was put back gives the bits of adding to
one that never left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from multibackend.experiment import Experiment
from multibackend.protocol import HalfWindow
from multibackend_torch.names import to_host
from multibackend_torch.window import Forward, MicroBatch, Sums, TrainState, WindowRow, accumulate, finish

__all__ = ["OpenWindow", "add", "close", "from_host", "to_half"]

Tensors = dict[str, torch.Tensor]
Stamp = Callable[[int, int], None]


@dataclass
class OpenWindow:
    """`gradients` of the parameters that were used; `buffers` of the module as the micro-batches left them."""

    done: int = 0
    gradients: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    sums: Sums = field(default_factory=lambda: Sums([], [], []))


def add(
    state: TrainState,
    opened: OpenWindow,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    stamp: Stamp,
    stop: int,
) -> OpenWindow:
    """Add the micro-batches from index `opened.done` to `stop` - 1."""
    with _put_in(state, opened):
        wanted = islice(micro_batches, opened.done, stop)
        sums = _joined(opened.sums, accumulate(state, wanted, forward, experiment, stamp, opened.done))
        gradients = {name: p.grad for name, p in state.trained.items() if p.grad is not None}
        buffers = {name: buffer.clone() for name, buffer in state.module.named_buffers()}
    return OpenWindow(stop, gradients, buffers, sums)


def close(
    state: TrainState,
    opened: OpenWindow,
    micro_batches: Iterator[MicroBatch],
    forward: Forward,
    experiment: Experiment,
    weights: list[float],
    rate: float,
    stamp: Stamp,
) -> WindowRow:
    """Add the rest, then what ends every window."""
    before = [buffer.clone() for buffer in state.buffers]
    with _put_in(state, opened) as leave:
        wanted = islice(micro_batches, opened.done, None)
        sums = _joined(opened.sums, accumulate(state, wanted, forward, experiment, stamp, opened.done))
        leave()
    return finish(state, sums, before, experiment, weights, rate)


def to_half(state: TrainState, opened: OpenWindow, terms: int) -> HalfWindow:
    """A copy on the host."""
    sums = opened.sums
    weights = [[float(weight)] for weight in sums.weights]
    return HalfWindow(
        done=opened.done,
        accumulator=to_host(opened.gradients),
        model_state=to_host({name: b for name, b in opened.buffers.items() if name in state.model_state}),
        totals=torch.stack(sums.totals).reshape(-1, terms).cpu().numpy().copy(),
        factors=np.array(sums.factors).reshape(-1, terms),
        weights=np.array(weights).reshape(-1, terms),
    )


@torch.no_grad()
def from_host(state: TrainState, half: HalfWindow, *, dynamic: bool) -> OpenWindow:
    """The inverse, also of a copy that another backend made."""
    like = next(iter(state.parameters.values()))
    buffers = {name: buffer.clone() for name, buffer in state.module.named_buffers()}
    for name in buffers.keys() & half.model_state.keys():
        buffers[name].copy_(torch.from_numpy(np.asarray(half.model_state[name], order="C")))
    gradients = {name: torch.empty_like(p, requires_grad=False) for name, p in state.trained.items()}
    gradients = {name: gradient for name, gradient in gradients.items() if name in half.accumulator}
    for name, gradient in gradients.items():
        gradient.copy_(torch.from_numpy(np.asarray(half.accumulator[name], order="C")))
    totals = torch.from_numpy(np.asarray(half.totals)).to(device=like.device, dtype=like.dtype)
    weights = torch.from_numpy(np.asarray(half.weights)).to(like) if dynamic else torch.zeros(0, 1)
    sums = Sums(list(totals.reshape(-1).unbind()), half.factors.reshape(-1).tolist(), list(weights[:, 0].unbind()))
    return OpenWindow(half.done, gradients, buffers, sums)


@contextlib.contextmanager
def _put_in(state: TrainState, opened: OpenWindow) -> Iterator[Callable[[], None]]:
    """Where the module holds the window's gradients and buffers; it has neither afterwards, unless told to `leave`."""
    before, stays = {name: buffer.clone() for name, buffer in state.module.named_buffers()}, False

    def leave() -> None:
        nonlocal stays
        stays = True

    try:
        _fill(state, opened.buffers)
        for name, parameter in state.trained.items():
            parameter.grad = opened.gradients.get(name)
        yield leave
    finally:
        if not stays:
            _fill(state, before)
            for parameter in state.trained.values():
                parameter.grad = None


@torch.no_grad()
def _fill(state: TrainState, values: Tensors) -> None:
    for name, buffer in state.module.named_buffers():
        if name in values:
            buffer.copy_(values[name])


def _joined(first: Sums, second: Sums) -> Sums:
    return Sums(first.totals + second.totals, first.factors + second.factors, first.weights + second.weights)
