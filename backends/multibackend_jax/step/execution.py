"""What executes windows, and what is handed to the device with them.

The ways to execute are of identical result. `scan` (`Scan`): one dispatch runs one or several whole
windows, the micro-batches in a loop on the device. `dispatch` (`Dispatch`): one dispatch per
micro-batch, with a donated accumulator.

The number of iterations is an argument of the loop, not a constant: full and partial windows, and
an accumulation schedule, share one compilation. A ragged last micro-batch adds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from multibackend.protocol import Rates, WindowStack
from multibackend.protocol.values import inverse
from multibackend_jax.model.pure import Arrays
from multibackend_jax.step.window import Carry, Row, TrainState, WindowFunctions

__all__ = [
    "Bounds",
    "DivisorShape",
    "PlacedWindows",
    "Results",
    "Steering",
    "WindowRunner",
    "at_index",
    "compilations",
    "divisor_shape",
    "start_with_own_buffers",
]


class DivisorShape(NamedTuple):
    """How many divisors a window has: one for each full micro-batch and term of the loss."""

    steps: int
    terms: int


def divisor_shape(fields: Arrays, functions: WindowFunctions) -> DivisorShape:
    """Tell from a stack's fields, [room, steps, ...], how many divisors each of its windows has."""
    steps = next(iter(fields.values())).shape[1]
    return DivisorShape(steps, functions.terms)


class Steering(NamedTuple):
    """The small numbers that steer a dispatch, in two arrays: each argument costs time.

    integers: int32                     floats: the run's precision
    0            index of first rate    [room, steps, terms]  1 / divisor of each full micro-batch
    1            number of windows      [terms]               1 / divisor of the ragged one
    2 ... 2+room full micro-batches     [rates]               learning rates
    """

    integers: Any
    floats: Any

    @classmethod
    def pack(cls, stack: WindowStack, windows: int, rates: Rates, dtype: np.dtype) -> Steering:
        """Pack what steers the first `windows` windows of a stack."""
        room, steps = next(iter(stack.fields.values())).shape[:2]
        terms = stack.divisors.shape[-1]
        integers = np.zeros(2 + room, np.int32)  # places that no window takes stay 0 and are not read
        integers[0] = rates.first
        integers[1] = windows
        integers[2 : 2 + len(stack)] = stack.counts
        # multiplied by rather than divided by: 1 / divisor is computed once, in float64
        ragged_start = room * steps * terms
        rates_start = ragged_start + terms
        floats = np.zeros(rates_start + len(rates.values), dtype)
        floats[: stack.divisors.size] = inverse(stack.divisors).reshape(-1)
        floats[ragged_start:rates_start] = inverse(stack.ragged_divisors)
        floats[rates_start:] = rates.values
        return cls(integers, floats)

    @classmethod
    def of_shape(cls, room: int, shape: DivisorShape, rates: int, dtype: np.dtype) -> Steering:
        """Return the shapes and dtypes of what `pack` makes, for compiling without data."""
        floats = (room * shape.steps + 1) * shape.terms + rates
        integers = jax.ShapeDtypeStruct((2 + room,), np.dtype(np.int32))
        return cls(integers, jax.ShapeDtypeStruct((floats,), dtype))

    @property
    def first(self) -> jax.Array:
        """The update index of the first rate."""
        return self.integers[0]

    @property
    def windows(self) -> jax.Array:
        """The number of windows that are to run."""
        return self.integers[1]

    @property
    def room(self) -> int:
        """The number of windows that the stack has room for."""
        return self.integers.shape[0] - 2

    def steps_of(self, window: jax.Array) -> jax.Array:
        """Return how many full micro-batches a window has."""
        return at_index(self.integers, window + 2)

    def inverse_divisors(self, window: jax.Array, step: jax.Array, shape: DivisorShape) -> jax.Array:
        """Return those of a full micro-batch, [terms]."""
        start = (window * shape.steps + step) * shape.terms
        return lax.dynamic_slice(self.floats, (start,), (shape.terms,))

    def ragged_inverse_divisors(self, shape: DivisorShape) -> jax.Array:
        """Return those of the ragged micro-batch, [terms]."""
        start = self.room * shape.steps * shape.terms
        return self.floats[start : start + shape.terms]

    def rates(self, shape: DivisorShape) -> jax.Array:
        """Return the learning rates, from that of update `first` on."""
        return self.floats[(self.room * shape.steps + 1) * shape.terms :]


@dataclass(frozen=True)
class PlacedWindows:
    """A stack whose fields are on the device; what steers it stays on the host."""

    stack: WindowStack
    fields: Arrays
    ragged: Arrays | None


class Bounds(NamedTuple):
    """The micro-batches of a window from index `start` to `stop` - 1."""

    start: int
    stop: int


Results = list[tuple[Row, int]]
"""The rows of each dispatch, on the device, and how many windows they have."""


class WindowRunner(Protocol):
    """One way to execute windows.

    `run` returns results with the windows of each, in order. `accumulate` and `close` are for
    `multibackend.protocol.Interruptible`; nothing in what `run` compiles is different for them.

    Attributes:
        name: the execution mode.
        reads_fields_once: whether each field enters one dispatch only, so that on CPU it may
            stay a host array.
    """

    name: str
    reads_fields_once: bool

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, Results]:
        """Run the windows."""
        ...

    def accumulate(self, state: TrainState, placed: PlacedWindows, carry: Carry | None, bounds: Bounds) -> Carry:
        """Run some micro-batches of the first window."""
        ...

    def close(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, start: int, rates: Rates
    ) -> tuple[TrainState, Results]:
        """Run the remaining micro-batches of the first window, from `start` on, and make its update."""
        ...

    def compilations(self) -> int:
        """Count the programs that were compiled."""
        ...


def at_index(array: jax.Array, *index: jax.Array) -> jax.Array:
    """Return `array[index]` without the comparison for each index that may be negative."""
    shape = array.shape[len(index) :]
    start = (*index, *[np.int32(0)] * len(shape))
    sizes = (*[1] * len(index), *shape)
    return lax.dynamic_slice(array, start, sizes).reshape(shape)


def start_with_own_buffers(functions: WindowFunctions, state: TrainState) -> Carry:
    """Start a carry of its own buffers: the state keeps its own in case the window is dropped."""
    copied = {"model_state": state.model_state, "loss_scale": state.loss_scale}
    return functions.start(state._replace(**jax.tree.map(jnp.copy, copied)))


def compilations(*functions: Any) -> int:
    """Count the programs that jitted functions have compiled."""
    return sum(function._cache_size() for function in functions)
