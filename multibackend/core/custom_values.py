"""What a custom loss or metric returned, checked before anything is summed.

Shapes and dtypes are known while a model is traced, so in a compiled program this costs nothing.
"""

from __future__ import annotations

from typing import Any

from multibackend.errors import DataError

__all__ = ["custom_values"]

_LOSS = ("float", "bfloat")
_METRIC = (*_LOSS, "int", "uint", "bool")  # a metric may count


def custom_values(
    role: str, result: Any, kind: type, *, batch_size: int | None, counts: bool = False
) -> tuple[Any, Any]:
    """Return (values, weights or None), of which the weights are an array that broadcasts against the values.

    Args:
        role: whose function it is, "the loss 'square'".
        result: what it returned.
        kind: the framework's class of arrays.
        batch_size: of the batch that the function was called with, with which the shape of the
            values begins; None for values of any shape.
        counts: whether the values may be integers or truth values, as a metric's.

    Raises:
        DataError: it is something else.
    """
    values, weights = _parts(role, result)
    if not isinstance(values, kind):
        what = "an array of values, one value per element of the batch, or (values, weights)"
        raise DataError(f"{role} must return {what}, got {type(values).__name__}")
    dtype = _name(values)
    if not dtype.startswith(_METRIC if counts else _LOSS):
        reason = "" if counts or dtype.startswith("complex") else ", which have no gradient"
        raise DataError(f"{role} must return floating-point values, got {dtype}{reason}")
    shape = tuple(values.shape)
    if batch_size is not None and shape[:1] != (batch_size,):
        raise DataError(
            f"{role} returned values of shape {shape}, but one value per element is needed, in a shape that begins "
            f"with the batch: ({batch_size}, ...). Do not reduce over the batch: the sum over the window and the "
            "division by the weights are made here, so that the result does not depend on the micro-batch. A term "
            'that counts once for each micro-batch is mb.losses.Custom(..., per="micro_batch")'
        )
    if weights is not None:
        _check_weights(role, weights, kind, shape)
    return values, weights


def _parts(role: str, result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple):
        return result, None
    if len(result) != 2:
        raise DataError(f"{role} returned a tuple of {len(result)}; it must return values or (values, weights)")
    return result


def _check_weights(role: str, weights: Any, kind: type, shape: tuple[int, ...]) -> None:
    if not isinstance(weights, kind):
        raise DataError(f"the weights that {role} returned must be an array, got {type(weights).__name__}")
    if not _name(weights).startswith(_METRIC):
        raise DataError(f"the weights that {role} returned must be numbers >= 0, got {_name(weights)}")
    own = tuple(weights.shape)
    # of an axis of length 1 the one weight goes for all
    fits = len(own) <= len(shape) and all(size in (1, full) for size, full in zip(own, shape, strict=False))
    if not fits:
        raise DataError(
            f"the weights that {role} returned have shape {own}, which does not fit its values of shape {shape}; "
            "give one weight per value, or per example"
        )


def _name(array: Any) -> str:
    """Return the name of an array's dtype, the same in every framework."""
    return str(array.dtype).rpartition(".")[2]
