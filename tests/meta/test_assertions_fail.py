"""Every assertion helper fails where it should, says what and where, and passes where it should."""

from collections.abc import Callable

import numpy as np
import pytest
from multibackend_stub.backend import Linear

from multibackend.errors import MatchError
from multibackend.protocol import Snapshot
from multibackend.testing import (
    Variant,
    assert_arrays_match,
    assert_bit_identical,
    assert_raises,
    assert_snapshots_identical,
    assert_trainers_match,
)
from multibackend.testing.conformance.problems import START, regression

ONES = np.ones((2, 3))
SPOILT = ONES.copy()
SPOILT[1, 2] = 1.001
STUB = Variant("stub", {"linear": lambda: Linear(3, 2)})


def close(actual: object, expected: object) -> Callable[[], None]:
    return lambda: assert_arrays_match(actual, expected, relative=1e-4)


def same(actual: object, expected: object) -> Callable[[], None]:
    return lambda: assert_bit_identical(actual, expected)


FAULTS = {
    "value": (close(SPOILT, ONES), "[1, 2]", "1.001", "1.0"),
    "value in a mapping": (close({"a": ONES, "b": {"c": SPOILT}}, {"a": ONES, "b": {"c": ONES}}), "b.c[1, 2]"),
    "value in a sequence": (close([ONES, SPOILT], [ONES, ONES]), "[1][1, 2]"),
    "shape": (close(np.ones(4), np.ones((4, 1))), "(4,)", "(4, 1)"),
    "scalar against array": (close(1.0, np.ones(1)), "()", "(1,)"),
    "dtype kind": (close(np.ones(2, int), np.ones(2)), "int64", "float64"),
    "missing name": (close({"a": ONES}, {"a": ONES, "b": ONES}), "missing ['b']"),
    "unexpected name": (close({"a": ONES, "c": ONES}, {"a": ONES}), "not expected ['c']"),
    "structure": (close([ONES], {"a": ONES}), "sequence", "mapping"),
    "length": (close([ONES], [ONES, ONES]), "length 1", "2"),
    "nan": (close(np.array([np.nan]), np.ones(1)), "nan"),
    "nan expected": (close(np.ones(1), np.array([np.nan])), "nan"),
    "infinity": (close(np.array([np.inf]), np.array([-np.inf])), "inf"),
    "zero against nothing": (close(np.full(2, 1e-300), np.zeros(2)), "1e-300"),
    "last bit": (same(ONES, np.nextafter(ONES, 2)), "6 of 6"),
    "sign of zero": (same(np.zeros(2), np.array([0.0, -0.0])), "[1]", "-0.0"),
    "dtype": (same(ONES.astype(np.float32), ONES), "float32", "float64"),
    "update": (lambda: assert_snapshots_identical(Snapshot({}, update=2), Snapshot({}, update=3)), "2 against 3"),
    "slot": (
        lambda: assert_snapshots_identical(
            Snapshot({}, optimizer={"m": {"w": SPOILT}}), Snapshot({}, optimizer={"m": {"w": ONES}})
        ),
        "optimizer.m.w[1, 2]",
    ),
    "model state": (
        lambda: assert_snapshots_identical(Snapshot({}, {"s": SPOILT}), Snapshot({}, {"s": ONES})),
        "model_state.s",
    ),
    "nothing raised": (lambda: assert_raises(ValueError, lambda: 3), "nothing was raised", "3"),
    "message": (lambda: assert_raises(ValueError, lambda: int("x"), "repair"), "repair", "invalid literal"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str) -> None:
    """The fault raises `MatchError`, and the message says where and what."""
    check, *mentions = FAULTS[name]
    with pytest.raises(MatchError) as caught:
        check()
    assert [word for word in mentions if word not in str(caught.value)] == []


def test_what_matches_passes() -> None:
    """Equal things, differences within the bound, NaN beside NaN, infinities, empty arrays, other widths of a kind."""
    assert_arrays_match(SPOILT, ONES, relative=0.01)
    assert_arrays_match({"a": [np.array([np.nan, np.inf])]}, {"a": [np.array([np.nan, np.inf])]}, relative=0.0)
    assert_arrays_match(np.zeros((0, 3)), np.zeros((0, 3)), relative=0.0)
    assert_arrays_match(np.float32(1), 1.0, relative=0.0)
    assert_arrays_match(np.full(2, 1e-9), np.zeros(2), relative=1e-6, floor=1.0)
    assert_arrays_match(SPOILT, ONES, precision="float32")
    assert_bit_identical({"a": ONES}, {"a": ONES.copy()})


def test_a_bound_must_be_given() -> None:
    """Neither none nor two, nor one that passes everything."""
    for options in ({}, {"relative": 0.1, "precision": "float32"}):
        with pytest.raises(TypeError):
            assert_arrays_match(ONES, ONES, **options)
    for relative in (1.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="relative"):
            assert_arrays_match(ONES, ONES, relative=relative)


def test_another_error_passes_through() -> None:
    """An error of another kind is not swallowed."""
    with pytest.raises(KeyError):
        assert_raises(ValueError, lambda: {}["a"])


def test_trainers() -> None:
    """Trainers match after the same run, and not once a parameter is off by more than the bound."""
    experiment = STUB.experiment(regression(12))
    first, second = STUB.trainer(experiment, START), STUB.trainer(experiment, START)
    assert_trainers_match(first, second)
    second.load_parameters({**START, "bias": START["bias"] + 1e-6})
    with pytest.raises(MatchError, match="bias"):
        assert_trainers_match(first, second)
    assert_trainers_match(first, second, relative=1e-4)
