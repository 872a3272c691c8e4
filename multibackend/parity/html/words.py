"""Numbers as they are written on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["number", "relative", "shape"]


def relative(difference: float) -> str:
    """A relative difference, with two digits.

    >>> relative(3.14159e-16), relative(1e-4), relative(0.0), relative(float("inf"))
    ('3.1e-16', '1e-04', '0', 'infinite')
    """
    if difference == 0:
        return "0"
    return f"{difference:.1e}".replace(".0e", "e") if math.isfinite(difference) else "infinite"


def number(value: float) -> str:
    """A value with nine digits, as many as tell two float32 apart."""
    return "not a number" if math.isnan(value) else f"{value:.9g}"


def shape(sizes: Sequence[int]) -> str:
    """The shape of an array.

    >>> shape((3, 4)), shape(())
    ('[3, 4]', 'one number')
    """
    return str(list(sizes)) if len(sizes) else "one number"
