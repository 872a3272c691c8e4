"""Optimizer specs as optax transformations.

Each yields the direction d of p = p - lr * d; `scale_by_rate` then multiplies by -lr, which the
program hands in as `learning_rate` for this update. So one compilation serves every schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from multibackend import optimizers
from multibackend.errors import ConfigurationError
from multibackend.optimizers import GroupedParameters
from multibackend_jax.step import update_rules
from multibackend_jax.step.update_rules import NativeState, SlotState, bias_correction

__all__ = ["build_grouped", "read_slots", "write_slots"]

# the canonical (torch) names of the per-parameter fields of optax's states
_SLOTS: dict[type, dict[str, str]] = {
    optax.TraceState: {"trace": "momentum_buffer"},
    optax.ScaleByAdamState: {"mu": "exp_avg", "nu": "exp_avg_sq"},
}

Transformations = tuple[optax.GradientTransformation, ...]


def build_grouped(
    spec: optimizers.Optimizer, groups: Sequence[GroupedParameters], merged: Mapping[str, tuple[int, ...]]
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a spec: `update(gradients, state, parameters, learning_rate=...)`.

    Parameters of different groups go each their own way: the state is the tuple of the groups'
    states, each with the parameters of its group only. Frozen parameters never come here. `merged`
    has the shapes of parameters with those axes joined that are one in the canonical layout.
    """
    if not spec.groups and not isinstance(spec, optimizers.Muon):
        return optax.chain(*direction(spec), scale_by_rate())
    trained = [group for group in groups if not group.frozen]
    parts = [optax.chain(*_directions(g.spec, merged), scale_by_rate(g.learning_rate_factor)) for g in trained]

    def of_group(tree: Any, group: GroupedParameters) -> dict[str, Any]:
        return {name: tree[name] for name in group.names}

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(part.init(of_group(params, group)) for part, group in zip(parts, trained, strict=True))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        directions: dict[str, Any] = {}
        states = []
        for part, group, old in zip(parts, trained, state, strict=True):
            of_part, new = part.update(of_group(updates, group), old, of_group(params, group), **extra)
            directions.update(cast(Any, of_part))
            states.append(new)
        return directions, tuple(states)

    return optax.GradientTransformationExtraArgs(init, update)


def _directions(spec: optimizers.Optimizer, merged: Mapping[str, tuple[int, ...]]) -> Transformations:
    if isinstance(spec, optimizers.Muon):  # the only one that looks at shapes
        return (update_rules.scale_by_muon(spec, merged), *_decay(spec.weight_decay))
    return direction(spec)


@singledispatch
def direction(spec: optimizers.Optimizer) -> Transformations:
    """Return the transformations that turn a gradient into the direction d."""
    raise ConfigurationError(type(spec).__name__, ["the jax backend has no such optimizer; register it with direction"])


def scale_by_rate(factor: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Turn d into -learning_rate * factor * d, the rate given at each update."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        learning_rate = extra["learning_rate"]
        if factor != 1.0:  # decided as it is traced: groups alone pay for the product
            learning_rate = learning_rate * factor
        return jax.tree.map(lambda d: -learning_rate.astype(d.dtype) * d, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _decay(weight_decay: float) -> Transformations:
    return (optax.add_decayed_weights(weight_decay),) if weight_decay else ()


# weight decay in front of a rule goes through it as a part of the gradient, behind it straight to
# the parameter


@direction.register
def _(spec: optimizers.SGD) -> Transformations:
    decay = _decay(spec.weight_decay)
    if not spec.momentum:
        return decay
    return (*decay, optax.trace(decay=spec.momentum, nesterov=spec.nesterov))


@direction.register
def _(spec: optimizers.Adam) -> Transformations:
    return (*_decay(spec.weight_decay), _adam(spec))


@direction.register
def _(spec: optimizers.AdamW) -> Transformations:
    return (_adam(spec), *_decay(spec.weight_decay))


@direction.register
def _(spec: optimizers.Adamax) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_adamax(spec))


@direction.register
def _(spec: optimizers.NAdam) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_nadam(spec))


@direction.register
def _(spec: optimizers.RAdam) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_radam(spec))


@direction.register
def _(spec: optimizers.Lion) -> Transformations:
    return (update_rules.scale_by_lion(spec), *_decay(spec.weight_decay))


@direction.register
def _(spec: optimizers.RMSprop) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_rmsprop(spec))


@direction.register
def _(spec: optimizers.Adagrad) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_adagrad(spec))


@direction.register
def _(spec: optimizers.Adadelta) -> Transformations:
    return (*_decay(spec.weight_decay), update_rules.scale_by_adadelta(spec))


@direction.register
def _(spec: optimizers.Native) -> Transformations:
    return (update_rules.native(spec.build("jax", optax.GradientTransformation)),)


def _adam(spec: optimizers.Adam | optimizers.AdamW) -> optax.GradientTransformation:
    if spec.amsgrad:
        return update_rules.scale_by_amsgrad(spec)
    return scale_by_adam(spec.beta1, spec.beta2, spec.eps)


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Make `optax.scale_by_adam` with a bias correction that keeps its digits in float32.

    1 - beta^t is computed as -expm1(t * log(beta)); optax's own loses five digits at small t.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        mu = jax.tree.map(jnp.zeros_like, params)
        nu = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count: Any = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        first = bias_correction(beta1, count)
        second = jnp.sqrt(bias_correction(beta2, count))

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            return m / first.astype(m.dtype) / (jnp.sqrt(v) / second.astype(m.dtype) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _is_single(state: Any) -> bool:
    """Whether a state is a NamedTuple, of one transformation: chains and groups are tuples."""
    return type(state) is not tuple


def _slots_of(state: Any, number: int) -> Mapping[str, Mapping[str, jax.Array]]:
    """Return the per-parameter arrays of the transformation with this number."""
    if isinstance(state, SlotState):
        return state.slots
    if isinstance(state, NativeState):
        return state.slots(number)
    return {slot: getattr(state, field) for field, slot in _SLOTS.get(type(state), {}).items()}


def read_slots(inner: Any) -> Mapping[str, Mapping[str, jax.Array]]:
    """Return the per-parameter arrays of an inner optimizer state, by canonical slot, native layout."""
    slots: dict[str, dict[str, jax.Array]] = {}
    for number, state in enumerate(jax.tree.leaves(inner, is_leaf=_is_single)):
        for slot, arrays in _slots_of(state, number).items():
            slots.setdefault(slot, {}).update(arrays)  # each group has some of the parameters of a slot
    return slots


def write_slots(inner: Any, slots: Mapping[str, Mapping[str, jax.Array]], count: int) -> Any:
    """Return `inner` with its per-parameter arrays and its count of updates replaced."""

    def replacement(slot: str, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: jnp.asarray(slots[slot][name], array.dtype) for name, array in arrays.items()}

    def replaced(state: Any, number: int) -> Any:
        if isinstance(state, NativeState):
            return state.replaced(slots, number)
        changes: dict[str, Any] = {}
        if isinstance(state, SlotState):
            changes["slots"] = {slot: replacement(slot, arrays) for slot, arrays in state.slots.items()}
        for field, slot in _SLOTS.get(type(state), {}).items():
            changes[field] = replacement(slot, getattr(state, field))
        if "count" in state._fields:  # not hasattr: every tuple has a method of that name
            changes["count"] = jnp.asarray(count, jnp.int32)
        return state._replace(**changes)

    states, structure = jax.tree.flatten(inner, is_leaf=_is_single)
    return jax.tree.unflatten(structure, [replaced(state, number) for number, state in enumerate(states)])
