"""Losses and metrics as JAX functions: sums of weighted values over a micro-batch.

`weighted_sum(loss, outputs, batch) -> (sum of w * l, sum of w)`. Labels that are ignored are
replaced before they are looked up, because an index out of range gives NaN in JAX and weight 0
would not remove it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp

from multibackend import losses, metrics
from multibackend.core.custom_values import custom_values
from multibackend.core.paths import pick
from multibackend.core.user_code import arguments_of, name_of, user_code
from multibackend.errors import ConfigurationError
from multibackend_jax.model.pure import Batch

__all__ = ["loss_sum", "metric_sum", "weighted_sum"]

Sums = tuple[jax.Array, jax.Array]


def loss_sum(loss: losses.Loss, outputs: Any, batch: Batch) -> Sums:
    """Return (sum of w * l, sum of w) of that output which the loss is of."""
    return weighted_sum(loss, pick(outputs, loss.output), batch)


@singledispatch
def weighted_sum(loss: losses.Loss, outputs: Any, batch: Batch) -> Sums:
    """Return (sum of w * l, sum of w) over a micro-batch; `outputs` is what the loss picks of them."""
    raise ConfigurationError(type(loss).__name__, ["the jax backend has no such loss; register it with weighted_sum"])


def _reduce(values: jax.Array, weights: jax.Array | None) -> Sums:
    if weights is None:
        return values.sum(), jnp.asarray(values.size, values.dtype)
    weights = _with_trailing_axes(weights, values.ndim).astype(values.dtype)
    # weights may be computed from the outputs; what a loss is divided by has no gradient
    weights = jax.lax.stop_gradient(jnp.broadcast_to(weights, values.shape))
    # negative weights, of which the host knows nothing, make the window one that is not finite
    weights = jnp.where(weights >= 0, weights, jnp.nan)
    return (values * weights).sum(), weights.sum()


def _with_trailing_axes(array: jax.Array, ndim: int) -> jax.Array:
    """Add axes of length 1 at the end: a weight of an example goes for all its elements."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


def _weights(loss: losses.Loss, batch: Batch) -> jax.Array | None:
    return None if loss.weights is None else batch[loss.weights]


@weighted_sum.register
def _(loss: losses.MeanSquaredError, outputs: jax.Array, batch: Batch) -> Sums:
    return _reduce((outputs - batch[loss.target]) ** 2, _weights(loss, batch))


@weighted_sum.register
def _(loss: losses.Huber, outputs: jax.Array, batch: Batch) -> Sums:
    residual = outputs - batch[loss.target]
    # at a tie abs() and minimum() drop or halve the gradient; a selection does as torch does
    size = jnp.where(residual < 0, -residual, residual)
    clipped = jnp.where(size < loss.delta, size, loss.delta)
    return _reduce(clipped * (size - clipped / 2), _weights(loss, batch))


@weighted_sum.register
def _(loss: losses.BinaryCrossEntropy, outputs: jax.Array, batch: Batch) -> Sums:
    return _reduce(jax.nn.softplus(outputs) - batch[loss.target] * outputs, _weights(loss, batch))


@weighted_sum.register
def _(loss: losses.CrossEntropy, outputs: jax.Array, batch: Batch) -> Sums:
    labels = batch[loss.target].astype(jnp.int32)  # in uint8 the label 156 and -100 have the same bits
    used = labels != loss.ignore_index
    index = jnp.where(used, labels, 0)
    # -log softmax at the label, without writing the whole softmax to memory; shifted so that exp()
    # cannot overflow
    shifted = outputs - jax.lax.stop_gradient(outputs.max(axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(shifted).sum(axis=-1))
    values = log_sum - jnp.take_along_axis(shifted, index[..., None], axis=-1)[..., 0]
    if loss.label_smoothing:
        uniform = log_sum - shifted.mean(axis=-1)
        values = (1 - loss.label_smoothing) * values + loss.label_smoothing * uniform
    weights = used.astype(values.dtype)
    if loss.class_weights is not None:
        weights = weights * jnp.asarray(loss.class_weights, values.dtype)[index]
    if loss.weights is not None:
        weights = weights * _with_trailing_axes(batch[loss.weights].astype(values.dtype), weights.ndim)
    return _reduce(jnp.where(used, values, 0), weights)  # 0, because weight 0 leaves a NaN what it is


@weighted_sum.register
def _(loss: losses.Custom, outputs: Any, batch: Batch) -> Sums:
    role = f"the loss{name_of(loss.function)}"
    return _reduce(*loss.values_of(role, _call(role, loss.function, outputs, batch), batch, jax.Array))


def metric_sum(metric: metrics.Metric, outputs: Any, batch: Batch) -> Sums:
    """Return (sum of w * value, sum of w) of a metric over a batch."""
    outputs = pick(outputs, metric.output)
    metric.check_outputs(outputs, batch)
    if metric.shape:
        return metric.sums(jnp, outputs, batch)
    if isinstance(metric, metrics.Custom):
        result = _call(metric.title, metric.function, outputs, batch)
    else:
        result = metric.values(jnp, outputs, batch)
    size = len(next(iter(batch.values())))
    values, weights = custom_values(metric.title, result, jax.Array, batch_size=size, counts=True)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    return _reduce(values, weights)


def _call(
    role: str, function: Callable[..., Any] | Mapping[str, Callable[..., Any]], outputs: Any, batch: Batch
) -> Any:
    if not isinstance(function, Mapping):
        with user_code(role, hint=partial(arguments_of, "(xp, outputs, batch)", outputs, batch)):
            return function(jnp, outputs, batch)
    if "jax" not in function:
        problem = f"{role} has no function for the backend 'jax', only for {sorted(function)}; pass one more"
        raise ConfigurationError("Custom", [problem])
    with user_code(role, hint=partial(arguments_of, "(outputs, batch)", outputs, batch)):
        return function["jax"](outputs, batch)
