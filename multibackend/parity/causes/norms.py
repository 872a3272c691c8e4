"""LayerNorm, RMSNorm, GroupNorm and BatchNorm: epsilon and its place, variance, statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formulas import Difference, Formula, difference_in, distance, noise_of
from multibackend.parity.causes.recorded_layers import RecordedLayer, Sides, setting

__all__ = ["fast_variance", "norm_formulas", "settings_epsilons"]

_MACHINE_EPSILON = float(np.finfo(np.float64).eps)
# Usual ones: torch's, Flax's, BERT's, Keras', ..., the machine epsilons that torch's RMSNorm takes.
_EPSILONS = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 1e-7, 1e-4, 1e-2, _MACHINE_EPSILON, 1.1920928955078125e-07, 0.0)


@dataclass(frozen=True)
class _Affine:
    """The axes over which a norm takes its statistics; weight and bias, shaped to broadcast."""

    axes: tuple[int, ...]
    weight: Array
    bias: Array


@dataclass(frozen=True)
class _Form:
    """A kind of norm: where statistics come from, whether the mean goes, which variance."""

    statistics: str
    centred: bool
    variance: str


def norm_formulas(side: RecordedLayer, epsilons: Sequence[float] = ()) -> list[Formula]:
    """y = w * (x - mean) / sqrt(variance + epsilon) + b, in the forms that are in use.

    Args:
        side: the layer; the normalised axes follow from its kind and from the shape of its weight.
        epsilons: to try before the usual ones, for example those in both sides' settings.
    """
    x = side.input
    target = side.output
    if x is None or target is None or x.shape != target.shape or x.ndim == 0 or x.size == 0:
        return []
    formulas: list[Formula] = []
    for affine, form in itertools.product(list(_affines(side, x)), _forms(side)):
        moments = _moments(side, x, affine.axes, form)
        if moments is None:
            continue
        implied = _implied_epsilon(x, target, moments, affine)
        tried = dict.fromkeys([*settings_epsilons(side), *epsilons, *_EPSILONS, *implied])
        for epsilon, place in itertools.product(tried, ("in the root", "outside the root")):
            traits = {
                "epsilon": epsilon,
                "variance": form.variance,
                "mean": "subtracted" if form.centred else "left in",
                "statistics": form.statistics,
                "epsilon's place": place,
            }
            # x - mean cancels: the digits that x has lost weigh as much as x exceeds its spread
            spread = np.sqrt(moments[1].min() + epsilon + 1e-300)
            slack = 64 * _MACHINE_EPSILON * np.abs(x).max() / spread
            compute = partial(_normalised, x, *moments, epsilon, place, affine)
            formulas.append(Formula("normalisation", traits, compute, float(slack)))
    return formulas


def _normalised(x: Array, mean: Array, variance: Array, epsilon: float, place: str, affine: _Affine) -> Array:
    root = np.sqrt(variance) + epsilon
    if place == "in the root":
        root = np.sqrt(variance + epsilon)
    return affine.weight * (x - mean) / root + affine.bias


def fast_variance(sides: Sides, before: float) -> Difference | None:
    """One side's variance is off by no more than E[x²] - E[x]² loses to cancellation.

    The lost digits depend on the order of the sum, so that side cannot be recomputed to rounding; its
    variance, solved for from its output, is held against the bound 32 * machine epsilon * E[x²].
    """
    # the side that follows the plain formula tells the epsilon of both
    epsilons = (_exact_epsilon(sides[0]), _exact_epsilon(sides[1]))
    kinds = ("E[x²] - E[x]²", "E[(x - E[x])²]")  # as if the reference took the fast one
    if epsilons[0] is None and epsilons[1] is not None:
        after = _left_by_plain_formula(sides[0], sides[1].output, epsilons[1])
    elif epsilons[0] is not None and epsilons[1] is None:
        after = _left_by_plain_formula(sides[1], sides[0].output, epsilons[0])
        kinds = kinds[::-1]
    else:
        return None
    if after is None or after > 0.1 * before:
        return None
    return difference_in("normalisation", "variance", kinds, before, after)


def _left_by_plain_formula(side: RecordedLayer, partner: Array | None, epsilon: float) -> float | None:
    """What is left between a partner's output and a side's, recomputed by the plain formula.

    None where the side's own variance is off by more than cancellation explains.
    """
    x = side.input
    y = side.output
    if x is None or y is None or partner is None or x.shape != y.shape:
        return None
    affine = next(_affines(side, x), None)
    if affine is None:
        return None
    mean = x.mean(affine.axes, keepdims=True)
    variance = x.var(affine.axes, keepdims=True)
    lost = np.abs(_root(y, x - mean, affine) ** 2 - epsilon - variance)
    bound = 32 * _MACHINE_EPSILON * (x**2).mean(affine.axes, keepdims=True) + 1e-9 * variance
    if not (lost <= bound).all():
        return None
    return distance(partner, _normalised(x, mean, variance, epsilon, "in the root", affine))


def _exact_epsilon(side: RecordedLayer) -> float | None:
    """The epsilon with which a side follows the plain formula to rounding, if it does."""
    target = side.output
    for formula in norm_formulas(side):
        traits = formula.traits
        plain = traits["variance"] == "biased" and traits["epsilon's place"] == "in the root"
        if not plain or target is None:
            continue
        if distance(target, formula.value()) <= max(noise_of(target), formula.slack):
            return float(traits["epsilon"])
    return None


def settings_epsilons(side: RecordedLayer) -> list[float]:
    """The epsilon that a layer's settings name, if they do."""
    named = setting(side.call, "eps", "variance_epsilon", "layer_norm_eps", "norm_eps")
    if named is None or not isinstance(named[1], int | float):
        return []
    return [float(named[1])]


