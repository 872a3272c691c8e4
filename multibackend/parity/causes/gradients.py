"""Gradients that differ although activations and loss agree: stopped, scaled, or summed over tied parameters."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.parity.causes.laws import Difference, Law, distance, noise_of

__all__ = ["gradient_difference"]


def gradient_difference(name: str, first: Arrays, second: Arrays) -> Difference | None:
    """Why the gradients of one parameter differ.

    Args:
        name: of the parameter.
        first, second: all gradients, by the reference's names.
    """
    one, other = np.asarray(first[name], np.float64), np.asarray(second[name], np.float64)
    before = distance(one, other)
    zero = [not array.any() for array in (one, other)]
    if zero[0] != zero[1]:
        return _found("flow", ["stopped" if z else "let through" for z in zero], before, None)
    power = float((other * other).sum())
    factor = float((one * other).sum()) / power if power else 0.0
    if factor and distance(one, factor * other) <= 1e3 * noise_of(one):
        words = ["1", f"{1 / factor:.6g}"]
        return _found("factor", words, before, distance(one, factor * other))
    gap = one - other
    for partner, sign in itertools.product(second, (1, -1)):
        for use in (second[partner], second[partner].T):
            if partner != name and use.shape == gap.shape and distance(sign * gap, use) <= 1e3 * noise_of(one):
                uses = ["both uses", "one use"] if sign == 1 else ["one use", "both uses"]
                return _found(f"tied with {partner}", uses, before, distance(one, other + sign * use))
    return None


def _found(trait: str, values: list[str], before: float, after: float | None) -> Difference:
    laws = [Law("gradient", {trait: value}, lambda: None) for value in values]
    return Difference((laws[0], laws[1]), (trait,), before, after)
