"""Every bound that the tests use, with its reason. A test never writes a number of its own.

All are relative to the largest element of an array, as `assert_arrays_match` measures, unless
they say otherwise.
"""

from __future__ import annotations

from typing import Final

from multibackend.parity.tolerances import TOLERANCES, Tolerance, tolerance_for

__all__ = [
    "FEW_UPDATES_FLOAT32",
    "FEW_UPDATES_RESUMED",
    "FORMULA",
    "HOPS",
    "HOPS_FLOAT32",
    "MANY_UPDATES",
    "MANY_UPDATES_FLOAT32",
    "ONE_WINDOW",
    "ONE_WINDOW_FLOAT32",
    "SAME_ARITHMETIC",
    "SCHEDULE_FLOAT32",
    "TOLERANCES",
    "Tolerance",
    "tolerance_for",
]

FORMULA: Final = 1e-13
"""A loss, a metric or a rate against its formula, in float64: some hundred roundings of 1e-16."""

SAME_ARITHMETIC: Final = 1e-12
"""The same float64 run by two executions of one backend: compilers may fuse, so last bits differ."""

ONE_WINDOW: Final = 1e-11
"""A few float64 updates against one large batch: sums in another order, nothing else."""

MANY_UPDATES: Final = 1e-10
"""200 float64 updates against a formula, ill-scaled: momentum alone makes 1e-11 of 1e-16."""

ONE_WINDOW_FLOAT32: Final = 1e-5
"""Gradients of one float32 window: 6e-8 of the tensor's largest, times the length of its sums."""

FEW_UPDATES_FLOAT32: Final = 1e-4
"""Some float32 updates of a well-conditioned problem."""

MANY_UPDATES_FLOAT32: Final = 5e-3
"""200 float32 updates on ill-scaled gradients, of the largest parameter: a smoke test."""

SCHEDULE_FLOAT32: Final = 1e-6
"""A rate against `optax.schedules`, which computes in float32; relative to the peak."""

FEW_UPDATES_RESUMED: Final = 1e-12
"""A float64 run taken up by the other backend, some updates later: what they differ by anyway."""

HOPS: Final = 1e-9
"""100 float64 updates that change the backend every 7, against a run that never did."""

HOPS_FLOAT32: Final = 5e-6
"""The same in float32, on a well-conditioned problem: 6e-8 at each hop."""
