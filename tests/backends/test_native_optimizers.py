"""Optimizers that are native to a backend: our rate, groups and windows around an update of theirs."""

from pathlib import Path

import numpy as np
import optax
import pytest
import torch
from support.optimizer_runs import CASES, SCHEDULE, experiment, largest_difference, trained

import multibackend as mb
from multibackend.errors import ConfigurationError, ParameterMatchError
from multibackend.optimizers import Group, Native
from multibackend.testing import assert_arrays_match, assert_raises, assert_snapshots_identical
from multibackend.testing.tolerances import MANY_UPDATES

ADAM = Native(
    learning_rate=SCHEDULE,
    torch=lambda parameters: torch.optim.Adam(parameters, lr=123.0),
    jax=optax.scale_by_adam,
)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_native_optimizer_has_our_rate(backend: str) -> None:
    """torch.optim.Adam and optax.scale_by_adam handed over as they are give Adam under our schedule."""
    actual = trained(backend, ADAM).parameters()["p"]
    assert largest_difference(actual, CASES["Adam"].expected[0]) <= MANY_UPDATES


@pytest.mark.parametrize(
    ("backend", "optimizer"),
    [
        ("torch", Native(learning_rate=SCHEDULE, torch=torch.optim.ASGD)),
        ("torch", Native(learning_rate=SCHEDULE, torch=torch.optim.Rprop)),
        ("torch", ADAM),
        ("jax", ADAM),
        ("jax", Native(learning_rate=SCHEDULE, jax=lambda: optax.chain(optax.trace(0.9), optax.scale_by_belief()))),
    ],
)
def test_a_native_run_goes_on_from_its_snapshot(backend: str, optimizer: Native) -> None:
    """All of the native state is in a snapshot: the restored run ends in the same bits."""
    whole, second = (trained(backend, optimizer, updates=9) for _ in range(2))
    assert second.snapshot().optimizer
    second.restore(second.snapshot())  # which begins with a fresh state
    for run in (whole, second):
        run.fit(updates=20)
    assert_snapshots_identical(second.snapshot(), whole.snapshot())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_native_run_goes_on_from_its_checkpoint(backend: str, tmp_path: Path) -> None:
    """Arrays of any shape, which nothing rearranges: the resumed run ends in the bits of the one that never stopped."""
    whole = trained(backend, ADAM, updates=9)
    path = whole.save(tmp_path / "saved")
    resumed = mb.Trainer.resume(path, whole.experiment)
    for run in (whole, resumed):
        run.fit(updates=20)
    assert_snapshots_identical(resumed.snapshot(), whole.snapshot())


def test_groups_around_a_native_optimizer() -> None:
    """A factor of 0.5 in a group is half the rate; a weight decay is the builder's affair."""
    group = Group("p", learning_rate_factor=0.5)
    halved = mb.schedules.BatchScaled(learning_rate=SCHEDULE, scaling="linear", base=2, examples=lambda update: 1)
    for backend in ("torch", "jax"):
        grouped = Native(learning_rate=SCHEDULE, groups=[group], builders=ADAM.builders)
        expected = trained(backend, Native(learning_rate=halved, builders=ADAM.builders), updates=30)
        actual = trained(backend, grouped, updates=30)
        assert_arrays_match(actual.parameters(), expected.parameters(), relative=MANY_UPDATES)
    assert_raises(
        ConfigurationError,
        lambda: Native(learning_rate=0.1, torch=torch.optim.ASGD, groups=[Group("p", weight_decay=0.1)]),
        "Native has none",
    )


def test_compare_says_that_nothing_is_promised() -> None:
    """Two laws differ, which compare finds, and it says why."""
    different = Native(learning_rate=0.01, torch=torch.optim.ASGD, jax=optax.scale_by_adam)
    report = mb.compare(experiment(different), updates=5)
    assert not report.matches
    assert "nobody promises" in report.notes[0]
    assert mb.compare(experiment(ADAM), updates=5).matches


def test_native_errors() -> None:
    """A missing side, no side, and a side that is no function."""
    only = Native(learning_rate=0.1, torch=torch.optim.ASGD)
    assert_raises(ConfigurationError, lambda: trained("jax", only), "no optimizer for the backend 'jax'", "jax=")
    assert_raises(ConfigurationError, lambda: Native(learning_rate=0.1), "no optimizer given")
    assert_raises(ConfigurationError, lambda: Native(learning_rate=0.1, torch=3), "torch=3")
    theirs = trained("torch", ADAM, updates=1).snapshot()
    other = trained("jax", ADAM, updates=1)
    assert_raises(ParameterMatchError, lambda: other.restore(theirs), "slots")
    assert np.isfinite(other.parameters()["p"]).all()
