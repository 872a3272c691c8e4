"""What a Flax model returned, of whatever structure: through a compiled function, on the host, and what it ends in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend_jax.model.observe import is_array

__all__ = ["Outputs", "ends_linear"]


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


# primitives that only move or cast elements, and those that a linear layer may end in
_MOVES = {"reshape", "squeeze", "transpose", "broadcast_in_dim", "convert_element_type", "copy", "slice", "rev"}
_SUMS_AND_PRODUCTS = {"add", "add_any", "sub", "dot_general", "conv_general_dilated", "concatenate", "gather"}


def ends_linear(jaxpr: Any, array: Any) -> bool:
    """Tell whether the last operation that computes an output of a jaxpr is a sum or product of matrices.

    True where nothing is known, as of an input or a constant.
    """
    makers = {made: equation for equation in jaxpr.eqns for made in equation.outvars}
    # a literal has a value and no name
    while not hasattr(array, "val") and array in makers:
        equation = makers[array]
        # a function within the function: jit, a custom derivative, a checkpoint
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            body = getattr(inner, "jaxpr", inner)
            index = equation.outvars.index(array)
            return index >= len(body.outvars) or ends_linear(body, body.outvars[index])
        if equation.primitive.name not in _MOVES:
            return equation.primitive.name in _SUMS_AND_PRODUCTS
        array = equation.invars[0]
    return True
