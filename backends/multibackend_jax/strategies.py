"""Ways to execute windows, of identical result.

`scan`: one dispatch runs one or several whole windows, the micro-batches in a loop on the device. Least overhead; the
default but for the next case.

`dispatch`: one dispatch per micro-batch, with a donated accumulator. XLA's CPU backend gives up its threaded
convolution kernels inside loops (26 times slower, jax 0.10), so models with convolutions run this way on CPU.

The number of iterations is an argument of the loop, not a constant: full and partial windows, and an accumulation
schedule, share one compilation. A ragged last micro-batch adds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from multibackend.protocol import Rates
from multibackend.windows import WindowStack
from multibackend_jax.models import Arrays, Stamp
from multibackend_jax.window import Carry, Row, TrainState, WindowFunctions

__all__ = ["STRATEGIES", "Dispatch", "PlacedWindows", "Scan", "Steering", "Strategy"]


class Steering(NamedTuple):
    """The small numbers that steer a dispatch, packed into two arrays because each argument of a dispatch costs time.

    Attributes:
        integers: int32 [2 + room]: index of the first rate, number of windows, full micro-batches of each window.
        floats: [(room * steps + 1) * terms + rates]: factors of each micro-batch, of the ragged one, learning rates.
    """

    integers: Any
    floats: Any

    @classmethod
    def pack(cls, stack: WindowStack, windows: int, rates: Rates, dtype: np.dtype) -> Steering:
        room, steps = next(iter(stack.fields.values())).shape[:2]
        terms = stack.factors.shape[-1]
        factors = room * steps * terms
        integers = np.zeros(2 + room, np.int32)
        integers[:2] = rates.first, windows
        integers[2 : 2 + len(stack)] = stack.counts
        floats = np.zeros(factors + terms + len(rates.values), dtype)
        floats[: stack.factors.size] = stack.factors.reshape(-1)
        floats[factors : factors + terms] = stack.ragged_factors
        floats[factors + terms :] = rates.values
        return cls(integers, floats)

    @property
    def first(self) -> jax.Array:
        return self.integers[0]

    @property
    def windows(self) -> jax.Array:
        return self.integers[1]

    def steps_of(self, window: jax.Array) -> jax.Array:
        return _at(self.integers, window + 2)

    def factors(self, window: jax.Array, step: jax.Array, shape: FactorShape) -> jax.Array:
        return lax.dynamic_slice(self.floats, ((window * shape.steps + step) * shape.terms,), (shape.terms,))

    def ragged_factors(self, shape: FactorShape) -> jax.Array:
        start = self._room() * shape.steps * shape.terms
        return self.floats[start : start + shape.terms]

    def rates(self, shape: FactorShape) -> jax.Array:
        return self.floats[(self._room() * shape.steps + 1) * shape.terms :]

    def _room(self) -> int:
        return self.integers.shape[0] - 2


class FactorShape(NamedTuple):
    """How many factors a window has."""

    steps: int
    terms: int


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


class Strategy(Protocol):
    """One way to execute windows. `run` returns results with the windows of each, in order. `accumulate` and `close`:
    `multibackend.protocol.Interruptible`, for which nothing in what `run` compiles is different.

    `reads_fields_once`: each field enters one dispatch only, so on CPU it may stay a host array until then.
    """

    name: str
    reads_fields_once: bool

    def run(
        self, state: TrainState, placed: PlacedWindows, rates: Rates
    ) -> tuple[TrainState, list[tuple[Row, int]]]: ...

    def accumulate(self, state: TrainState, placed: PlacedWindows, carry: Carry | None, bounds: Bounds) -> Carry: ...

    def close(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, start: int, rates: Rates
    ) -> tuple[TrainState, list[tuple[Row, int]]]: ...

    def compilations(self) -> int: ...


def _at(array: jax.Array, *index: jax.Array) -> jax.Array:
    """`array[index]` without the wrap-around of negative indices, which would cost a comparison for each."""
    rest = array.shape[len(index) :]
    start = (*index, *(np.int32(0) for _ in rest))
    return lax.dynamic_slice(array, start, (*(1 for _ in index), *rest)).reshape(rest)


def _own_start(functions: WindowFunctions, state: TrainState) -> Carry:
    """A carry of its own buffers: the state keeps its model state for the case that the window is dropped."""
    copied = {"model_state": state.model_state, "loss_scale": state.loss_scale}
    return functions.start(state._replace(**jax.tree.map(jnp.copy, copied)))


def _compilations(*functions: Any) -> int:
    """How many programs jitted functions have compiled."""
    return sum(function._cache_size() for function in functions)


class Scan:
    """Whole windows in one dispatch."""

    name = "scan"
    reads_fields_once = True

    def __init__(self, functions: WindowFunctions) -> None:
        self._functions = functions
        self._dtype = np.dtype(functions.dtype)
        options = functions.compiler_options
        self.one = jax.jit(self._one, donate_argnums=0, compiler_options=options)
        self.many = jax.jit(self._many, donate_argnums=0, compiler_options=options)
        self.start = jax.jit(self._start)
        self.part = jax.jit(self._part, donate_argnums=1, compiler_options=options)
        self.rest = jax.jit(self._rest, donate_argnums=0, compiler_options=options)

    def compilations(self) -> int:
        return _compilations(self.one, self.many, self.part, self.rest)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, list[tuple[Row, int]]]:
        stack, results = placed.stack, []
        windows = len(stack) - (placed.ragged is not None)
        steering = Steering.pack(stack, windows, rates, self._dtype)
        if windows:
            room = steering.integers.size - 2
            run = self.one if room == 1 else self.many
            state, measured = run(state, placed.fields, steering)
            results.append((measured, windows))
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
    ) -> tuple[TrainState, list[tuple[Row, int]]]:
        steering = Steering.pack(placed.stack, 1, rates, self._dtype)
        state, measured = self.rest(state, carry, placed.fields, steering, np.int32(start), placed.ragged)
        return state, [(measured, 1)]

    def _start(self, state: TrainState) -> Carry:
        return _own_start(self._functions, state)

    def _part(self, state: TrainState, carry: Carry, fields: Arrays, steering: Steering, place: jax.Array) -> Carry:
        """Micro-batches of the first window: the loop of `_one` between other bounds."""
        functions, (start, stop, size) = self._functions, place
        shape = FactorShape(next(iter(fields.values())).shape[1], functions.terms)
        window, update = jnp.zeros([], jnp.int32), state.optimizer.gradient_step

        def body(step: jax.Array, carry: Carry) -> Carry:
            batch = {name: _at(array, window, step) for name, array in fields.items()}
            factors = steering.factors(window, step, shape)
            return functions.accumulate(state.parameters, carry, batch, factors, Stamp(update, step, size))

        return lax.fori_loop(start, stop, body, carry)

    def _rest(
        self,
        state: TrainState,
        carry: Carry,
        fields: Arrays,
        steering: Steering,
        start: jax.Array,
        ragged: Arrays | None,
    ) -> tuple[TrainState, Row]:
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
        """Window number `window` of the stack, and its ragged last micro-batch if it has one; the rest of it where
        micro-batches have gone into a `carry` already.
        """
        functions = self._functions
        shape = FactorShape(next(iter(fields.values())).shape[1], functions.terms)
        window = jnp.asarray(window, jnp.int32)
        count, update = steering.steps_of(window), state.optimizer.gradient_step
        size = count + (ragged is not None)

        def body(step: jax.Array, carry: Carry) -> Carry:
            batch = {name: _at(array, window, step) for name, array in fields.items()}
            factors = steering.factors(window, step, shape)
            return functions.accumulate(state.parameters, carry, batch, factors, Stamp(update, step, size))

        begun: Carry = functions.start(state) if carry is None else carry
        whole: Carry = lax.fori_loop(start, count, body, begun)
        if ragged is not None:
            factors = steering.ragged_factors(shape)
            whole = functions.accumulate(state.parameters, whole, ragged, factors, Stamp(update, count, size))
        return functions.finish(state, whole, steering.rates(shape), steering.first)

    def _many(self, state: TrainState, fields: Arrays, steering: Steering) -> tuple[TrainState, Row]:
        """The first `steering.windows` windows of the stack."""

        def body(window: jax.Array, held: tuple[TrainState, Row]) -> tuple[TrainState, Row]:
            state, rows = held
            state, row = self._one(state, fields, steering, window)
            return state, rows.at[window].set(row)

        room = steering.integers.shape[0] - 2
        row = jax.eval_shape(self._one, state, fields, steering)[1]
        return lax.fori_loop(0, steering.windows, body, (state, jnp.zeros((room, *row.shape), row.dtype)))


class Dispatch:
    """One dispatch per micro-batch, one more to finish the window."""

    name = "dispatch"
    reads_fields_once = False

    def __init__(self, functions: WindowFunctions) -> None:
        self._functions = functions
        self._dtype = np.dtype(functions.dtype)
        self.start = jax.jit(self._start)
        options = functions.compiler_options
        self.micro = jax.jit(self._micro, donate_argnums=0, compiler_options=options)
        self.ragged = jax.jit(self._ragged, donate_argnums=0, static_argnames="shape", compiler_options=options)
        self.finish = jax.jit(self._finish, donate_argnums=0, static_argnames="shape")

    def compilations(self) -> int:
        return _compilations(self.micro, self.ragged, self.finish)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, list[tuple[Row, int]]]:
        results, steering = [], jax.device_put(Steering.pack(placed.stack, len(placed.stack), rates, self._dtype))
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
    ) -> tuple[TrainState, list[tuple[Row, int]]]:
        steering = jax.device_put(Steering.pack(placed.stack, 1, rates, self._dtype))
        state, measured = self._window(state, placed, carry, steering, 0, start)
        return state, [(measured, 1)]

    def _window(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, steering: Steering, window: int, start: int = 0
    ) -> tuple[TrainState, Row]:
        """A window from its micro-batch `start` on."""
        stack, count = placed.stack, int(placed.stack.counts[window])
        shape = FactorShape(next(iter(placed.fields.values())).shape[1], self._functions.terms)
        carry = self._add(state, placed, carry, steering, window, range(start, count))
        if placed.ragged is not None and window == len(stack) - 1:
            stamp = (state.optimizer.gradient_step, np.int32(count), np.int32(count + 1))
            carry = self.ragged(carry, state.parameters, placed.ragged, steering, stamp, shape=shape)
        return self.finish(state, carry, steering, shape=shape)

    def _add(
        self, state: TrainState, placed: PlacedWindows, carry: Carry, steering: Steering, window: int, steps: range
    ) -> Carry:
        """Full micro-batches of a window."""
        size = int(placed.stack.counts[window]) + (placed.ragged is not None and window == len(placed.stack) - 1)
        for step in steps:
            place = np.array([window, step, size], np.int32)
            update = state.optimizer.gradient_step
            carry = self.micro(carry, state.parameters, placed.fields, steering, place, update)
        return carry

    def _start(self, state: TrainState) -> Carry:
        return _own_start(self._functions, state)

    def _micro(
        self, carry: Carry, parameters: Arrays, fields: Arrays, steering: Steering, place: jax.Array, update: jax.Array
    ) -> Carry:
        window, step, size = place
        batch = {name: _at(array, window, step) for name, array in fields.items()}
        shape = FactorShape(next(iter(fields.values())).shape[1], self._functions.terms)
        factors = steering.factors(window, step, shape)
        return self._functions.accumulate(parameters, carry, batch, factors, Stamp(update, step, size))

    def _ragged(
        self,
        carry: Carry,
        parameters: Arrays,
        ragged: Arrays,
        steering: Steering,
        stamp: tuple[jax.Array, jax.Array, jax.Array],
        shape: FactorShape,
    ) -> Carry:
        return self._functions.accumulate(parameters, carry, ragged, steering.ragged_factors(shape), Stamp(*stamp))

    def _finish(
        self, state: TrainState, carry: Carry, steering: Steering, shape: FactorShape
    ) -> tuple[TrainState, Row]:
        return self._functions.finish(state, carry, steering.rates(shape), steering.first)


STRATEGIES = {strategy.name: strategy for strategy in (Scan, Dispatch)}
