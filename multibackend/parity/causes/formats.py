"""Smaller number formats: rounding to them, and seeing that numbers went through them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multibackend.core.arrays import Array

__all__ = ["FORMATS", "narrowest", "rounded", "unit_of"]

FORMATS: Mapping[str, int] = {"bf16": 8, "fp16": 11, "tf32": 11, "float32": 24}
"""Significant bits, the hidden one included, fewest first; only fp16 has smaller exponents."""


def rounded(array: Array, name: str) -> Array:
    """Each number rounded to the nearest (ties to even) of a format; "all" digits stay."""
    x = np.asarray(array, np.float64)
    if name == "all":
        return x
    if name == "float32":
        return x.astype(np.float32).astype(np.float64)
    if name == "fp16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float64)
    # numpy has neither bf16 nor tf32, whose exponents are float32's: shorten the mantissa
    mantissa, exponent = np.frexp(x)
    scale = 2.0 ** FORMATS[name]
    return np.ldexp(np.rint(mantissa * scale) / scale, exponent)


def unit_of(name: str) -> float:
    """The machine epsilon of a format.

    >>> unit_of("bf16")
    0.0078125
    """
    return 2.0 ** (1 - FORMATS[name])


def narrowest(array: Array) -> str | None:
    """The smallest format that holds every number of an array exactly; None for float64.

    Arrays of few distinct or of round numbers, and whole numbers, tell nothing: None.
    """
    if array.dtype.kind != "f":
        return None
    x = np.asarray(array, np.float64)
    magnitudes = np.unique(np.abs(x[np.isfinite(x) & (x != 0)]))
    if magnitudes.size < 8 or np.array_equal(magnitudes, np.rint(magnitudes)):
        return None
    for name in FORMATS:
        if np.array_equal(rounded(magnitudes, name), magnitudes):
            return name
    return None
