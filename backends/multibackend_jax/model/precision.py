"""Number formats of a run, without touching the flags of the process.

Everything a program does happens inside `scope()`: 64-bit types are enabled for a float64 run and
only there, so a float32 run in the same process stays float32. tf32 stays off because functions are
traced at the highest precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.core.paths import is_array
from multibackend.core.precision import PRECISIONS, NumberFormat
from multibackend.errors import DataError
from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend_jax.model.pure import FlaxModel

__all__ = ["Precision"]

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run: of what is kept and of the model's arithmetic."""

    name: str

    @property
    def format(self) -> NumberFormat:
        return PRECISIONS[self.name]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.format.parameters)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Let arrays of this precision be made and functions on them be traced and run."""
        # settings of this thread, put back at the end, not flags of the process
        with jax.enable_x64(self.name == "float64"), jax.default_matmul_precision("highest"):
            yield

    def mixed(self, model: FlaxModel) -> FlaxModel:
        """Let a model compute in its arithmetic's dtype; outputs and state stay wide."""
        if not self.format.mixed:
            return model

        def apply(values: Any, state: Any, batch: Any, stamp: Any, train: bool) -> tuple[Any, Any]:
            low = jnp.dtype(self.format.arithmetic)
            # the state stays wide: running statistics move by less than bfloat16 can tell
            outputs, state = model.apply(_cast(values, low), state, _cast(batch, low), stamp, train)
            return _cast(outputs, self.dtype), _cast(state, self.dtype)

        return replace(model, apply=apply)

    def cast_array(self, array: jax.Array) -> jax.Array:
        """Return a device array in this precision; one that is not floating-point as it is."""
        return _cast(array, self.dtype)

    def cast_input(self, name: str, array: np.ndarray) -> np.ndarray:
        """Cast a host array: floats to this precision, integers to at most 32 bits."""
        if array.dtype.kind == "f":
            return array.astype(self.dtype, copy=False)
        if array.dtype.itemsize != 8 and array.dtype != np.uint32:
            return array
        # outside a float64 run JAX would cut 64-bit integers to 32 bits without a word
        if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
            raise DataError(f"field {name!r} holds integers that do not fit 32 bits, up to {array.max()}")
        return array.astype(np.int32)


def _cast(tree: Any, dtype: Any) -> Any:
    """Return a tree with its floating-point arrays in another dtype, also inside dataclasses that JAX does not know."""

    def cast(array: Any) -> Any:
        return array.astype(dtype) if jnp.issubdtype(jnp.result_type(array), jnp.floating) else array

    def cast_leaf(leaf: Any) -> Any:
        if is_array(leaf):
            return cast(leaf)
        return with_arrays(leaf, [cast(array) for array in arrays_in(leaf, is_array)], is_array)

    return jax.tree.map(cast_leaf, tree)
