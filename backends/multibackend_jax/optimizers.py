"""Optimizer specs as optax transformations.

Each yields the direction d of p = p - lr * d; `scale_by_rate` then multiplies by -lr, which the program hands in as
`learning_rate` for this update. So one compilation serves every schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import optax

from multibackend import optimizers
from multibackend.errors import ConfigurationError

__all__ = ["SLOTS", "build_optimizer", "read_slots", "write_slots"]

# the canonical (torch) name of each per-parameter slot, by (optax state, field)
SLOTS = {
    ("TraceState", "trace"): "momentum_buffer",
    ("ScaleByAdamState", "mu"): "exp_avg",
    ("ScaleByAdamState", "nu"): "exp_avg_sq",
}


def build_optimizer(spec: optimizers.Optimizer) -> optax.GradientTransformationExtraArgs:
    """The whole inner optimizer: `update(gradients, state, parameters, learning_rate=...)`."""
    return optax.chain(*direction(spec), scale_by_rate())


@singledispatch
def direction(spec: optimizers.Optimizer) -> tuple[optax.GradientTransformation, ...]:
    """The transformations that turn a gradient into the direction d."""
    raise ConfigurationError(type(spec).__name__, ["the jax backend has no such optimizer; register it with direction"])


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """d → -learning_rate * d, the rate given at each update."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        learning_rate = extra["learning_rate"]
        return jax.tree.map(lambda d: -learning_rate.astype(d.dtype) * d, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decay(weight_decay: float) -> tuple[optax.GradientTransformation, ...]:
    return (optax.add_decayed_weights(weight_decay),) if weight_decay else ()


@direction.register
def _(spec: optimizers.SGD) -> tuple[optax.GradientTransformation, ...]:
    momentum = (optax.trace(decay=spec.momentum, nesterov=spec.nesterov),) if spec.momentum else ()
    return (*_decay(spec.weight_decay), *momentum)


@direction.register
def _(spec: optimizers.Adam) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), scale_by_adam(spec.beta1, spec.beta2, spec.eps))


@direction.register
def _(spec: optimizers.AdamW) -> tuple[optax.GradientTransformation, ...]:
    return (scale_by_adam(spec.beta1, spec.beta2, spec.eps), *_decay(spec.weight_decay))


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a bias correction that keeps its digits in float32.

    1 - beta^t is computed as -expm1(t * log(beta)); optax's own loses five digits at small t.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        first, second = _bias_correction(beta1, count), jnp.sqrt(_bias_correction(beta2, count))

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            return m / first.astype(m.dtype) / (jnp.sqrt(v) / second.astype(m.dtype) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(beta: float, count: Any) -> jax.Array:
    """1 - beta^count."""
    if beta == 0.0:
        return jnp.ones([])
    return -jnp.expm1(count.astype(jnp.result_type(float)) * math.log(beta))


def read_slots(inner: Any) -> Mapping[str, Mapping[str, jax.Array]]:
    """The per-parameter arrays of an inner optimizer state, by canonical slot, native layout."""
    return {
        slot: getattr(part, field)
        for part in inner
        for (state, field), slot in SLOTS.items()
        if type(part).__name__ == state
    }


def write_slots(inner: Any, slots: Mapping[str, Mapping[str, jax.Array]], count: int) -> Any:
    """`inner` with its per-parameter arrays and its count of updates replaced."""

    def replaced(part: Any) -> Any:
        changes: dict[str, Any] = {}
        for (state, field), slot in SLOTS.items():
            if type(part).__name__ == state:
                changes[field] = {n: jnp.asarray(slots[slot][n], a.dtype) for n, a in getattr(part, field).items()}
        if "count" in part._fields:  # not hasattr: every tuple has a method of that name
            changes["count"] = jnp.asarray(count, jnp.int32)
        return part._replace(**changes) if changes else part

    return tuple(replaced(part) for part in inner)
