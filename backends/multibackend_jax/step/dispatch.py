"""One dispatch per micro-batch, with a donated accumulator, and one more to finish the window.

XLA's CPU backend gives up its threaded convolution kernels inside loops (26 times slower, jax
0.10), so models with convolutions run this way on CPU.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

from multibackend.protocol import Rates
from multibackend_jax.model.pure import Arrays, Stamp
from multibackend_jax.step.execution import (
    Bounds,
    DivisorShape,
    PlacedWindows,
    Results,
    Steering,
    at_index,
    compilations,
    divisor_shape,
    start_with_own_buffers,
)
from multibackend_jax.step.window import Carry, Row, TrainState, WindowFunctions

__all__ = ["Dispatch"]


class Dispatch:
    """One dispatch per micro-batch, one more to finish the window."""

    name = "dispatch"
    reads_fields_once = False

    def __init__(self, functions: WindowFunctions) -> None:
        self._functions = functions
        self._dtype = np.dtype(functions.dtype)
        # the state is donated at the end only: it must outlive a window that is dropped
        self.start = jax.jit(functools.partial(start_with_own_buffers, functions))
        options = functions.compiler_options
        self.micro = jax.jit(self._micro, donate_argnums=0, compiler_options=options)
        self.ragged = jax.jit(self._ragged, donate_argnums=0, static_argnames="shape", compiler_options=options)
        self.finish = jax.jit(self._finish, donate_argnums=0, static_argnames="shape")

    def compilations(self) -> int:
        return compilations(self.micro, self.ragged, self.finish)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, Results]:
        # to the device once, not with each micro-batch
        steering = jax.device_put(Steering.pack(placed.stack, len(placed.stack), rates, self._dtype))
        results = []
        for window in range(len(placed.stack)):
            state, measured = self._window(state, placed, self.start(state), steering, window)
            results.append((measured, 1))
        return state, results

    def accumulate(self, state: TrainState, placed: PlacedWindows, carry: Carry | None, bounds: Bounds) -> Carry:
        steering = jax.device_put(Steering.pack(placed.stack, 1, Rates(0, np.zeros(1)), self._dtype))
        carry = self.start(state) if carry is None else carry
        return self._add(state, placed, carry, steering, 0, range(*bounds))

    def close(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, start: int, rates: Rates
    ) -> tuple[TrainState, Results]:
        steering = jax.device_put(Steering.pack(placed.stack, 1, rates, self._dtype))
        state, measured = self._window(state, placed, carry, steering, 0, start)
        return state, [(measured, 1)]

    def _window(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, steering: Steering, window: int, start: int = 0
    ) -> tuple[TrainState, Row]:
        """Run a window from its micro-batch `start` on, and finish it."""
        count = int(placed.stack.counts[window])
        shape = divisor_shape(placed.fields, self._functions)
        carry = self._add(state, placed, carry, steering, window, range(start, count))
        if placed.ragged is not None and window == len(placed.stack) - 1:
            stamp = (state.optimizer.gradient_step, np.int32(count), np.int32(count + 1))
            carry = self.ragged(carry, state.parameters, placed.ragged, steering, stamp, shape=shape)
        return self.finish(state, carry, steering, shape=shape)

    def _add(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, steering: Steering, window: int, steps: range
    ) -> Carry:
        """Run full micro-batches of a window."""
        size = placed.stack.sizes[window]
        update = state.optimizer.gradient_step
        for step in steps:
            # one argument rather than three, because each of a dispatch costs time
            place = np.array([window, step, size], np.int32)
            carry = self.micro(carry, state.parameters, placed.fields, steering, place, update)
        return carry

    def _micro(
        self, carry: Carry, parameters: Arrays, fields: Arrays, steering: Steering, place: jax.Array, update: jax.Array
    ) -> Carry:
        window, step, size = place
        batch = {name: at_index(array, window, step) for name, array in fields.items()}
        shape = divisor_shape(fields, self._functions)
        inverse_divisors = steering.inverse_divisors(window, step, shape)
        return self._functions.accumulate(parameters, carry, batch, inverse_divisors, Stamp(update, step, size))

    def _ragged(
        self,
        carry: Carry,
        parameters: Arrays,
        ragged: Arrays,
        steering: Steering,
        stamp: tuple[jax.Array, jax.Array, jax.Array],
        shape: DivisorShape,
    ) -> Carry:
        inverse_divisors = steering.ragged_inverse_divisors(shape)
        return self._functions.accumulate(parameters, carry, ragged, inverse_divisors, Stamp(*stamp))

    def _finish(
        self, state: TrainState, carry: Carry, steering: Steering, shape: DivisorShape
    ) -> tuple[TrainState, Row]:
        return self._functions.finish(state, carry, steering.rates(shape), steering.first)
