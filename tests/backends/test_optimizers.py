"""Every optimizer against the equations of its docstring: 200 updates, 2000 parameters, ill-scaled gradients."""

import numpy as np
import pytest
from support.optimizer_runs import BACKENDS, CASES

from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import MANY_UPDATES, MANY_UPDATES_FLOAT32


def assert_each_matches(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Each parameter relative to itself (or to 1, the size it started with): large ones hide no small ones."""
    size = 1 + np.abs(expected)
    assert_arrays_match(actual / size, expected / size, relative=relative, floor=1.0)


def assert_slots_match(actual: dict, expected: dict) -> None:
    """Each element of each slot relative to itself."""
    assert actual.keys() == expected.keys()
    for slot, array in expected.items():
        scale = np.abs(array) + np.finfo(float).tiny
        assert_arrays_match(actual[slot]["p"] / scale, array / scale, relative=MANY_UPDATES, what=slot)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_docstring(name: str, backend: str) -> None:
    """200 updates with a schedule: each parameter, and each slot under torch's name for it, to 1e-10."""
    trainer = CASES[name].trained(backend)
    parameters, slots = CASES[name].expected
    assert_each_matches(trainer.parameters()["p"], parameters, MANY_UPDATES)
    assert_slots_match(trainer.snapshot().optimizer, slots)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("Lion")])
def test_float32_stays_near(name: str, backend: str) -> None:
    """A smoke test: float32 follows the same law. (In Lion rounding decides signs, and parameters jump.)"""
    trainer = CASES[name].trained(backend, "float32")
    assert_each_matches(trainer.parameters()["p"], CASES[name].expected[0], MANY_UPDATES_FLOAT32)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].expected[1]])
def test_slots_cross_over(name: str) -> None:
    """A run goes on with the other backend's slots and count of updates, either way round."""
    trainers = [CASES[name].trained(backend, updates=7) for backend in BACKENDS]
    whole = [CASES[name].trained(backend, updates=27) for backend in BACKENDS]
    snapshots = [trainer.snapshot() for trainer in trainers]
    for trainer, other, expected in zip(trainers, reversed(snapshots), whole, strict=True):
        trainer.restore(other)
        trainer.fit(updates=27)
        assert_each_matches(trainer.parameters()["p"], expected.parameters()["p"], MANY_UPDATES)
