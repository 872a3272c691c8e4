"""Host memory that a framework on CPU can adopt without copying it."""

from __future__ import annotations

import numpy as np

__all__ = ["aligned_empty"]

_ALIGNMENT = 64  # bytes; XLA copies host arrays that begin anywhere else


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Allocate like `np.empty`, beginning at a multiple of 64 bytes.

    >>> aligned_empty((2, 3), np.dtype("float32")).ctypes.data % 64
    0
    """
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