def _affines(side: RecordedLayer, x: Array) -> Iterator[_Affine]:
    """The axes that the layer may normalise, by its kind and by the shape of its weight."""
    weight = side.own("weight")
    if weight is None:
        weight = np.ones(())
    bias = side.own("bias")
    if bias is None:
        bias = np.zeros(())
    # without a weight the last axis alone is normalised, as both frameworks do by default
    if "batch" not in side.call.kind.lower():
        count = max(weight.ndim, 1)
        if all(x.shape[x.ndim - array.ndim :] == array.shape for array in (weight, bias)):
            yield _Affine(tuple(range(x.ndim - count, x.ndim)), weight, bias)
        return
    for axis in dict.fromkeys([1, x.ndim - 1]):
        if axis >= x.ndim or any(array.ndim and array.size != x.shape[axis] for array in (weight, bias)):
            continue
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        shaped = [array.reshape(shape) if array.ndim else array for array in (weight, bias)]
        yield _Affine((*range(axis), *range(axis + 1, x.ndim)), *shaped)


def _forms(side: RecordedLayer) -> list[_Form]:
    """The forms that a layer of this class may have, the likely ones first."""
    if "batch" in side.call.kind.lower():
        return [
            _Form("of the batch", True, "biased"),
            _Form("of the batch", True, "unbiased"),
            _Form("running", True, "biased"),
        ]
    centred = "rms" not in side.call.kind.lower()
    choices = itertools.product((centred, not centred), ("biased", "unbiased"))
    return [_Form("of the row", *choice) for choice in choices]


def _moments(side: RecordedLayer, x: Array, axes: tuple[int, ...], form: _Form) -> tuple[Array, Array] | None:
    """Mean and variance as a form takes them; None where it has none."""
    if form.statistics == "running":
        mean = side.own("running_mean")
        variance = side.own("running_var")
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        if mean is None or variance is None or mean.size != np.prod(shape) or variance.size != mean.size:
            return None
        return mean.reshape(shape), variance.reshape(shape)
    mean = np.zeros(())
    if form.centred:
        mean = x.mean(axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    if form.variance == "unbiased":
        count = x.size // variance.size
        if count < 2:
            return None
        variance = variance * (count / (count - 1))
    return mean, variance


def _root(y: Array, centred: Array, affine: _Affine) -> Array:
    """The divisor that a norm used, by least squares over the normalised axes."""
    shifted = np.asarray(y, np.float64) - affine.bias
    product = affine.weight * centred
    power = (product * shifted).sum(affine.axes, keepdims=True)
    return (product**2).sum(affine.axes, keepdims=True) / np.where(power == 0, np.nan, power)


def _implied_epsilon(x: Array, y: Array, moments: tuple[Array, Array], affine: _Affine) -> list[float]:
    """The epsilon that the output implies, if each row implies the same and it is no rounding."""
    mean, variance = moments
    with np.errstate(all="ignore"):
        epsilons = (_root(y, x - mean, affine) ** 2 - variance).ravel()
    epsilons = epsilons[np.isfinite(epsilons)]
    if not epsilons.size:
        return []
    middle = float(np.median(epsilons))
    # rows whose variance is large hold epsilon in its last digits only
    room = 1e-3 * middle + 1e-9 * float(np.abs(variance).max())
    if middle <= 0 or np.abs(epsilons - middle).max() > room:
        return []
    return [float(f"{middle:.3g}")]
