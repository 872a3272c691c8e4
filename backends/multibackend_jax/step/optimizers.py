"""Optimizer specs as optax transformations.

Each yields the direction d of p = p - lr * d; `scale_by_rate` then multiplies by -lr, which the program hands in as
`learning_rate` for this update. So one compilation serves every schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from multibackend import optimizers
from multibackend.errors import ConfigurationError
from multibackend.optimizers import GroupedParameters
from multibackend_jax.step import update_rules as own
from multibackend_jax.step.update_rules import NativeState, SlotState, bias_correction

__all__ = ["SLOTS", "build_grouped", "build_optimizer", "read_slots", "write_slots"]

# the canonical (torch) name of each per-parameter slot, by (optax state, field)
SLOTS = {
    ("TraceState", "trace"): "momentum_buffer",
    ("ScaleByAdamState", "mu"): "exp_avg",
    ("ScaleByAdamState", "nu"): "exp_avg_sq",
}


def build_grouped(
    spec: optimizers.Optimizer, groups: Sequence[GroupedParameters], merged: Mapping[str, tuple[int, ...]]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a spec, where parameters of different groups go each their own way; frozen ones never come here.

    Its state is the tuple of the groups' states: each holds the parameters of its group only. `merged` has the shapes
    of parameters with those axes joined that are one in the canonical layout.
    """
    if not spec.groups and not isinstance(spec, optimizers.Muon):
        return build_optimizer(spec)
    trained = [group for group in groups if not group.frozen]
    parts = [optax.chain(*_directions(g.spec, merged), scale_by_rate(g.learning_rate_factor)) for g in trained]

    def of_group(tree: Any, group: GroupedParameters) -> dict[str, Any]:
        return {name: tree[name] for name in group.names}

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(part.init(of_group(params, group)) for part, group in zip(parts, trained, strict=True))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        results = [
            part.update(of_group(updates, group), held, of_group(params, group), **extra)
            for part, group, held in zip(parts, trained, state, strict=True)
        ]
        joined: dict[str, Any] = {}
        for directions, _ in results:
            joined.update(cast(Any, directions))
        return joined, tuple(held for _, held in results)

    return optax.GradientTransformationExtraArgs(init, update)


def build_optimizer(spec: optimizers.Optimizer) -> optax.GradientTransformationExtraArgs:
    """The whole inner optimizer: `update(gradients, state, parameters, learning_rate=...)`."""
    return optax.chain(*direction(spec), scale_by_rate())


def _directions(
    spec: optimizers.Optimizer, merged: Mapping[str, tuple[int, ...]]
) -> tuple[optax.GradientTransformation, ...]:
    if isinstance(spec, optimizers.Muon):  # the only one that looks at shapes
        return (own.scale_by_muon(spec, merged), *_decay(spec.weight_decay))
    return direction(spec)


@singledispatch
def direction(spec: optimizers.Optimizer) -> tuple[optax.GradientTransformation, ...]:
    """The transformations that turn a gradient into the direction d."""
    raise ConfigurationError(type(spec).__name__, ["the jax backend has no such optimizer; register it with direction"])


def scale_by_rate(factor: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """d → -learning_rate * factor * d, the rate given at each update."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        learning_rate = extra["learning_rate"] if factor == 1.0 else extra["learning_rate"] * factor
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
    return (*_decay(spec.weight_decay), _adam(spec))


@direction.register
def _(spec: optimizers.AdamW) -> tuple[optax.GradientTransformation, ...]:
    return (_adam(spec), *_decay(spec.weight_decay))


@direction.register
def _(spec: optimizers.Adamax) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_adamax(spec))


@direction.register
def _(spec: optimizers.NAdam) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_nadam(spec))


@direction.register
def _(spec: optimizers.RAdam) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_radam(spec))


@direction.register
def _(spec: optimizers.Lion) -> tuple[optax.GradientTransformation, ...]:
    return (own.scale_by_lion(spec), *_decay(spec.weight_decay))


@direction.register
def _(spec: optimizers.RMSprop) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_rmsprop(spec))


@direction.register
def _(spec: optimizers.Adagrad) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_adagrad(spec))


@direction.register
def _(spec: optimizers.Adadelta) -> tuple[optax.GradientTransformation, ...]:
    return (*_decay(spec.weight_decay), own.scale_by_adadelta(spec))


@direction.register
def _(spec: optimizers.Native) -> tuple[optax.GradientTransformation, ...]:
    return (own.native(spec.builder("jax")()),)


def _adam(spec: optimizers.Adam | optimizers.AdamW) -> optax.GradientTransformation:
    return own.scale_by_amsgrad(spec) if spec.amsgrad else scale_by_adam(spec.beta1, spec.beta2, spec.eps)


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a bias correction that keeps its digits in float32.

    1 - beta^t is computed as -expm1(t * log(beta)); optax's own loses five digits at small t.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count: Any = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        first, second = bias_correction(beta1, count), jnp.sqrt(bias_correction(beta2, count))

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            return m / first.astype(m.dtype) / (jnp.sqrt(v) / second.astype(m.dtype) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _leaves(inner: Any) -> list[Any]:
    """The states of single transformations, of all groups, in order."""
    return [leaf for part in inner for leaf in _leaves(part)] if _is_chain(inner) else [inner]


def _is_chain(part: Any) -> bool:
    return type(part) is tuple  # a state is a NamedTuple


def read_slots(inner: Any) -> Mapping[str, Mapping[str, jax.Array]]:
    """The per-parameter arrays of an inner optimizer state, by canonical slot, native layout."""
    slots: dict[str, dict[str, jax.Array]] = {}
    for number, part in enumerate(_leaves(inner)):
        found: Mapping[str, Mapping[str, jax.Array]] = {
            slot: getattr(part, field) for (state, field), slot in SLOTS.items() if type(part).__name__ == state
        }
        if isinstance(part, SlotState):
            found = part.slots
        elif isinstance(part, NativeState):
            found = part.slots(number)
        for slot, arrays in found.items():
            slots.setdefault(slot, {}).update(arrays)
    return slots


def write_slots(inner: Any, slots: Mapping[str, Mapping[str, jax.Array]], count: int) -> Any:
    """`inner` with its per-parameter arrays and its count of updates replaced."""
    numbers = itertools.count()

    def taken(slot: str, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: jnp.asarray(slots[slot][name], array.dtype) for name, array in arrays.items()}

    def replaced(part: Any) -> Any:
        if _is_chain(part):
            return tuple(replaced(leaf) for leaf in part)
        number, changes = next(numbers), {}
        if isinstance(part, NativeState):
            return part.replaced(slots, number)
        if isinstance(part, SlotState):
            changes["slots"] = {slot: taken(slot, arrays) for slot, arrays in part.slots.items()}
        for (state, field), slot in SLOTS.items():
            if type(part).__name__ == state:
                changes[field] = taken(slot, getattr(part, field))
        if "count" in part._fields:  # not hasattr: every tuple has a method of that name
            changes["count"] = jnp.asarray(count, jnp.int32)
        return part._replace(**changes) if changes else part

    return replaced(inner)
