"""Optimizers that optax lacks or defines otherwise, as optax transformations.

Each has its equations in the docstring of its spec in `multibackend.optimizers`, and yields the
direction d of p = p - lr * d. Numbers that depend on the count of updates alone are computed once
per update, without cancellation: they keep their digits in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multibackend import optimizers

__all__ = [
    "NATIVE",
    "NativeState",
    "SlotState",
    "bias_correction",
    "native",
    "scale_by_adadelta",
    "scale_by_adagrad",
    "scale_by_adamax",
    "scale_by_amsgrad",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_rmsprop",
]

# g and the slots of one parameter, in the order of their names' declaration → d and the new slots
LeafRule = Callable[..., tuple[jax.Array, ...]]


class SlotState(NamedTuple):
    """The updates made, and per-parameter arrays by canonical slot name."""

    count: Any
    slots: Any


def _by_leaf(initial: Mapping[str, float], rule: Callable[[jax.Array], LeafRule]) -> optax.GradientTransformation:
    """Make a transformation of a rule for one parameter and the first value of each slot."""

    def init(params: Any) -> SlotState:
        slots = {}
        for slot, value in initial.items():
            slots[slot] = {name: jnp.full_like(parameter, value) for name, parameter in params.items()}
        return SlotState(jnp.zeros([], jnp.int32), slots)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SlotState]:
        count: Any = optax.safe_increment(state.count)
        of_leaf = rule(count)  # what depends on the count alone is computed here, once for all parameters
        directions = {}
        slots: dict[str, Any] = {slot: {} for slot in initial}
        for name, gradient in updates.items():
            directions[name], *new = of_leaf(gradient, *(state.slots[slot][name] for slot in initial))
            for slot, array in zip(initial, new, strict=True):
                slots[slot][name] = array
        return directions, SlotState(count, slots)

    return optax.GradientTransformation(init, update)


def bias_correction(beta: float, count: Any) -> jax.Array:
    """Return 1 - beta^count; as a difference it loses five digits in float32 at small t."""
    if beta == 0.0:  # which has no logarithm
        return jnp.ones([])
    return -jnp.expm1(_real(count) * math.log(beta))


def _real(count: Any) -> jax.Array:
    return count.astype(jnp.result_type(float))


def _average(beta: float, average: jax.Array, value: jax.Array) -> jax.Array:
    return beta * average + (1 - beta) * value


def scale_by_amsgrad(spec: optimizers.Adam | optimizers.AdamW) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Adam` with amsgrad=True."""

    def rule(count: jax.Array) -> LeafRule:
        first = bias_correction(spec.beta1, count)
        second = jnp.sqrt(bias_correction(spec.beta2, count))

        def leaf(g: jax.Array, m: jax.Array, v: jax.Array, u: jax.Array) -> tuple[jax.Array, ...]:
            m = _average(spec.beta1, m, g)
            v = _average(spec.beta2, v, g * g)
            u = jnp.maximum(u, v)  # of averages without bias correction, as torch has it
            d = m / first.astype(m.dtype) / (jnp.sqrt(u) / second.astype(m.dtype) + spec.eps)
            return d, m, v, u

        return leaf

    return _by_leaf({"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}, rule)


def scale_by_adamax(spec: optimizers.Adamax) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Adamax`."""

    def rule(count: jax.Array) -> LeafRule:
        first = bias_correction(spec.beta1, count)

        def leaf(g: jax.Array, m: jax.Array, u: jax.Array) -> tuple[jax.Array, ...]:
            m = _average(spec.beta1, m, g)
            u = jnp.maximum(spec.beta2 * u, jnp.abs(g) + spec.eps)  # eps inside, as torch has it
            return m / first.astype(m.dtype) / u, m, u

        return leaf

    return _by_leaf({"exp_avg": 0.0, "exp_inf": 0.0}, rule)


def scale_by_nadam(spec: optimizers.NAdam) -> optax.GradientTransformation:
    """See `multibackend.optimizers.NAdam`."""

    def mu(count: jax.Array) -> jax.Array:
        return spec.beta1 * (1 - 0.5 * jnp.exp(_real(count) * spec.momentum_decay * math.log(0.96)))

    def rule(count: jax.Array) -> LeafRule:
        current = mu(count)
        following = mu(count + 1)
        product = _momentum_product(spec, count)
        of_gradient = (1 - current) / (1 - product)
        of_average = following / (1 - product * following)
        second = jnp.sqrt(bias_correction(spec.beta2, count))

        def leaf(g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            m = _average(spec.beta1, m, g)
            v = _average(spec.beta2, v, g * g)
            n = of_gradient.astype(g.dtype) * g + of_average.astype(g.dtype) * m
            return n / (jnp.sqrt(v) / second.astype(g.dtype) + spec.eps), m, v

        return leaf

    return _by_leaf({"exp_avg": 0.0, "exp_avg_sq": 0.0}, rule)


def _momentum_product(spec: optimizers.NAdam, count: jax.Array) -> jax.Array:
    """Return mu_1 ··· mu_t = beta1^t * prod(1 - a^i / 2), a = 0.96^momentum_decay, without a loop over i.

    log prod(1 - a^i / 2) = -sum over k of 2^-k / k * sum over i of a^(ik); the inner sum is
    geometric, and 60 terms of the outer one leave less than 1e-18.
    """
    if spec.beta1 == 0.0:
        return jnp.zeros([])
    t = _real(count)
    k = jnp.arange(1, 61).astype(jnp.result_type(float))
    log_a = spec.momentum_decay * math.log(0.96)
    inner = t
    if log_a != 0:
        inner = jnp.exp(k * log_a) * jnp.expm1(k * t * log_a) / jnp.expm1(k * log_a)
    return jnp.exp(t * math.log(spec.beta1) - jnp.sum(0.5**k / k * inner))


def scale_by_radam(spec: optimizers.RAdam) -> optax.GradientTransformation:
    """See `multibackend.optimizers.RAdam`."""
    limit = 2 / (1 - spec.beta2) - 1

    def rule(count: jax.Array) -> LeafRule:
        rho = _rectified_length(spec.beta2, count)
        rectified = rho > 5  # torch's bound; the paper has 4
        safe = jnp.where(rectified, rho, 5.0)  # below, the root would be of a negative number
        r = safe  # any value will do where the limit is so low that rho never comes to 5
        if limit > 5:
            r = jnp.sqrt((safe - 4) * (safe - 2) * limit / ((limit - 4) * (limit - 2) * safe))
        first = bias_correction(spec.beta1, count)
        second = jnp.sqrt(bias_correction(spec.beta2, count))

        def leaf(g: jax.Array, m: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            m = _average(spec.beta1, m, g)
            v = _average(spec.beta2, v, g * g)
            adaptive = jnp.where(rectified, (r * second).astype(g.dtype) / (jnp.sqrt(v) + spec.eps), 1.0)
            return m / first.astype(m.dtype) * adaptive, m, v

        return leaf

    return _by_leaf({"exp_avg": 0.0, "exp_avg_sq": 0.0}, rule)


def _rectified_length(beta2: float, count: jax.Array) -> jax.Array:
    """Return rho_t = 2 / (1 - beta2) - 1 - 2 t beta2^t / (1 - beta2^t).

    With x = -log(beta2) and z = x t the last term is 2/x * z / expm1(z), of about the size of the
    first where z is small. There the series z / expm1(z) = 1 - z/2 + z²/12 - z⁴/720 + ... lets the
    large parts cancel on the host.
    """
    if beta2 == 0.0:
        return jnp.ones([])
    t = _real(count)
    x = -math.log(beta2)
    z = x * t
    # -2/x * (z²/12 - z⁴/720 + ...) with z/x = t taken out, so that no large number appears
    bernoulli = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)
    powers = sum(b * z ** (2 * i + 1) for i, b in enumerate(bernoulli))
    series = (2 / (1 - beta2) - 1 - 2 / x) + t - 2 * t * powers
    direct = 2 / (1 - beta2) - 1 - 2 * t / jnp.expm1(jnp.maximum(z, 0.5))
    # at z = 0.5 the first power that the series leaves out is 1e-13
    return jnp.where(z < 0.5, series, direct)


def scale_by_lion(spec: optimizers.Lion) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Lion`; without its weight decay."""

    # optax's adds the two products of an average in the other order: other last bits of m
    # (jax 0.10)
    def leaf(g: jax.Array, m: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.sign(_average(spec.beta1, m, g)), _average(spec.beta2, m, g)

    return _by_leaf({"exp_avg": 0.0}, lambda count: leaf)


def scale_by_rmsprop(spec: optimizers.RMSprop) -> optax.GradientTransformation:
    """See `multibackend.optimizers.RMSprop`."""

    initial = {"square_avg": 0.0}
    if spec.centered:
        initial["grad_avg"] = 0.0
    if spec.momentum:
        initial["momentum_buffer"] = 0.0

    def leaf(g: jax.Array, *slots: jax.Array) -> tuple[jax.Array, ...]:
        new = dict(zip(initial, slots, strict=True))
        new["square_avg"] = _average(spec.beta2, new["square_avg"], g * g)
        variance = new["square_avg"]
        if spec.centered:
            new["grad_avg"] = _average(spec.beta2, new["grad_avg"], g)
            # E[g²] - E[g]² rounds to less than 0 where the gradient does not change
            variance = jnp.maximum(variance - new["grad_avg"] * new["grad_avg"], 0)
        d = g / (jnp.sqrt(variance) + spec.eps)
        if spec.momentum:
            d = spec.momentum * new["momentum_buffer"] + d
            new["momentum_buffer"] = d
        return d, *new.values()

    return _by_leaf(initial, lambda count: leaf)


def scale_by_adagrad(spec: optimizers.Adagrad) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Adagrad`."""

    def leaf(g: jax.Array, s: jax.Array) -> tuple[jax.Array, ...]:
        s = s + g * g
        return g / (jnp.sqrt(s) + spec.eps), s

    return _by_leaf({"sum": float(spec.initial_accumulator)}, lambda count: leaf)


def scale_by_adadelta(spec: optimizers.Adadelta) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Adadelta`."""

    def leaf(g: jax.Array, v: jax.Array, a: jax.Array) -> tuple[jax.Array, ...]:
        v = _average(spec.rho, v, g * g)
        d = jnp.sqrt(a + spec.eps) / jnp.sqrt(v + spec.eps) * g
        return d, v, _average(spec.rho, a, d * d)

    return _by_leaf({"square_avg": 0.0, "acc_delta": 0.0}, lambda count: leaf)


def scale_by_muon(spec: optimizers.Muon, matrices: Mapping[str, tuple[int, ...]]) -> optax.GradientTransformation:
    """See `multibackend.optimizers.Muon`, for its matrices only; without its weight decay.

    `matrices` has the shape [inputs, outputs] of kernels that Flax keeps with more than two axes.
    """

    def leaf(g: jax.Array, b: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        b = spec.momentum * b + g
        d = g + spec.momentum * b if spec.nesterov else b
        matrix = _orthogonalised(d.reshape(shape)) * spec.step_size(*shape)
        return matrix.reshape(g.shape), b

    def init(params: Any) -> SlotState:
        return SlotState(jnp.zeros([], jnp.int32), {"momentum_buffer": jax.tree.map(jnp.zeros_like, params)})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SlotState]:
        old = state.slots["momentum_buffer"]
        directions = {}
        momenta = {}
        for name, gradient in updates.items():
            shape = matrices.get(name, gradient.shape)
            directions[name], momenta[name] = leaf(gradient, old[name], shape)
        count: Any = optax.safe_increment(state.count)
        return directions, SlotState(count, {"momentum_buffer": momenta})

    return optax.GradientTransformation(init, update)


def _orthogonalised(matrix: jax.Array) -> jax.Array:
    """Run the iteration of `multibackend.optimizers.Muon` on a matrix [rows, columns]."""
    if matrix.shape[0] > matrix.shape[1]:  # the products of the side with fewer rows are smaller
        return _orthogonalised(matrix.T).T
    a, b, c = optimizers.Muon.coefficients
    norm = jnp.linalg.norm(matrix)
    x = matrix / jnp.where(norm > 0, norm, 1)  # a gradient of zeros stays one
    for _ in range(optimizers.Muon.iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


NATIVE = "optax."
"""Begins the slots of a transformation of the user's, whose state crosses over to no other backend."""


class NativeState(NamedTuple):
    """The state of a transformation of the user's."""

    inner: Any

    def slots(self, number: int) -> dict[str, dict[str, jax.Array]]:
        """Return its arrays by place in the state, then by parameter ("" for those that belong to none)."""
        slots: dict[str, dict[str, jax.Array]] = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.inner)[0]:
            slot, name = _native_slot(path, number)
            slots.setdefault(slot, {})[name] = leaf
        return slots

    def replaced(self, slots: Mapping[str, Mapping[str, Any]], number: int) -> NativeState:
        """Return the same state with other arrays."""

        def replacement(path: Any, leaf: jax.Array) -> jax.Array:
            slot, name = _native_slot(path, number)
            return jnp.asarray(slots[slot][name], leaf.dtype)

        return NativeState(jax.tree_util.tree_map_with_path(replacement, self.inner))


def _native_slot(path: tuple[Any, ...], number: int) -> tuple[str, str]:
    """Return the slot and the parameter of a leaf; `number` tells the transformations of a chain apart."""
    parameter = ""
    if path and isinstance(path[-1], jax.tree_util.DictKey):  # parameters are a dict; optax's states are tuples
        parameter = str(path[-1].key)
        path = path[:-1]
    return f"{NATIVE}{number}{jax.tree_util.keystr(path)}", parameter


def native(transformation: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Mark the state of a transformation of the user's as such."""
    whole = optax.with_extra_args_support(transformation)

    def init(params: Any) -> NativeState:
        return NativeState(whole.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, NativeState]:
        updates, inner = whole.update(updates, state.inner, params)
        return updates, NativeState(inner)

    return optax.GradientTransformationExtraArgs(init, update)
