"""LayerNorm, RMSNorm, GroupNorm and BatchNorm: epsilon and its place, kind of variance, statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.laws import Difference, Law, distance, noise_of
from multibackend.parity.causes.sides import Side, setting

__all__ = ["EPSILONS", "fast_variance", "norm_laws", "told_epsilons"]


EPSILONS = (
    1e-5,
    1e-6,
    1e-12,
    1e-3,
    1e-8,
    1e-7,
    1e-4,
    1e-2,
    float(np.finfo(np.float64).eps),
    1.1920928955078125e-07,
    0.0,
)
"""Usual ones: torch's, Flax's, BERT's, Keras', ..., the machine epsilons that torch's RMSNorm takes."""


def norm_laws(side: Side, epsilons: Sequence[float] = ()) -> list[Law]:
    """y = w * (x - mean) / sqrt(variance + epsilon) + b, in the forms that are in use.

    Args:
        side: the layer; the normalised axes follow from its kind and from the shape of its weight.
        epsilons: to try before the usual ones, for example those in both sides' settings.
    """
    x, target = side.input, side.output
    if x is None or target is None or x.shape != target.shape:
        return []
    found: list[Law] = []
    for axes, weight, bias in _shapes(side, x):
        tried = dict.fromkeys([*told_epsilons(side), *epsilons, *EPSILONS])
        for statistics, centred, variance in _forms(side):
            moments = _moments(side, x, axes, statistics, centred, variance)
            if moments is None:
                continue
            fitted = _fitted_epsilon(x, target, moments, axes, weight, bias)
            values = dict.fromkeys([*tried, *fitted])
            for epsilon, place in itertools.product(values, ("in the root", "outside the root")):
                traits = {
                    "epsilon": epsilon,
                    "variance": variance,
                    "mean": "subtracted" if centred else "left in",
                    "statistics": statistics,
                    "epsilon's place": place,
                }
                slack = 64 * np.finfo(np.float64).eps * np.abs(x).max() / np.sqrt(moments[1].min() + epsilon + 1e-300)
                compute = _Normalised(x, *moments, epsilon, place, weight, bias)
                found.append(Law("normalisation", traits, compute, float(slack), {"epsilon": epsilon}))
    return found


class _Normalised:
    """The formula, kept as data so that a thousand of them cost nothing until they are tried."""

    def __init__(self, x: Array, mean: Array, variance: Array, epsilon: float, place: str, w: Array, b: Array) -> None:
        self._arguments = (x, mean, variance, epsilon, place, w, b)

    def __call__(self) -> Array:
        x, mean, variance, epsilon, place, w, b = self._arguments
        root = np.sqrt(variance + epsilon) if place == "in the root" else np.sqrt(variance) + epsilon
        return w * (x - mean) / root + b


def fast_variance(sides: tuple[Side, Side], before: float) -> Difference | None:
    """One side's variance is off by no more than E[x²] - E[x]² loses to cancellation, and the other's is not.

    The lost digits depend on the order of the sum, so that side cannot be recomputed to rounding; its variance, solved
    for from its output, is held against the bound 32 * machine epsilon * E[x²].
    """
    exact = [_exact_epsilon(side) for side in sides]
    for index, (side, partner) in enumerate((sides, sides[::-1])):
        epsilon = exact[1 - index]
        if epsilon is None or exact[index] is not None or side.input is None or side.output is None:
            continue
        x, partner_x = side.input, partner.input
        (axes, weight, bias), *_ = _shapes(side, x)
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        root = _root(side.output, x - mean, weight, bias, axes)
        lost = np.abs(root**2 - epsilon - variance)
        bound = 32 * np.finfo(np.float64).eps * (x**2).mean(axes, keepdims=True) + 1e-9 * variance
        undone = _Normalised(x, mean, variance, epsilon, "in the root", weight, bias)()
        after = distance(partner.output, undone) if partner.output is not None else float("inf")
        if partner_x is not None and (lost <= bound).all() and after <= 0.1 * before:
            laws = [
                Law("normalisation", {"variance": text}, lambda: None) for text in ("E[(x - E[x])²]", "E[x²] - E[x]²")
            ]
            pair = (laws[0], laws[1]) if index == 1 else (laws[1], laws[0])
            return Difference(pair, ("variance",), before, after)
    return None


