"""What the contract says, written down a second time in plain float64 numpy for linear models.

Nothing here uses the library's windows, losses or optimizers: each window is one large batch, its
gradient a formula, the update a few lines. A backend that matches it has the contract's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from multibackend.core.arrays import Arrays, rows, without

__all__ = ["ReferenceRun", "cut", "linear_gradient", "softmax_gradient", "train"]

Window = Sequence[np.ndarray]  # the example indices of each micro-batch
LossAndGradient = tuple[float, float, dict[str, np.ndarray]]  # the loss as (sum, weight)
Gradient = Callable[[Arrays, Arrays], LossAndGradient]


@dataclass
class ReferenceRun:
    """Parameters after the run, and per update its loss, gradient norm and weight."""

    parameters: dict[str, np.ndarray]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def cut(order: Iterable[int], size: int, steps: Sequence[int], *, drop_last: bool = False) -> list[list[np.ndarray]]:
    """Cut an epoch into windows; window i takes the next `steps[i]` micro-batches of `size`.

    >>> [[m.tolist() for m in window] for window in cut(range(5), 2, [2, 2])]
    [[[0, 1], [2, 3]], [[4]]]
    """
    windows = []
    remaining = list(order)
    for count in steps:
        examples = remaining[: count * size]
        remaining = remaining[count * size :]
        if not examples or (drop_last and len(examples) < count * size):
            break
        starts = range(0, len(examples), size)
        windows.append([np.array(examples[start : start + size]) for start in starts])
    return windows


def linear_gradient(parameters: Arrays, batch: Arrays) -> LossAndGradient:
    """Return (sum of w * l, sum of w, gradient of the former): l = squared error of y = x W^T + b."""
    x = batch["x"]
    y = batch["y"]
    weights = np.ones(y.shape)
    if "w" in batch:
        weights = np.broadcast_to(batch["w"][:, None], y.shape)
    residual = x @ parameters["weight"].T + parameters["bias"] - y
    slope = 2 * weights * residual
    gradient = {"weight": slope.T @ x, "bias": slope.sum(axis=0)}
    return float((weights * residual**2).sum()), float(weights.sum()), gradient


def softmax_gradient(parameters: Arrays, batch: Arrays) -> LossAndGradient:
    """Return the same for cross entropy, logits x W^T + b; label -100 weighs nothing."""
    used = batch["label"] != -100
    x = batch["x"][used]
    labels = batch["label"][used]
    logits = x @ parameters["weight"].T + parameters["bias"]
    logits -= logits.max(axis=1, keepdims=True)  # the softmax is the same, and exp cannot overflow
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    chosen = probabilities[rows, labels]
    slope = probabilities
    slope[rows, labels] -= 1
    gradient = {"weight": slope.T @ x, "bias": slope.sum(axis=0)}
    return float(-np.log(chosen).sum()), float(used.sum()), gradient


def train(
    start: Arrays,
    data: Arrays,
    windows: Sequence[Window],
    gradient: Gradient = linear_gradient,
    *,
    rate: float | Callable[[int], float] = 0.1,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    by_micro_batch: bool = False,
    factors: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
    frozen: Sequence[str] = (),
) -> ReferenceRun:
    """SGD over windows, each one large batch; one without weight or not finite does nothing.

    `factors` and `decays` give single parameters another rate or decay; `frozen` ones stay and are
    not in the norm.
    """
    p = {name: np.array(array, np.float64) for name, array in start.items()}
    velocity = {name: np.zeros_like(array) for name, array in p.items()}
    run = ReferenceRun(p)  # holds the same dict, updated in place
    for window in windows:
        loss, weight, gradients = _window(p, data, window, gradient, by_micro_batch=by_micro_batch)
        g = without(gradients, frozen)
        norm = float(np.sqrt(sum((array**2).sum() for array in g.values())))
        if weight == 0 or not np.isfinite(loss + norm):
            continue  # before the rate: a skipped window uses up no place of the schedule
        lr = rate(len(run.losses)) if callable(rate) else rate
        clip = 1.0
        if max_grad_norm is not None and norm > max_grad_norm:
            clip = max_grad_norm / norm
        for name, array in g.items():
            factor = (factors or {}).get(name, 1.0)
            d = array * clip + (decays or {}).get(name, weight_decay) * p[name]
            velocity[name] = momentum * velocity[name] + d
            step = velocity[name]
            if nesterov:
                step = d + momentum * step
            p[name] = p[name] - lr * factor * step
        run.losses.append(loss)
        run.norms.append(norm)
        run.weights.append(weight)
    return run


def _window(p: Arrays, data: Arrays, window: Window, gradient: Gradient, *, by_micro_batch: bool) -> LossAndGradient:
    """Loss, weight and gradient of a window: over all examples at once, or the mean of means."""
    batches = list(window)
    if not by_micro_batch:
        batches = [np.concatenate(batches)]
    loss = 0.0
    weight = 0.0
    gradients = {name: np.zeros_like(array) for name, array in p.items()}
    for examples in batches:
        batch_loss, batch_weight, batch_gradients = gradient(p, rows(data, examples))
        factor = 0.0
        if batch_weight > 0:
            factor = 1 / (batch_weight * len(batches))
        loss += factor * batch_loss
        weight += batch_weight
        for name, array in batch_gradients.items():
            gradients[name] = gradients[name] + factor * array
    return loss, weight, gradients
