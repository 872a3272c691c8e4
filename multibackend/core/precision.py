"""Number formats of a run, and the rule for fp16's loss scale, as every backend obeys them.

Mixed precision keeps parameters, accumulators, optimizer state and model state in float32. Inputs
are rounded to the format of the arithmetic, the model computes in it, the loss in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["PRECISIONS", "LossScale", "NumberFormat"]


@dataclass(frozen=True)
class NumberFormat:
    """Names of dtypes: of parameters and all that is kept, and of the model's arithmetic."""

    parameters: str
    arithmetic: str

    @property
    def mixed(self) -> bool:
        return self.parameters != self.arithmetic

    @property
    def scales_loss(self) -> bool:
        """Tell whether gradients need a loss scale: float16 holds nothing below 6e-8."""
        # Not bfloat16, which has the exponents of float32 and so the same smallest numbers.
        return self.arithmetic == "float16"


PRECISIONS: Final[Mapping[str, NumberFormat]] = {
    "float32": NumberFormat("float32", "float32"),
    "float64": NumberFormat("float64", "float64"),
    "bf16": NumberFormat("float32", "bfloat16"),
    "fp16": NumberFormat("float32", "float16"),
}


@dataclass(frozen=True)
class LossScale:
    """The dynamic loss scale of fp16 (Micikevicius et al. 2018), the same on every backend.

    Gradients are computed of S * L and divided by S before everything else. After a window

        overflow (its gradient is not finite, its loss is):  S = max(S / 2, 1),  n = 0,  the window is dropped
        update:                                              n = n + 1;  where n is 2000:  S = min(2 S, 2^24),  n = 0
        no weight:                                           nothing changes

    It starts with S = 2^16, n = 0. All scales are powers of two, so scaling itself rounds nothing.
    At S = 1 a gradient that is not finite is no overflow of the scale, and `on_nonfinite` decides;
    so it does about a loss that is not finite, which is measured before it is multiplied by S.

    Attributes:
        scale: S.
        updates: n, updates since S last changed.

    >>> LossScale().after(overflow=True)
    LossScale(scale=32768.0, updates=0)
    >>> LossScale(updates=1999).after(overflow=False)
    LossScale(scale=131072.0, updates=0)
    """

    # Without annotations these are no fields: a snapshot keeps S and n, the rule is
    # nobody's to set.
    smallest = 1.0
    largest = 2.0**24
    interval = 2000

    scale: float = 2.0**16
    updates: int = 0

    def after(self, *, overflow: bool) -> LossScale:
        """Return the scale for the next window, after an overflow or an update."""
        if overflow:
            return LossScale(max(self.scale / 2, self.smallest), 0)
        if self.updates + 1 < self.interval:
            return LossScale(self.scale, self.updates + 1)
        return LossScale(min(self.scale * 2, self.largest), 0)
