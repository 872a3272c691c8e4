"""Number formats of a run, without touching the flags of the process.

Everything a program does happens inside `scope()`: 64-bit types are enabled for a float64 run and only there, so a
float32 run in the same process stays float32. tf32 stays off because functions are traced at the highest precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.errors import DataError

__all__ = ["Precision"]

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Precision:
    """The dtype of parameters and floating-point inputs."""

    name: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.name)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Where arrays of this precision may be made and functions on them traced or run."""
        with jax.enable_x64(self.name == "float64"), jax.default_matmul_precision("highest"):
            yield

    def cast_array(self, array: jax.Array) -> jax.Array:
        """A device array in this precision, if it is floating-point; else the array."""
        return array.astype(self.dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def cast_input(self, name: str, array: np.ndarray) -> np.ndarray:
        """A host array as it goes to the device: floats in this precision, integers in at most 32 bits."""
        if array.dtype.kind == "f":
            return array if array.dtype == self.dtype else array.astype(self.dtype)
        if array.dtype.itemsize == 8 or array.dtype == np.uint32:
            if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
                raise DataError(f"field {name!r} holds integers that do not fit 32 bits, up to {array.max()}")
            return array.astype(np.int32)
        return array