def _exact_epsilon(side: Side) -> float | None:
    """The epsilon with which a side follows the plain law to rounding; None where it does not."""
    target = side.output
    for law in norm_laws(side):
        plain = law.traits["variance"] == "biased" and law.traits["epsilon's place"] == "in the root"
        if plain and target is not None and distance(target, law.compute()) <= max(noise_of(target), law.slack):
            return float(law.traits["epsilon"])
    return None


def told_epsilons(side: Side) -> list[float]:
    """The epsilon that a layer's settings name, if they do."""
    told = setting(side.call, "eps", "variance_epsilon", "layer_norm_eps", "norm_eps")
    return [float(told[1])] if told is not None and isinstance(told[1], int | float) else []


def _shapes(side: Side, x: Array) -> Iterator[tuple[tuple[int, ...], Array, Array]]:
    """The normalised axes, with weight and bias shaped to broadcast against x."""
    weight, bias = side.own("weight"), side.own("bias")
    weight = np.ones(()) if weight is None else weight
    bias = np.zeros(()) if bias is None else bias
    if "batch" in side.call.kind.lower():
        size = weight.size if weight.ndim else None
        for axis in dict.fromkeys([1, x.ndim - 1]):
            if axis < x.ndim and size in (None, x.shape[axis]):
                wide = [1] * x.ndim
                wide[axis] = x.shape[axis]
                shaped = [p.reshape(wide) if p.ndim else p for p in (weight, bias)]
                yield tuple(a for a in range(x.ndim) if a != axis), shaped[0], shaped[1]
        return
    count = max(weight.ndim, 1)
    if weight.ndim and x.shape[-count:] != weight.shape:
        return
    yield tuple(range(x.ndim - count, x.ndim)), weight, bias


def _forms(side: Side) -> list[tuple[str, bool, str]]:
    """(statistics, whether the mean is subtracted, variance), the likely ones first."""
    if "batch" in side.call.kind.lower():
        return [("of the batch", True, "biased"), ("of the batch", True, "unbiased"), ("running", True, "biased")]
    likely = "rms" not in side.call.kind.lower()
    return [("of the row", c, v) for c in (likely, not likely) for v in ("biased", "unbiased")]


def _moments(
    side: Side, x: Array, axes: tuple[int, ...], statistics: str, centred: bool, variance: str
) -> tuple[Array, Array] | None:
    if statistics == "running":
        mean, spread = side.own("running_mean"), side.own("running_var")
        if mean is None or spread is None:
            return None
        wide = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        return mean.reshape(wide), spread.reshape(wide)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    if variance == "unbiased" and count < 2:
        return None
    mean = x.mean(axes, keepdims=True) if centred else np.zeros(())
    square = ((x - mean) ** 2).mean(axes, keepdims=True)
    return mean, square * (count / (count - 1) if variance == "unbiased" else 1.0)


def _root(y: Array, centred: Array, weight: Array, bias: Array, axes: tuple[int, ...]) -> Array:
    """The divisor that a norm used, by least squares over the normalised axes."""
    shown = np.asarray(y, np.float64) - bias
    product = weight * centred
    power = (product * shown).sum(axes, keepdims=True)
    return (product**2).sum(axes, keepdims=True) / np.where(power == 0, np.nan, power)


def _fitted_epsilon(
    x: Array, y: Array, moments: tuple[Array, Array], axes: tuple[int, ...], weight: Array, bias: Array
) -> list[float]:
    """The epsilon that the output implies, where every row implies the same one and it is no rounding."""
    mean, variance = moments
    with np.errstate(all="ignore"):
        implied = (_root(y, x - mean, weight, bias, axes) ** 2 - variance).ravel()
    implied = implied[np.isfinite(implied)]
    middle = float(np.median(implied)) if implied.size else 0.0
    if middle <= 0 or np.abs(implied - middle).max() > 1e-3 * middle + 1e-9 * float(np.abs(variance).max()):
        return []
    return [float(f"{middle:.3g}")]
