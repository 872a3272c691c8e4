"""The gradient of a window, to look at: accumulated as training does it, with no update made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.data import as_source
from multibackend.data.fields import concatenate
from multibackend.errors import CapabilityError
from multibackend.experiment import Experiment
from multibackend.protocol import Interruptible, PartialWindow, Position, Program, WindowStack
from multibackend.training.input.feed import Feed
from multibackend.training.input.order import batches
from multibackend.training.run_state import BegunWindow, RunState

__all__ = ["window_gradients"]


def window_gradients(
    experiment: Experiment, backend: str, program: Program, state: RunState, data: Any
) -> dict[str, np.ndarray]:
    """The normalised gradient of each parameter, of the next window or of one window with all of `data`.

    The state stays as it is; everything handed to the device must have been read.

    Raises:
        CapabilityError: the backend cannot stop inside a window.
        DataError: the data lack a field, or do not fit the loss.
    """
    if not isinstance(program, Interruptible):
        raise CapabilityError(f"the backend {backend!r} does not hand out the gradient of a window")
    begun = state.begun if data is None else None
    if begun is not None:
        stack = begun.stack
    else:
        stack = _next_window(experiment, program, state) if data is None else _window_of(data, experiment, program)
    window = _accumulated(program, state.program_state, stack, begun)
    scale = 1.0
    snapshot = program.snapshot(state.program_state)
    if snapshot.loss_scale is not None:
        scale = 1.0 / snapshot.loss_scale.scale
    if stack.weighed_by_model and experiment.normalize == "window":
        weight = float(window.weights.sum())
        scale = scale / weight if weight > 0 else 0.0
    gradients = {}
    for name in program.info.parameter_names:
        # zeros for a parameter that is frozen, or that no micro-batch has used
        accumulated = window.accumulator.get(name, np.zeros_like(snapshot.parameters[name]))
        gradients[name] = np.asarray(accumulated * scale, snapshot.parameters[name].dtype)
    return gradients


def _next_window(experiment: Experiment, program: Program, state: RunState) -> WindowStack:
    # a feed of its own: what the run's has read ahead stays for the run
    feed = Feed(experiment, read_ahead=False)
    return feed.next(state.position, state.update, 1, program.info, most=1, epochs=None)


def _window_of(data: Any, experiment: Experiment, program: Program) -> WindowStack:
    """Read all of `data`, in its own order, as one window."""
    size = int(experiment.micro_batch_size)
    fields = concatenate(list(batches(as_source(data), size)))
    examples = len(next(iter(fields.values())))
    whole = experiment.replace(
        train_data=fields,
        shuffle=False,
        drop_last=False,
        gradient_accumulation_steps=-(-examples // size),
    )
    feed = Feed(whole, read_ahead=False)
    return feed.next(Position(), 0, 1, program.info, most=1, epochs=None)


def _accumulated(program: Program, state: Any, stack: WindowStack, begun: BegunWindow | None) -> PartialWindow:
    """Run a window from where it has begun to its end, without the update; return the whole window on the host."""
    assert isinstance(program, Interruptible)
    placed = program.place(stack)
    native = None
    done = 0
    if begun is not None and begun.done:
        # of a copy, because the window that a backend adds to is used up
        native = program.restore_window(state, placed, program.snapshot_window(state, begun.native))
        done = begun.done
    full = int(stack.counts[0])
    if done < full:
        native = program.run_part(state, placed, native, done, full)
    if stack.ragged is not None:
        native = program.run_part(state, program.place(_with_ragged_in_row(stack)), native, full, full + 1)
    return program.snapshot_window(state, native)


def _with_ragged_in_row(stack: WindowStack) -> WindowStack:
    """The same window with fields as wide as its ragged micro-batch, which stands at its own index among them.

    A part of a window has full micro-batches only, and their index decides about masks and draws.
    """
    assert stack.ragged is not None
    index = int(stack.counts[0])
    fields = {}
    for name, rows in stack.ragged.items():
        fields[name] = np.zeros((1, index + 1, *rows.shape), rows.dtype)
        fields[name][0, index] = rows
    divisors = np.ones((1, index + 1, len(stack.ragged_divisors)))
    divisors[0, index] = stack.ragged_divisors
    return replace(stack, fields=fields, counts=stack.counts + np.int32(1), divisors=divisors, ragged=None)
