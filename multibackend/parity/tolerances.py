"""How close is matching: the one place where tolerances are written, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["TOLERANCES", "Tolerance", "tolerance_for"]


@dataclass(frozen=True)
class Tolerance:
    """Bounds for two runs of the same experiment.

    Attributes:
        loss: largest relative difference of the losses of an update.
        parameters: largest relative difference of a parameter, by `relative_differences`.
        undetermined: the same for a parameter whose gradient is nothing but rounding.
        noise: a parameter counts as such where its gradient's norm was never more than this share
            of the global norm.
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
        noise=64 * float(np.finfo(np.float64).eps),  # 64 spacings of the format at 1
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
        noise=2.0**-6,  # two spacings at 1: 64 of them would be half of the norm
        reason="bf16 rounds at 4e-3 and the frameworks round in other places (torch's autocast keeps normalisation and "
        "softmax in float32): losses stay within 2 %, single parameters part",
    ),
    "fp16": Tolerance(
        loss=2e-2,
        parameters=float("inf"),
        undetermined=float("inf"),
        noise=2.0**-9,  # two spacings at 1
        reason="fp16 rounds at 5e-4 and the frameworks round in other places (torch's autocast keeps normalisation and "
        "softmax in float32): losses stay within 2 %, single parameters part",
    ),
}


def tolerance_for(precision: str) -> Tolerance:
    """Return the bounds for runs of a precision."""
    return TOLERANCES[precision]
