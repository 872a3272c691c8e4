"""How close is matching: the one place where tolerances are written, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["TOLERANCES", "Tolerance", "relative_differences", "tolerance_for"]


@dataclass(frozen=True)
class Tolerance:
    """Bounds for two runs of the same experiment.

    Attributes:
        loss: largest relative difference of the losses of an update.
        parameters: largest relative difference of a parameter, as `relative_differences` measures it.
        undetermined: the same for a parameter whose gradient is nothing but rounding.
        noise: a parameter counts as such where its gradient's norm was never more than this share of the global norm.
        reason: why these numbers.
    """

    loss: float
    parameters: float
    undetermined: float
    noise: float
    reason: str


TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(
        loss=1e-10,
        parameters=1e-9,
        undetermined=1e-5,
        noise=64 * float(np.finfo(np.float64).eps),
        reason="float64 rounds at 1e-16, so what is left above these bounds after a hundred updates is a real "
        "difference; 1e-12 is usual",
    ),
    "float32": Tolerance(
        loss=1e-4,
        parameters=2e-2,
        undetermined=float("inf"),
        noise=64 * float(np.finfo(np.float32).eps),
        reason="float32 rounds at 6e-8 and every update amplifies it: losses agree to 1e-4 while the problem is well "
        "conditioned; single parameters whose gradient is close to zero drift further under Adam, which divides by "
        "its size. Run with float64 to tell rounding from a real difference",
    ),
    "bf16": Tolerance(
        loss=2e-2,
        parameters=float("inf"),
        undetermined=float("inf"),
        noise=2.0**-6,
        reason="bf16 rounds at 4e-3 and the frameworks round in other places (torch's autocast keeps normalisation and "
        "softmax in float32): losses stay within 2 %, single parameters part",
    ),
    "fp16": Tolerance(
        loss=2e-2,
        parameters=float("inf"),
        undetermined=float("inf"),
        noise=2.0**-9,
        reason="fp16 rounds at 5e-4 and the frameworks round in other places (torch's autocast keeps normalisation and "
        "softmax in float32): losses stay within 2 %, single parameters part",
    ),
}


def tolerance_for(precision: str) -> Tolerance:
    """The bounds for runs of a precision."""
    return TOLERANCES[precision]


def relative_differences(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each name: max|a - b| / max(|a|, |b|, floor), the maxima over the tensor. A NaN on one side is infinite.

    Elements are measured against the largest of their tensor: relative to itself, an element near zero would differ by
    100 % from rounding alone. `floor` is a thousandth of the median tensor's largest element, for tensors that are
    themselves all but zero (a bias whose true gradient is 0 holds nothing but rounding).

    >>> relative_differences({"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 2.002])})
    {'w': 0.000999...}
    """
    scales = {name: max(_largest(first[name]), _largest(second[name])) for name in first}
    floor = 1e-3 * float(np.median(list(scales.values()))) if scales else 0.0
    differences = {}
    for name, scale in scales.items():
        a, b = np.asarray(first[name], np.float64), np.asarray(second[name], np.float64)
        gap = np.where(np.isnan(a) & np.isnan(b) | (a == b), 0.0, np.abs(a - b))
        size = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
        differences[name] = 0.0 if size == 0 else size / max(scale, floor, np.finfo(np.float64).tiny)
    return differences


def _largest(array: np.ndarray) -> float:
    finite = np.abs(np.asarray(array, np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))
