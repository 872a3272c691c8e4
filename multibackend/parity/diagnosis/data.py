"""Unequal data: the same examples in another order, other examples, other values of a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.parity.diagnosis.laws import Difference, Law

__all__ = ["data_difference"]

Array = np.ndarray
Arrays = Mapping[str, Array]


def data_difference(first: Sequence[Arrays], second: Sequence[Arrays]) -> Difference | None:
    """What tells the micro-batches of two runs apart.

    Args:
        first, second: the fields of each micro-batch in the order in which they were seen.
    """
    here, there = _examples(first), _examples(second)
    if here == there:
        return None
    if len(here) != len(there):
        return _made("number of examples", (str(len(here)), str(len(there))), 1.0, None)
    before = float(np.mean([a != b for a, b in zip(here, there, strict=True)]))
    if sorted(here) == sorted(there):
        return _made("order", ("as it is", "another order of the same examples"), before, 0.0)
    common = len(set(here) & set(there))
    if common:
        return _made("order", ("as it is", f"other examples, {common} of {len(here)} in common"), before, None)
    factor = _factor(first, second)
    if factor is not None:
        field, ratio, after = factor
        return _made(f"field {field!r}", ("as it is", f"times {ratio:.6g}"), before, after)
    return _made("order", ("as it is", "other examples, none in common"), before, None)


def _examples(batches: Sequence[Arrays]) -> list[bytes]:
    """Each example as bytes, floats as float32 so that a cast does not tell them apart."""
    found = []
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            parts = [np.asarray(batch[name][row]) for name in sorted(batch)]
            found.append(
                b"|".join(
                    (p.astype(np.float32) if p.dtype.kind == "f" else p.astype(np.int64)).tobytes() for p in parts
                )
            )
    return found


def _factor(first: Sequence[Arrays], second: Sequence[Arrays]) -> tuple[str, float, float] | None:
    for name, array in first[0].items():
        one, other = np.asarray(array, np.float64), np.asarray(second[0].get(name, ()), np.float64)
        if one.shape != other.shape or np.array_equal(one, other) or not one.any():
            continue
        ratio = float((one * other).sum() / (one * one).sum())
        left = float(np.abs(other - ratio * one).max() / max(np.abs(other).max(), 1e-300))
        if left < 1e-6 and ratio:
            return name, ratio, left
    return None


def _made(trait: str, values: tuple[str, str], before: float, after: float | None) -> Difference:
    laws = [Law("data", {trait: value}, lambda: None) for value in values]
    return Difference((laws[0], laws[1]), (trait,), before, after)
