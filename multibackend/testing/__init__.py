"""For people who test: assertions that raise, tolerances with reasons, and the suite that any backend must pass.

Importing it imports no framework. See `multibackend.testing.conformance` for how a backend takes the suite.
"""

from multibackend.testing.assertions import (
    assert_arrays_match,
    assert_bit_identical,
    assert_raises,
    assert_snapshots_identical,
    assert_trainers_match,
)
from multibackend.testing.variant import Variant

__all__ = [
    "Variant",
    "assert_arrays_match",
    "assert_bit_identical",
    "assert_raises",
    "assert_snapshots_identical",
    "assert_trainers_match",
]
