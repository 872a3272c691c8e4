"""LayerNorm, RMSNorm, GroupNorm and BatchNorm: epsilon and its place, kind of variance, statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formulas import Difference, Formula, difference_in, distance, noise_of
from multibackend.parity.causes.recorded_layers import RecordedLayer, setting

__all__ = ["fast_variance", "norm_formulas", "settings_epsilons"]

_MACHINE_EPSILON = float(np.finfo(np.float64).eps)
# Usual ones: torch's, Flax's, BERT's, Keras', ..., the machine epsilons that torch's RMSNorm takes.
_EPSILONS = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 1e-7, 1e-4, 1e-2, _MACHINE_EPSILON, 1.1920928955078125e-07, 0.0)


@dataclass(frozen=True)
class _Affine:
    """The axes over which a norm takes its statistics, with weight and bias shaped to broadcast against its input."""

    axes: tuple[int, ...]
    weight: Array
    bias: Array


@dataclass(frozen=True)
class _Form:
    """A kind of norm: where its statistics come from, whether the mean is subtracted, and the kind of variance."""

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
            # x - mean cancels: the digits that x has lost before weigh as much as x exceeds its own spread
            slack = 64 * _MACHINE_EPSILON * np.abs(x).max() / np.sqrt(moments[1].min() + epsilon + 1e-300)
            compute = partial(_normalised, x, *moments, epsilon, place, affine)
            formulas.append(Formula("normalisation", traits, compute, float(slack)))
    return formulas


def _normalised(x: Array, mean: Array, variance: Array, epsilon: float, place: str, affine: _Affine) -> Array:
    root = np.sqrt(variance + epsilon) if place == "in the root" else np.sqrt(variance) + epsilon
    return affine.weight * (x - mean) / root + affine.bias


def fast_variance(sides: tuple[RecordedLayer, RecordedLayer], before: float) -> Difference | None:
    """One side's variance is off by no more than E[x²] - E[x]² loses to cancellation, and the other's is not.

    The lost digits depend on the order of the sum, so that side cannot be recomputed to rounding; its variance, solved
    for from its output, is held against the bound 32 * machine epsilon * E[x²].
    """
    # the side that follows the plain formula tells the epsilon of both
    exact = [_exact_epsilon(side) for side in sides]
    for index in (0, 1):
        x = sides[index].input
        output = sides[index].output
        partner = sides[1 - index]
        epsilon = exact[1 - index]
        if epsilon is None or exact[index] is not None or x is None or output is None or x.shape != output.shape:
            continue
        affine = next(_affines(sides[index], x), None)
        if affine is None or partner.output is None:
            continue
        mean = x.mean(affine.axes, keepdims=True)
        variance = x.var(affine.axes, keepdims=True)
        root = _root(output, x - mean, affine)
        lost = np.abs(root**2 - epsilon - variance)
        bound = 32 * _MACHINE_EPSILON * (x**2).mean(affine.axes, keepdims=True) + 1e-9 * variance
        undone = _normalised(x, mean, variance, epsilon, "in the root", affine)
        after = distance(partner.output, undone)
        if (lost <= bound).all() and after <= 0.1 * before:
            kinds = ["E[(x - E[x])²]", "E[x²] - E[x]²"]
            return difference_in("normalisation", "variance", kinds if index == 1 else kinds[::-1], before, after)
    return None


def _exact_epsilon(side: RecordedLayer) -> float | None:
    """The epsilon with which a side follows the plain formula to rounding; None where it does not."""
    target = side.output
    for formula in norm_formulas(side):
        plain = formula.traits["variance"] == "biased" and formula.traits["epsilon's place"] == "in the root"
        if plain and target is not None and distance(target, formula.value()) <= max(noise_of(target), formula.slack):
            return float(formula.traits["epsilon"])
    return None


def settings_epsilons(side: RecordedLayer) -> list[float]:
    """The epsilon that a layer's settings name, if they do."""
    named = setting(side.call, "eps", "variance_epsilon", "layer_norm_eps", "norm_eps")
    return [float(named[1])] if named is not None and isinstance(named[1], int | float) else []


def _affines(side: RecordedLayer, x: Array) -> Iterator[_Affine]:
    """The axes that the layer may normalise, by its kind and by the shape of its weight."""
    weight = side.own("weight")
    bias = side.own("bias")
    weight = np.ones(()) if weight is None else weight
    bias = np.zeros(()) if bias is None else bias
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
        yield _Affine(tuple(index for index in range(x.ndim) if index != axis), *shaped)


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
    count = int(np.prod([x.shape[axis] for axis in axes]))
    if form.variance == "unbiased" and count < 2:
        return None
    mean = x.mean(axes, keepdims=True) if form.centred else np.zeros(())
    square = ((x - mean) ** 2).mean(axes, keepdims=True)
    return mean, square * (count / (count - 1) if form.variance == "unbiased" else 1.0)


def _root(y: Array, centred: Array, affine: _Affine) -> Array:
    """The divisor that a norm used, by least squares over the normalised axes."""
    shifted = np.asarray(y, np.float64) - affine.bias
    product = affine.weight * centred
    power = (product * shifted).sum(affine.axes, keepdims=True)
    return (product**2).sum(affine.axes, keepdims=True) / np.where(power == 0, np.nan, power)


def _implied_epsilon(x: Array, y: Array, moments: tuple[Array, Array], affine: _Affine) -> list[float]:
    """The epsilon that the output implies, where every row implies the same one and it is no rounding."""
    mean, variance = moments
    with np.errstate(all="ignore"):
        epsilons = (_root(y, x - mean, affine) ** 2 - variance).ravel()
    epsilons = epsilons[np.isfinite(epsilons)]
    middle = float(np.median(epsilons)) if epsilons.size else 0.0
    # rows whose variance is large hold epsilon in its last digits only
    if middle <= 0 or np.abs(epsilons - middle).max() > 1e-3 * middle + 1e-9 * float(np.abs(variance).max()):
        return []
    return [float(f"{middle:.3g}")]
