"""How each framework itself keeps a parameter: its own name, shape and order of elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.protocol import NativeArrays

__all__ = ["NativeLayout", "native_layouts"]

# elements of an array up to which its elements are numbered; of a larger one the shape must do
_MOST_NUMBERED = 2**22


@dataclass(frozen=True)
class NativeLayout:
    """How a framework keeps one array.

    Attributes:
        name: its own.
        shape: its own.
        canonical: whether shape and order of elements are those of a PyTorch `state_dict`.
    """

    name: str
    shape: tuple[int, ...]
    canonical: bool


def native_layouts(native: NativeArrays | None, arrays: Arrays) -> Mapping[str, NativeLayout]:
    """Say by canonical name how a framework keeps arrays; nothing where its backend does not tell."""
    if native is None:
        return {}
    layouts = {}
    for name, array in arrays.items():
        probe = _numbered(array.shape)
        for own_name, own in native.to_native({name: probe}).items():
            same = own.shape == probe.shape and np.array_equal(own, probe)
            layouts.setdefault(name, NativeLayout(own_name, tuple(own.shape), same))
    return layouts


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    """An array whose elements are their own numbers, so that any change of their order shows."""
    size = int(np.prod(shape))
    if size > _MOST_NUMBERED:
        return np.broadcast_to(np.zeros((), np.int8), shape)
    return np.arange(size, dtype=np.int32).reshape(shape)
