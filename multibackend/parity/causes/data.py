"""Unequal data: the same examples in another order, other examples, other values of a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.parity.causes.formulas import Difference, difference_in

__all__ = ["data_difference"]

Settings = tuple[Mapping[str, Any], Mapping[str, Any]]


def data_difference(
    batches: tuple[Sequence[Arrays], Sequence[Arrays]], settings: Settings = ({}, {})
) -> Difference | None:
    """What tells the micro-batches of two runs apart.

    Args:
        batches: of each run the fields of each micro-batch, in order.
        settings: of each run what decides about the order: {"shuffle": True, "seed": 0}.
    """
    reference = _examples(batches[0])
    other = _examples(batches[1])
    if reference == other:
        return None
    if len(reference) != len(other):
        return difference_in("data", "number of examples", (len(reference), len(other)), 1.0, None)
    # how many places hold another example
    before = float(np.mean([a != b for a, b in zip(reference, other, strict=True)]))
    same_examples = sorted(reference) == sorted(other)
    after = 0.0 if same_examples else None
    for name, value in settings[0].items():
        if value != settings[1].get(name):
            return difference_in("data", name, (value, settings[1].get(name)), before, after)
    if same_examples:
        orders = ("as they are", "in another order, the same ones")
        return difference_in("data", "order", orders, before, after)
    scaled = _scaled_field(batches[0][0], batches[1][0])
    if scaled is not None:
        field, factor, rest = scaled
        values = (f"{field} as it is", f"{field} times {factor:.6g}")
        return difference_in("data", "values", values, before, rest)
    common = len(set(reference) & set(other))
    described = f"other ones, {common} of {len(reference)} in common"
    return difference_in("data", "order", ("as they are", described), before, None)


def _examples(batches: Sequence[Arrays]) -> list[bytes]:
    """Return each example as bytes."""
    examples = []
    for batch in batches:
        fields = [_comparable(np.asarray(batch[name])) for name in sorted(batch)]
        examples.extend(_bytes(fields, row) for row in range(len(fields[0])))
    return examples


def _bytes(fields: Sequence[Array], row: int) -> bytes:
    return b"|".join(field[row].tobytes() for field in fields)


def _comparable(field: Array) -> Array:
    """A field in the dtypes in which both runs hold it: a cast must not tell two examples apart."""
    if field.dtype.kind == "f":
        return field.astype(np.float32)
    return field.astype(np.int64)


def _scaled_field(reference: Arrays, other: Arrays) -> tuple[str, float, float] | None:
    """The field that is another one's times a factor; the factor; the difference it leaves.

    A number read as bytes instead of [0, 1], or divided twice, is off by a factor.
    """
    for name, array in reference.items():
        x = np.asarray(array, np.float64)
        y = np.asarray(other.get(name, ()), np.float64)
        if x.shape != y.shape or np.array_equal(x, y) or not x.any():
            continue
        factor = float((x * y).sum() / (x * x).sum())
        rest = float(np.abs(y - factor * x).max() / max(np.abs(y).max(), 1e-300))
        if rest < 1e-6 and factor:
            return name, factor, rest
    return None
