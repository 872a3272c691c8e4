"""Every optimizer as its paper (or, where that leaves a choice, its docstring) has it, in plain float64 numpy.

Each function is a generator of nothing: it takes p, the gradients of all updates and the rate of an update index, and
returns p and the optimizer's slots after the last one. No code is shared with the library, nor between the functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rate = Callable[[int], float]
Result = tuple[np.ndarray, dict[str, np.ndarray]]


def sgd(p, gradients, rate: Rate, momentum=0.0, nesterov=False, weight_decay=0.0) -> Result:
    b = np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        b = momentum * b + d
        p = p - rate(index) * (d + momentum * b if nesterov else b)
    return p, {"momentum_buffer": b} if momentum else {}


def adam(
    p, gradients, rate: Rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False
) -> Result:
    m, v, u = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for index, g in enumerate(gradients):
        t = index + 1
        d = g if decoupled else g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        u = np.maximum(u, v) if amsgrad else v
        step = (m / (1 - beta1**t)) / (np.sqrt(u / (1 - beta2**t)) + eps)
        p = p - rate(index) * (step + (weight_decay * p if decoupled else 0.0))
    return p, {"exp_avg": m, "exp_avg_sq": v, **({"max_exp_avg_sq": u} if amsgrad else {})}


def adamw(p, gradients, rate: Rate, weight_decay=0.01, **options) -> Result:
    return adam(p, gradients, rate, weight_decay=weight_decay, decoupled=True, **options)


def adamax(p, gradients, rate: Rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0) -> Result:
    m, u = np.zeros_like(p), np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        u = np.maximum(beta2 * u, np.abs(d) + eps)
        p = p - rate(index) / (1 - beta1 ** (index + 1)) * m / u
    return p, {"exp_avg": m, "exp_inf": u}


def nadam(p, gradients, rate: Rate, beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=0.004, weight_decay=0.0) -> Result:
    m, v = np.zeros_like(p), np.zeros_like(p)
    mu = [beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in range(1, len(gradients) + 2)]
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        now, following = np.prod(mu[: index + 1]), np.prod(mu[: index + 2])
        n = (1 - mu[index]) * d / (1 - now) + mu[index + 1] * m / (1 - following)
        p = p - rate(index) * n / (np.sqrt(v / (1 - beta2 ** (index + 1))) + eps)
    return p, {"exp_avg": m, "exp_avg_sq": v}


def radam(p, gradients, rate: Rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0) -> Result:
    m, v = np.zeros_like(p), np.zeros_like(p)
    limit = 2 / (1 - beta2) - 1
    for index, g in enumerate(gradients):
        t = index + 1
        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        rho = limit - 2 * t * beta2**t / (1 - beta2**t)
        factor = 1.0
        if rho > 5:
            r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            factor = r * np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
        p = p - rate(index) * m / (1 - beta1**t) * factor
    return p, {"exp_avg": m, "exp_avg_sq": v}


def rmsprop(p, gradients, rate: Rate, beta2=0.99, eps=1e-8, momentum=0.0, centered=False, weight_decay=0.0) -> Result:
    v, a, b = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        v = beta2 * v + (1 - beta2) * d**2
        a = beta2 * a + (1 - beta2) * d
        variance = np.maximum(v - a**2, 0.0) if centered else v
        b = momentum * b + d / (np.sqrt(variance) + eps)
        p = p - rate(index) * b
    slots = {"square_avg": v, "grad_avg": a if centered else None, "momentum_buffer": b if momentum else None}
    return p, {name: array for name, array in slots.items() if array is not None}


def adagrad(p, gradients, rate: Rate, eps=1e-10, initial_accumulator=0.0, weight_decay=0.0) -> Result:
    s = np.full_like(p, initial_accumulator)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        s = s + d**2
        p = p - rate(index) * d / (np.sqrt(s) + eps)
    return p, {"sum": s}


def adadelta(p, gradients, rate: Rate, rho=0.9, eps=1e-6, weight_decay=0.0) -> Result:
    v, a = np.zeros_like(p), np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = g + weight_decay * p
        v = rho * v + (1 - rho) * d**2
        s = np.sqrt(a + eps) / np.sqrt(v + eps) * d
        a = rho * a + (1 - rho) * s**2
        p = p - rate(index) * s
    return p, {"square_avg": v, "acc_delta": a}


def lion(p, gradients, rate: Rate, beta1=0.9, beta2=0.99, weight_decay=0.0) -> Result:
    m = np.zeros_like(p)
    for index, g in enumerate(gradients):
        d = np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        p = p - rate(index) * (d + weight_decay * p)
    return p, {"exp_avg": m}


def muon(p, gradients, rate: Rate, shape, momentum=0.95, nesterov=True, weight_decay=0.01) -> Result:
    p, b = p.reshape(shape), np.zeros(shape)
    for index, g in enumerate(gradients):
        b = momentum * b + g.reshape(shape)
        x = g.reshape(shape) + momentum * b if nesterov else b
        x = x / np.sqrt((x**2).sum())
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        p = p - rate(index) * (0.2 * np.sqrt(max(shape)) * x + weight_decay * p)
    return p, {"momentum_buffer": b}
