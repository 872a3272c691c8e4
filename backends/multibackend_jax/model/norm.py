"""BatchNorm in Flax: the library's layers, and what `Experiment(batch_statistics=...)` does to every such layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from multibackend.core.validation import Problems
from multibackend.errors import DataError
from multibackend_jax.model.pure import Arrays

__all__ = ["BatchNorm", "LinenBatchNorm", "decays_of", "freeze_linen", "freeze_nnx", "moved", "window_momentum"]


def _check(features: object, momentum: Any, eps: object) -> None:
    problems = Problems("BatchNorm")
    if features is not None:
        problems.integer("features", features, minimum=1)
    if problems.number("momentum", momentum, minimum=0.0) and momentum > 1:
        problems.add(f"momentum must be <= 1, got {momentum!r}")
    problems.number("eps", eps, minimum=0.0)
    problems.raise_if_any()


def _statistics(inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return mean, biased and unbiased variance of each channel of [N, ..., C]."""
    count = math.prod(inputs.shape[:-1])
    if count < 2:
        raise DataError(f"BatchNorm needs two values per channel in training, got the shape {inputs.shape}")
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axes)
    # of the differences, not E[x²] - E[x]²: that loses all digits where the mean is large
    variance = ((inputs - mean) ** 2).mean(axes)
    return mean, variance, variance * (count / (count - 1))


def _normalised(
    inputs: jax.Array, mean: jax.Array, variance: jax.Array, eps: float, weight: jax.Array, bias: jax.Array
) -> jax.Array:
    return (inputs - mean) * (jax.lax.rsqrt(variance + eps) * weight) + bias


class BatchNorm(nnx.Module):
    """Batch normalisation with one definition on every backend, torch's: inputs [N, ..., C].

        y = (x - mean) / sqrt(var + eps) * weight + bias       mean, var (biased) over all axes but the channels'
        running = (1 - momentum) * running + momentum * new    new: the mean, and the unbiased var * n / (n - 1)

    In evaluation the running statistics take the place of mean and var.

    Args:
        features: C.
        momentum: the weight of the new value, in [0, 1]; flax's own layers weigh the
            old value instead.
        eps: added to the variance.

    Raises:
        ConfigurationError: an argument is wrong.
        DataError: in training, a channel has a single value, which has no variance.

    Source: Ioffe and Szegedy 2015, "Batch normalization".
    """

    def __init__(self, features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        _check(features, momentum, eps)
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.running_mean = nnx.BatchStat(jnp.zeros(features))
        self.running_var = nnx.BatchStat(jnp.ones(features))
        self.momentum = float(momentum)
        self.eps = float(eps)
        self.use_running_average = False  # what `train()` and `eval()` set

    def __call__(self, inputs: jax.Array) -> jax.Array:
        running_mean = self.running_mean[...]
        running_var = self.running_var[...]
        if self.use_running_average:
            mean = running_mean
            variance = running_var
        else:
            old_weight = 1 - self.momentum
            mean, variance, unbiased = _statistics(inputs)
            self.running_mean[...] = old_weight * running_mean + self.momentum * mean
            self.running_var[...] = old_weight * running_var + self.momentum * unbiased
        return _normalised(inputs, mean, variance, self.eps, self.weight[...], self.bias[...])


class LinenBatchNorm(linen.Module):
    """The same layer for linen modules; the channels are those of the input. Train with `use_running_average=False`."""

    use_running_average: bool | None = None
    momentum: float = 0.1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _check(None, self.momentum, self.eps)
        super().__post_init__()

    @linen.compact
    def __call__(self, inputs: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        frozen = linen.merge_param("use_running_average", self.use_running_average, use_running_average)
        shape = (inputs.shape[-1],)
        weight = self.param("weight", linen.initializers.ones, shape)
        bias = self.param("bias", linen.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "running_mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "running_var", jnp.ones, shape)
        if frozen:
            mean = running_mean.value
            variance = running_var.value
        else:
            old_weight = 1 - self.momentum
            mean, variance, unbiased = _statistics(inputs)
            if not self.is_initializing():  # the example that shapes a model is no data to learn from
                running_mean.value = old_weight * running_mean.value + self.momentum * mean
                running_var.value = old_weight * running_var.value + self.momentum * unbiased
        return _normalised(inputs, mean, variance, self.eps, weight, bias)


_FLAX_LAYERS = (nnx.BatchNorm, linen.BatchNorm)
_LIBRARY_LAYERS = (BatchNorm, LinenBatchNorm)


def decays_of(layers: Mapping[str, object], state: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return {name of a statistic: the weight of its old value}, by path of the layer."""
    names = set(state)
    decays = {}
    for path, layer in layers.items():
        if isinstance(layer, _FLAX_LAYERS):
            decay = float(layer.momentum)  # flax's momentum is the weight of the old value
        elif isinstance(layer, _LIBRARY_LAYERS):
            decay = 1 - float(layer.momentum)
        else:
            continue
        statistics = [f"{path}.{leaf}".lstrip(".") for leaf in ("running_mean", "running_var")]
        decays[path] = {name: decay for name in statistics if name in names}
    return decays


def moved(
    old: Arrays, new: Arrays, decays: Mapping[str, Mapping[str, float]], momentum: Callable[[float], Any]
) -> Arrays:
    """Return the state as if its statistics had moved with the momentum `momentum(decay)`.

    A layer has set r' = d r + (1 - d) s. With another momentum m it would be r + m / (1 - d)
    (r' - r).
    """
    result = dict(new)
    for statistics in decays.values():
        for name, decay in statistics.items():
            if decay < 1:  # with d = 1 the layer has not moved, and s is not known
                step = new[name] - old[name]
                result[name] = old[name] + (momentum(decay) / (1 - decay)).astype(step.dtype) * step
    return result


def window_momentum(decay: float, steps: jax.Array) -> jax.Array:
    """`multibackend.experiment.batch_norm.window_momentum` of 1 - decay, for a traced number of micro-batches."""
    if decay <= 0:
        return jnp.ones([])
    return -jnp.expm1(math.log(decay) / steps.astype(jnp.result_type(float)))


def freeze_nnx(layers: Iterable[object]) -> None:
    """Let nnx layers normalise by their running statistics."""
    for layer in layers:
        if isinstance(layer, nnx.BatchNorm | BatchNorm):
            layer.use_running_average = True


def freeze_linen(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Let linen layers normalise by their running statistics, as an interceptor."""
    layer = context.module
    if not isinstance(layer, linen.BatchNorm | LinenBatchNorm) or context.method_name != "__call__":
        return next_function(*args, **kwargs)
    mode = layer.use_running_average
    # the mode may stand in the layer or in the call, not in both; the layer is a frozen dataclass
    object.__setattr__(layer, "use_running_average", None)
    try:
        return next_function(*args[:1], **{**kwargs, "use_running_average": True})
    finally:
        object.__setattr__(layer, "use_running_average", mode)
