"""Losses and metrics as torch functions: sums of weighted values over a micro-batch.

`weighted_sum(loss, outputs, batch) -> (sum of w * l, sum of w)`; the second is None where the host
knows it from the batch alone (`Loss.weight_sums`), so that nothing is computed twice. torch's fused
kernels are used throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any

import array_api_compat.torch as xp
import torch
import torch.nn.functional as F

from multibackend import losses, metrics
from multibackend.core.custom_values import custom_values
from multibackend.core.paths import pick
from multibackend.core.user_code import arguments_of, name_of
from multibackend.errors import ConfigurationError
from multibackend_torch.model.calls import Batch, running

__all__ = ["loss_sum", "metric_sum", "weighted_sum"]

WeightedSum = tuple[torch.Tensor, torch.Tensor]
Sums = tuple[torch.Tensor, torch.Tensor | None]


def loss_sum(loss: losses.Loss, outputs: Any, batch: Batch) -> Sums:
    """Compute (sum of w * l, sum of w or None) of that output which the loss is of."""
    return weighted_sum(loss, pick(outputs, loss.output), batch)


@singledispatch
def weighted_sum(loss: losses.Loss, outputs: Any, batch: Batch) -> Sums:
    """Compute (sum of w * l, sum of w or None) over a micro-batch; `outputs` is what the loss picks of them."""
    problem = "the torch backend has no such loss; register it with weighted_sum"
    raise ConfigurationError(type(loss).__name__, [problem])


def _expanded(weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give weights [batch, ...] axes of length 1 on the right, to broadcast against values."""
    return weights.reshape(weights.shape + (1,) * (like.ndim - weights.ndim)).to(like.dtype)


def _elementwise(kernel: Callable[..., torch.Tensor], loss: Any, outputs: torch.Tensor, batch: Batch) -> Sums:
    """Sum up a torch loss kernel over scalars, weighted where the loss says so."""
    target = batch[loss.target].to(outputs.dtype)
    if loss.weights is None:  # one operation forward and one backward
        return kernel(outputs, target, reduction="sum"), None
    values = kernel(outputs, target, reduction="none")
    return (values * _expanded(batch[loss.weights], values)).sum(), None


@weighted_sum.register
def _(loss: losses.MeanSquaredError, outputs: torch.Tensor, batch: Batch) -> Sums:
    return _elementwise(F.mse_loss, loss, outputs, batch)


@weighted_sum.register
def _(loss: losses.Huber, outputs: torch.Tensor, batch: Batch) -> Sums:
    return _elementwise(partial(F.huber_loss, delta=loss.delta), loss, outputs, batch)


@weighted_sum.register
def _(loss: losses.BinaryCrossEntropy, outputs: torch.Tensor, batch: Batch) -> Sums:
    return _elementwise(F.binary_cross_entropy_with_logits, loss, outputs, batch)


@weighted_sum.register
def _(loss: losses.CrossEntropy, outputs: torch.Tensor, batch: Batch) -> Sums:
    labels = batch[loss.target].long()
    logits = outputs
    if outputs.ndim != 2:  # torch wants the classes on axis 1; here they are on the last
        labels = labels.reshape(-1)
        logits = outputs.reshape(-1, outputs.shape[-1])
    values = F.cross_entropy(
        logits,
        labels,
        weight=None if loss.class_weights is None else outputs.new_tensor(loss.class_weights),
        ignore_index=int(loss.ignore_index),
        label_smoothing=float(loss.label_smoothing),
        reduction="sum" if loss.weights is None else "none",
    )
    if loss.weights is None:
        return values, None
    values = values.reshape(outputs.shape[:-1])
    return (values * _expanded(batch[loss.weights], values)).sum(), None


@weighted_sum.register
def _(loss: losses.Custom, outputs: Any, batch: Batch) -> Sums:
    role = f"the loss{name_of(loss.function)}"
    values, weights = loss.values_of(role, _call(role, loss.function, outputs, batch), batch, torch.Tensor)
    total, weight = _reduce(values, weights)
    # with `per` the host has counted the weights from the batch alone
    return total, weight if loss.per is None else None


def metric_sum(metric: metrics.Metric, outputs: Any, batch: Batch) -> WeightedSum:
    """Compute (sum of w * value, sum of w) of a metric over a batch."""
    outputs = pick(outputs, metric.output)
    metric.check_outputs(outputs, batch)
    if metric.shape:  # an array, such as a confusion matrix, adds up its own way
        return metric.sums(xp, outputs, batch)
    if isinstance(metric, metrics.Custom):
        result = _call(metric.title, metric.function, outputs, batch)
    else:
        result = metric.values(xp, outputs, batch)
    size = len(next(iter(batch.values())))
    return _reduce(*custom_values(metric.title, result, torch.Tensor, batch_size=size, counts=True))


def _call(
    role: str, function: Callable[..., Any] | Mapping[str, Callable[..., Any]], outputs: Any, batch: Batch
) -> Any:
    """Call a custom function, with the array namespace where it is written for all backends."""
    if not isinstance(function, Mapping):
        with running(role, hint=partial(arguments_of, "(xp, outputs, batch)", outputs, batch)):
            return function(xp, outputs, batch)
    if "torch" not in function:
        problem = f"{role} has no function for the backend 'torch', only for {sorted(function)}; pass one more"
        raise ConfigurationError("Custom", [problem])
    with running(role, hint=partial(arguments_of, "(outputs, batch)", outputs, batch)):
        return function["torch"](outputs, batch)


def _reduce(values: torch.Tensor, weights: torch.Tensor | None) -> WeightedSum:
    """Compute (sum of w * value, sum of w), with weight 1 for each value where none are given."""
    if not values.dtype.is_floating_point:  # a metric may count with booleans or integers
        values = values.to(torch.get_default_dtype())
    if weights is None:
        return values.sum(), values.new_tensor(float(values.numel()))
    weights = _expanded(weights, values).expand(values.shape).detach()
    # negative weights, of which the host knows nothing, make the window one that is not finite
    weights = torch.where(weights >= 0, weights, math.nan)
    return (values * weights).sum(), weights.sum()
