"""Gradients that differ although activations and loss agree: stopped, scaled, or summed over tied parameters."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.parity.causes.formulas import Difference, difference_in, distance, noise_of

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
    flows = ["let through" if array.any() else "stopped" for array in (reference, other)]
    if flows[0] != flows[1]:
        return difference_in("gradient", "flow", flows, before, None)
    if reference.shape != other.shape:
        return None
    noise = _ROUNDING * noise_of(reference)
    power = float((other * other).sum())
    factor = float((reference * other).sum()) / power if power else 0.0
    if factor:
        after = distance(reference, factor * other)
        if after <= noise:
            return difference_in("gradient", "factor", ["1", f"{1 / factor:.6g}"], before, after)
    # where one side ties two parameters, the gradient of the other side's second one is missing or added
    missing = reference - other
    for partner, sign in itertools.product(second, (1, -1)):
        for gradient in (second[partner], second[partner].T):
            if partner == name or gradient.shape != missing.shape or distance(sign * missing, gradient) > noise:
                continue
            uses = ["both uses", "one use"] if sign == 1 else ["one use", "both uses"]
            after = distance(reference, other + sign * gradient)
            return difference_in("gradient", f"tied with {partner}", uses, before, after)
    return None
