"""What arrays are called throughout."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeVar

import numpy as np

__all__ = ["Array", "Arrays", "Fields", "among", "rows", "without"]

T = TypeVar("T")

Array = np.ndarray
Arrays = Mapping[str, np.ndarray]
"""Arrays by name: parameters, model state, optimizer slots."""
Fields = dict[str, np.ndarray]
"""Examples by field, the first axis of each counting them."""


def among(entries: Mapping[str, T], names: Container[str]) -> dict[str, T]:
    """Return the entries of these names, in their own order; names without an entry are nothing."""
    return {name: entry for name, entry in entries.items() if name in names}


def without(entries: Mapping[str, T], names: Container[str]) -> dict[str, T]:
    """Return the entries of all other names, in their own order."""
    return {name: entry for name, entry in entries.items() if name not in names}


def rows(arrays: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """Index every array alike, for example to take some examples of all fields."""
    return {name: array[index] for name, array in arrays.items()}
