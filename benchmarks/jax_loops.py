"""Training loops as one writes them by hand in JAX, all state donated, losses read at the end of a slice.

- micro-step: one dispatch per micro-batch adds to a donated accumulator, another makes the update.
- window: one dispatch per window, `lax.scan` over its micro-batches, then one update.
- unrolled window: the same, the loop written out in the program.
- n windows: one dispatch for n windows, a scan of scans.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from benchmarks import jax_models
from benchmarks.timing import Contender
from benchmarks.workloads import Fields, Workload, windows_of_rows

__all__ = ["hand_written", "names"]

_OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.01),
}
_LOSSES = {
    "mean_squared_error": lambda outputs, targets: jnp.mean((outputs - targets) ** 2),
    "cross_entropy": lambda outputs, labels: optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(),
}


class _State(NamedTuple):
    parameters: Any
    others: Any  # batch statistics
    optimizer: Any


class _Sums(NamedTuple):
    gradient: Any
    others: Any
    loss: jax.Array


class _Functions:
    """The pure functions that the loops are made of."""

    def __init__(self, workload: Workload) -> None:
        self.steps = workload.steps
        self._loss = _LOSSES[workload.loss]
        self._optimizer = _OPTIMIZERS[workload.optimizer](workload.learning_rate)
        model = getattr(jax_models, workload.name)(rngs=nnx.Rngs(0))
        model.train()
        self._graph, parameters, others = nnx.split(model, nnx.Param, ...)
        self.first = _State(parameters, others, self._optimizer.init(parameters))

    def start(self, state: _State) -> _Sums:
        return _Sums(jax.tree.map(jnp.zeros_like, state.parameters), state.others, jnp.zeros([]))

    def add(self, sums: _Sums, parameters: Any, batch: Any) -> _Sums:
        def objective(parameters: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(self._graph, parameters, sums.others, copy=True)
            loss = self._loss(model(batch["x"]), batch["y"])
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (loss, others), gradient = jax.value_and_grad(objective, has_aux=True)(parameters)
        return _Sums(jax.tree.map(jnp.add, sums.gradient, gradient), others, sums.loss + loss)

    def update(self, state: _State, sums: _Sums) -> tuple[_State, jax.Array]:
        gradient = jax.tree.map(lambda g: g / self.steps, sums.gradient)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        return _State(parameters, sums.others, optimizer), sums.loss / self.steps

    def window(self, state: _State, batches: Any) -> tuple[_State, jax.Array]:
        """Scan over the micro-batches of one window."""

        def body(sums: _Sums, batch: Any) -> tuple[_Sums, None]:
            return self.add(sums, state.parameters, batch), None

        return self.update(state, lax.scan(body, self.start(state), batches)[0])

    def unrolled(self, state: _State, batches: Any) -> tuple[_State, jax.Array]:
        sums = self.start(state)
        for step in range(self.steps):
            sums = self.add(sums, state.parameters, {name: array[step] for name, array in batches.items()})
        return self.update(state, sums)

    def windows(self, state: _State, batches: Any) -> tuple[_State, jax.Array]:
        return lax.scan(self.window, state, batches)


def names(workload: Workload) -> list[str]:
    """The loops worth trying: convolutions on CPU are slow inside a scan, so no scan over windows there."""
    if workload.convolutions and jax.default_backend() == "cpu":
        return ["micro-step", "window", "unrolled window"]
    return ["micro-step", "window", "8 windows", "32 windows"]


def hand_written(workload: Workload, name: str) -> Contender:
    """The loop of that name."""
    functions = _Functions(workload)
    if name == "micro-step":
        return Contender(name, _by_micro_batch(workload, functions))
    if name == "window":
        return Contender(name, _by_window(workload, functions, functions.window, 0))
    if name == "unrolled window":
        return Contender(name, _by_window(workload, functions, functions.unrolled, 0))
    windows = int(name.removesuffix(" windows"))
    return Contender(name, _by_window(workload, functions, functions.windows, windows), granularity=windows)


def _by_micro_batch(workload: Workload, functions: _Functions) -> Callable[[int], np.ndarray]:
    """One dispatch per micro-batch and one per update, which also clears the accumulator."""
    size, steps = workload.micro_batch, workload.steps
    rows = windows_of_rows(workload.data("jax"), size * steps)
    add = jax.jit(functions.add, donate_argnums=0)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(parameters: Any, optimizer: Any, sums: _Sums) -> tuple[Any, Any, _Sums, jax.Array]:
        state, loss = functions.update(_State(parameters, sums.others, optimizer), sums)
        return state.parameters, state.optimizer, functions.start(state), loss

    first = jax.tree.map(jnp.copy, functions.first)
    held = [first.parameters, first.optimizer, functions.start(first)]

    def train(updates: int) -> np.ndarray:
        losses = []
        parameters, optimizer, sums = held
        with jax.default_matmul_precision("highest"):
            for _ in range(updates):
                window = _arrange(next(rows), steps, size)
                for step in range(steps):
                    sums = add(sums, parameters, {name: array[step] for name, array in window.items()})
                parameters, optimizer, sums, loss = update(parameters, optimizer, sums)
                losses.append(loss)
        held[:] = parameters, optimizer, sums
        return np.array(jax.device_get(losses))

    return train


def _by_window(
    workload: Workload, functions: _Functions, function: Callable[..., Any], windows: int
) -> Callable[[int], np.ndarray]:
    """One dispatch per window, or per `windows` windows unless that is 0."""
    size, steps = workload.micro_batch, workload.steps
    rows = windows_of_rows(workload.data("jax"), size * steps * max(windows, 1))
    shape = (windows, steps, size) if windows else (steps, size)
    run = jax.jit(function, donate_argnums=0)
    held = [jax.tree.map(jnp.copy, functions.first)]

    def train(updates: int) -> np.ndarray:
        losses, state = [], held[0]
        with jax.default_matmul_precision("highest"):
            for _ in range(updates // max(windows, 1)):
                state, loss = run(state, _arrange(next(rows), *shape))
                losses.append(loss)
        held[0] = state
        return np.array(jax.device_get(losses)).reshape(-1)

    return train


def _arrange(rows: Fields, *leading: int) -> Fields:
    return {name: array.reshape(*leading, *array.shape[1:]) for name, array in rows.items()}
