"""Gradients that differ although activations and loss agree: stopped, scaled, or of tied parameters."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.parity.causes.formulas import Difference, difference_in, distance, fitted_factor, noise_of

__all__ = ["gradient_difference"]

# A gradient sums over all examples and positions, so it keeps fewer digits than one layer's output.
_ROUNDING = 1e3


def gradient_difference(name: str, first: Arrays, second: Arrays) -> Difference | None:
    """Why the gradients of one parameter differ.

    Args:
        name: of the parameter.
        first, second: all gradients, by the reference's names.
    """
    if name not in first or name not in second:
        return None
    reference = np.asarray(first[name], np.float64)
    other = np.asarray(second[name], np.float64)
    before = distance(reference, other)
    flows = {True: "let through", False: "stopped"}
    flow = (flows[bool(reference.any())], flows[bool(other.any())])
    if flow[0] != flow[1]:
        return difference_in("gradient", "flow", flow, before, None)
    if reference.shape != other.shape:
        return None
    noise = _ROUNDING * noise_of(reference)
    factor = fitted_factor(other, reference)
    if factor:
        after = distance(reference, factor * other)
        if after <= noise:
            return difference_in("gradient", "factor", ["1", f"{1 / factor:.6g}"], before, after)
    # where one side ties two parameters, the gradient of the other's second one is missing or added
    missing = reference - other
    uses_by_sign = {1: ("both uses", "one use"), -1: ("one use", "both uses")}
    for partner, (sign, uses) in itertools.product(second, uses_by_sign.items()):
        if partner == name:
            continue
        for gradient in (second[partner], second[partner].T):
            if gradient.shape == missing.shape and distance(sign * missing, gradient) <= noise:
                after = distance(reference, other + sign * gradient)
                return difference_in("gradient", f"tied with {partner}", uses, before, after)
    return None
