"""A window that has begun: the carry of its micro-batches, kept beside the state, which is the one before it.

Only a run that stops inside a window comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.protocol import HalfWindow
from multibackend.windows import WindowStack
from multibackend_jax.models import Arrays
from multibackend_jax.window import Carry, TrainState, WindowFunctions

__all__ = ["OpenWindow", "from_host", "to_half"]

Host = Mapping[str, np.ndarray]


class OpenWindow(NamedTuple):
    """`done` micro-batches are in the carry."""

    done: int
    carry: Carry


def to_half(opened: OpenWindow, to_host: Callable[[Arrays], dict[str, np.ndarray]]) -> HalfWindow:
    """A copy on the host; the losses and weights were added on the device, so there is one row of them."""
    carry = opened.carry
    return HalfWindow(
        done=opened.done,
        accumulator=to_host(carry.accumulator),
        model_state=to_host(carry.model_state),
        totals=np.array(carry.loss)[None],
        factors=np.ones((1, carry.loss.size)),
        weights=np.array(carry.weight, np.float64)[None],
    )


def from_host(
    state: TrainState,
    half: HalfWindow,
    stack: WindowStack,
    functions: WindowFunctions,
    to_native: Callable[[Host], Arrays],
) -> Carry:
    """The carry of a copy, also of a copy that another backend made."""
    start = functions.start(state)
    loss = (np.asarray(half.totals, np.float64) * half.factors).sum(axis=0)
    weight = half.weights.sum(axis=0) if len(half.weights) else _weights(half, stack, functions)
    carry = Carry(
        model_state={**start.model_state, **to_native(half.model_state)},
        accumulator={**start.accumulator, **to_native(half.accumulator)},
        loss=jnp.asarray(loss, start.loss.dtype),
        weight=jnp.asarray(weight, start.weight.dtype),
        loss_scale=start.loss_scale,
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), carry, start)


def _weights(half: HalfWindow, stack: WindowStack, functions: WindowFunctions) -> np.ndarray:
    """[terms], the weights of the micro-batches that have run, which the data tell."""
    batches = [batch for batch, _ in stack.micro_batches(0)][: half.done]
    losses = functions.experiment.loss_terms.values()
    sums = [[float(loss.weight_sums(batch, 0) or 0.0) for loss in losses] for batch in batches]
    return np.array(sums).sum(axis=0)
