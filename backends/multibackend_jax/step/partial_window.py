"""A window that has begun: the carry of its micro-batches, kept beside the state, which is the one before it.

Only a run that stops inside a window comes here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.protocol import PartialWindow, WindowStack
from multibackend_jax.model.pure import Arrays
from multibackend_jax.step.window import Carry, TrainState, WindowFunctions

__all__ = ["BegunWindow", "from_host", "to_partial_window"]

Host = Mapping[str, np.ndarray]


class BegunWindow(NamedTuple):
    """`done` micro-batches are in the carry."""

    done: int
    carry: Carry


def to_partial_window(begun: BegunWindow, to_host: Callable[[Arrays], dict[str, np.ndarray]]) -> PartialWindow:
    """Copy a begun window to the host; the losses and weights were added on the device, so there is one row of them."""
    carry = begun.carry
    return PartialWindow(
        done=begun.done,
        accumulator=to_host(carry.accumulator),
        model_state=to_host(carry.model_state),
        totals=np.array(carry.loss)[None],
        inverse_divisors=np.ones((1, carry.loss.size)),
        weights=np.array(carry.weight, np.float64)[None],
    )


def from_host(
    state: TrainState,
    partial: PartialWindow,
    stack: WindowStack,
    functions: WindowFunctions,
    to_native: Callable[[Host], Arrays],
) -> Carry:
    """Make the carry of a copy, also of one that another backend made."""
    start = functions.start(state)
    loss = (np.asarray(partial.totals, np.float64) * partial.inverse_divisors).sum(axis=0)
    # a backend whose data tell the weights does not keep them
    weight = partial.weights.sum(axis=0) if len(partial.weights) else _weights(partial, stack, functions)
    carry = Carry(
        model_state={**start.model_state, **to_native(partial.model_state)},
        accumulator={**start.accumulator, **to_native(partial.accumulator)},
        loss=jnp.asarray(loss, start.loss.dtype),
        weight=jnp.asarray(weight, start.weight.dtype),
        loss_scale=start.loss_scale,
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), carry, start)


def _weights(partial: PartialWindow, stack: WindowStack, functions: WindowFunctions) -> np.ndarray:
    """[terms], the weights of the micro-batches that have run, which the data tell."""
    weights = np.zeros(functions.terms)
    for batch, _ in itertools.islice(stack.micro_batches(0), partial.done):
        for term, loss in enumerate(functions.experiment.loss_terms.values()):
            weights[term] += float(loss.weight_sums(batch, 0) or 0.0)
    return weights
