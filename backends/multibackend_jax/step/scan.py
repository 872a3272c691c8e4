"""Whole windows in one dispatch, the micro-batches in a loop on the device: least overhead, the default."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from multibackend.protocol import Rates
from multibackend_jax.model.pure import Arrays, Stamp
from multibackend_jax.step.execution import (
    Bounds,
    PlacedWindows,
    Results,
    Steering,
    at_index,
    compilations,
    divisor_shape,
    start_with_own_buffers,
)
from multibackend_jax.step.window import Carry, Row, TrainState, WindowFunctions

__all__ = ["Scan"]


class Scan:
    """Whole windows in one dispatch."""

    name = "scan"
    reads_fields_once = True

    def __init__(self, functions: WindowFunctions) -> None:
        self._functions = functions
        self._dtype = np.dtype(functions.dtype)
        # public, because benchmarks and the count of memory compile them without running them
        options = functions.compiler_options
        self.one = jax.jit(self._one, donate_argnums=0, compiler_options=options)
        self.many = jax.jit(self._many, donate_argnums=0, compiler_options=options)
        self.start = jax.jit(functools.partial(start_with_own_buffers, functions))
        # a part donates its carry and no state, which must outlive a window that is dropped
        self.part = jax.jit(self._part, donate_argnums=1, compiler_options=options)
        self.rest = jax.jit(self._rest, donate_argnums=0, compiler_options=options)

    def compilations(self) -> int:
        return compilations(self.one, self.many, self.part, self.rest)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, Results]:
        windows = len(placed.stack) - (placed.ragged is not None)
        steering = Steering.pack(placed.stack, windows, rates, self._dtype)
        results = []
        if windows:
            run = self.one if steering.room == 1 else self.many
            state, measured = run(state, placed.fields, steering)
            results.append((measured, windows))
        # the ragged micro-batch has a shape of its own, so its window cannot be in a loop
        if placed.ragged is not None:
            state, measured = self.one(state, placed.fields, steering, np.int32(windows), placed.ragged)
            results.append((measured, 1))
        return state, results

    def accumulate(self, state: TrainState, placed: PlacedWindows, carry: Carry | None, bounds: Bounds) -> Carry:
        steering = Steering.pack(placed.stack, 1, Rates(0, np.zeros(1)), self._dtype)
        carry = self.start(state) if carry is None else carry
        place = np.array([*bounds, placed.stack.sizes[0]], np.int32)
        return self.part(state, carry, placed.fields, steering, place)

    def close(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, start: int, rates: Rates
    ) -> tuple[TrainState, Results]:
        steering = Steering.pack(placed.stack, 1, rates, self._dtype)
        state, measured = self.rest(state, carry, placed.fields, steering, np.int32(start), placed.ragged)
        return state, [(measured, 1)]

    def _part(self, state: TrainState, carry: Carry, fields: Arrays, steering: Steering, place: jax.Array) -> Carry:
        """Run micro-batches of the first window: the loop of `_one` between other bounds."""
        start, stop, size = place
        window = jnp.zeros([], jnp.int32)
        return lax.fori_loop(start, stop, self._body(state, fields, steering, window, size), carry)

    def _rest(
        self,
        state: TrainState,
        carry: Carry,
        fields: Arrays,
        steering: Steering,
        start: jax.Array,
        ragged: Arrays | None,
    ) -> tuple[TrainState, Row]:
        """Run the remaining micro-batches of the first window, and finish it."""
        return self._one(state, fields, steering, 0, ragged, start, carry)

    def _one(
        self,
        state: TrainState,
        fields: Arrays,
        steering: Steering,
        window: jax.Array | int = 0,
        ragged: Arrays | None = None,
        start: jax.Array | int = 0,
        carry: Carry | None = None,
    ) -> tuple[TrainState, Row]:
        """Run window number `window` of the stack, and its ragged last micro-batch if it has one; from micro-batch
        `start` on where those before it have gone into a `carry`.
        """
        functions = self._functions
        shape = divisor_shape(fields, functions)
        window = jnp.asarray(window, jnp.int32)
        count = steering.steps_of(window)
        size = count + (ragged is not None)
        begun: Carry = functions.start(state) if carry is None else carry
        whole: Carry = lax.fori_loop(start, count, self._body(state, fields, steering, window, size), begun)
        if ragged is not None:
            inverse_divisors = steering.ragged_inverse_divisors(shape)
            stamp = Stamp(state.optimizer.gradient_step, count, size)
            whole = functions.accumulate(state.parameters, whole, ragged, inverse_divisors, stamp)
        return functions.finish(state, whole, steering.rates(shape), steering.first)

    def _body(
        self, state: TrainState, fields: Arrays, steering: Steering, window: jax.Array, size: jax.Array
    ) -> Callable[[jax.Array, Carry], Carry]:
        """Return what is done with each full micro-batch of a window that has `size` in all."""
        shape = divisor_shape(fields, self._functions)
        update = state.optimizer.gradient_step

        def body(step: jax.Array, carry: Carry) -> Carry:
            batch = {name: at_index(array, window, step) for name, array in fields.items()}
            inverse_divisors = steering.inverse_divisors(window, step, shape)
            stamp = Stamp(update, step, size)
            return self._functions.accumulate(state.parameters, carry, batch, inverse_divisors, stamp)

        return body

    def _many(self, state: TrainState, fields: Arrays, steering: Steering) -> tuple[TrainState, Row]:
        """Run the first `steering.windows` windows of the stack."""

        def body(window: jax.Array, loop: tuple[TrainState, Row]) -> tuple[TrainState, Row]:
            state, rows = loop
            state, row = self._one(state, fields, steering, window)
            return state, rows.at[window].set(row)

        # a row for each place in the stack, so that one compilation serves full and partial ones
        _, row = jax.eval_shape(self._one, state, fields, steering)
        return lax.fori_loop(0, steering.windows, body, (state, jnp.zeros((steering.room, *row.shape), row.dtype)))
