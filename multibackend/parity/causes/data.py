"""Unequal data: the same examples in another order, other examples, other values of a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.parity.causes.laws import Difference, Law

__all__ = ["data_difference"]


def data_difference(
    seen: tuple[Sequence[Arrays], Sequence[Arrays]], settings: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
) -> Difference | None:
    """What tells the micro-batches of two runs apart.

    Args:
        seen: of each run the fields of each micro-batch, in order.
        settings: of each run what decides about the order: {"shuffle": True, "seed": 0}.
    """
    here, there = _examples(seen[0]), _examples(seen[1])
    if here == there:
        return None
    if len(here) != len(there):
        return _made("number of examples", (len(here), len(there)), 1.0, None)
    before = float(np.mean([a != b for a, b in zip(here, there, strict=True)]))
    after = 0.0 if sorted(here) == sorted(there) else None
    for name in settings[0]:
        if settings[0][name] != settings[1].get(name):
            return _made(name, (settings[0][name], settings[1].get(name)), before, after)
    if after is not None:
        return _made("order", ("as they are", "in another order, the same ones"), before, after)
    factor = _factor(*seen)
    if factor is not None:
        field, ratio, left = factor
        return _made("values", (f"{field} as it is", f"{field} times {ratio:.6g}"), before, left)
    common = len(set(here) & set(there))
    return _made("order", ("as they are", f"other ones, {common} of {len(here)} in common"), before, None)


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


def _made(trait: str, values: tuple[Any, Any], before: float, after: float | None) -> Difference:
    laws = [Law("data", {trait: value}, lambda: None) for value in values]
    return Difference((laws[0], laws[1]), (trait,), before, after)
