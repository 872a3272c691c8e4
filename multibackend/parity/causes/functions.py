"""Elementwise functions and softmax in numpy float64, as both frameworks define them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from multibackend.core.arrays import Array

__all__ = ["ACTIVATIONS", "SLOPES", "erf", "leaky_relu", "log_softmax", "sigmoid", "softmax", "softplus"]

# numpy has no error function, and scipy is no dependency
_erf = np.frompyfunc(math.erf, 1, 1)

SLOPES = (0.01, 0.2, 0.1, 0.3, 0.05, 0.02, 0.25, 0.001)
"""Usual slopes of a leaky relu; 0.01 is the frameworks' default."""


def erf(x: Array) -> Array:
    """The error function, elementwise."""
    return np.asarray(_erf(x), np.float64)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return np.logaddexp(0.0, x)


def leaky_relu(x: Array, slope: float) -> Array:
    """x where x > 0, else slope * x."""
    return np.where(x > 0, x, slope * x)


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) over its sum along an axis; rows of -inf give NaN, as in both frameworks."""
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log(sum(exp(x))) along an axis."""
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _gelu_erf(x: Array) -> Array:
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _elu(x: Array) -> Array:
    # `where` computes both branches: without the minimum, exp would overflow where x is large
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _selu(x: Array) -> Array:
    # constants of Klambauer et al. (2017), as both frameworks have them
    scale = 1.0507009873554804934193349852946
    alpha = 1.6732632423543772848170429916717
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu (erf)": _gelu_erf,
    "gelu (tanh)": _gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "quick gelu": lambda x: x * sigmoid(1.702 * x),
    "softplus": softplus,
    "elu": _elu,
    "selu": _selu,
    "mish": lambda x: x * np.tanh(softplus(x)),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "squared relu": lambda x: np.maximum(x, 0.0) ** 2,
    "hard sigmoid": lambda x: np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "hard swish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "hard tanh": lambda x: np.clip(x, -1.0, 1.0),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "log sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "softmax": softmax,
    "log softmax": log_softmax,
    **{f"leaky relu {slope}": partial(leaky_relu, slope=slope) for slope in SLOPES},
}
"""By name, the usual ones first; "none" leaves its input as it is."""
