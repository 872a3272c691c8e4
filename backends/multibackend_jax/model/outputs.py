"""What a Flax model returned, of whatever structure, through a compiled function and on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend_jax.model.observe import is_array

__all__ = ["Outputs"]


@jax.tree_util.register_pytree_node_class
class Outputs:
    """Outputs that a compiled function may return: arrays in a structure of which JAX need not know the classes.

    So a plain dataclass comes out as it would from the model itself. Floats are in `dtype`.
    """

    def __init__(self, outputs: Any, dtype: Any) -> None:
        self._arrays = [_cast(array, dtype) for array in arrays_in(outputs, is_array)]
        # shapes in their place: the structure outlives the trace, whose arrays must not
        shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._arrays]
        self._structure = with_arrays(outputs, shapes, is_array)

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """Return the arrays and what is no array, as `jax.tree_util` asks for them."""
        return self._arrays, self._structure

    @classmethod
    def tree_unflatten(cls, structure: Any, arrays: Any) -> Outputs:
        """Return outputs of a structure with other arrays."""
        outputs = cls.__new__(cls)
        outputs._arrays = list(arrays)
        outputs._structure = structure
        return outputs

    def to_host(self) -> Any:
        """Return the outputs as the model returned them, every array a numpy copy."""
        return with_arrays(self._structure, [np.array(array) for array in self._arrays], _is_shape)


def _cast(array: Any, dtype: Any) -> Any:
    array = jnp.asarray(array)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _is_shape(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
