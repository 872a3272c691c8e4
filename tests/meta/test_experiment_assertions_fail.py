"""`assert_matches` and `assert_golden` pass where they should, and fail with words that help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multibackend_stub.backend import Linear
from support import flax_models, torch_models

import multibackend as mb
from multibackend import golden
from multibackend.errors import ConfigurationError, GoldenFileError, MatchError
from multibackend.testing import assert_golden, assert_matches, assert_raises
from multibackend.testing.conformance.problems import regression

DATA = regression(20)
LINEAR = {"torch": torch_models.linear, "jax": flax_models.linear, "stub": lambda: Linear(3, 2)}


def experiment(*backends: str, **options: Any) -> mb.Experiment:
    arguments: dict[str, Any] = {
        "name": "line",
        "model": mb.Model(inputs="x", **{name: LINEAR[name] for name in backends or LINEAR}),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.SGD(learning_rate=0.1),
        "train_data": DATA,
        "micro_batch_size": 3,
        "precision": "float64",
    }
    return mb.Experiment(**{**arguments, **options})


def wrong_on(backend: str) -> mb.losses.Custom:
    """A squared error that is a thousandth too large on one backend."""

    def loss(factor: float) -> Any:
        return lambda outputs, batch: factor * (outputs - batch["y"]) ** 2

    return mb.losses.Custom({name: loss(1.001 if name == backend else 1.0) for name in ("torch", "jax")})


def test_backends_that_match_pass() -> None:
    """All that the model has, each against the first; or two by name. The reports come back."""
    reports = assert_matches(experiment(), updates=5)
    assert [report.backends for report in reports] == [("torch", "jax"), ("torch", "stub")]
    (report,) = assert_matches(experiment(), updates=3, backends=("stub", "jax"), precision="float32")
    assert (report.backends, report.precision, report.updates) == (("stub", "jax"), "float32", 3)


def test_backends_that_part_fail_with_words() -> None:
    """The first divergence, the tolerance, the largest differences by parameter."""
    broken = experiment("torch", "jax", loss=wrong_on("jax"))
    error = assert_raises(
        MatchError,
        lambda: assert_matches(broken, updates=4),
        "line: torch and jax do not match over 4 updates in float64",
        "losses 1e-10, parameters 1e-09",
        "First divergence: ",
        "Largest differences of the parameters at the end, relative:\n  ",
    )
    assert isinstance(error, AssertionError)
    text = str(error)
    table = [line for line in text[text.index("Largest differences of the p") :].splitlines() if line[:2] == "  "]
    names, gaps = zip(*(line.split() for line in table), strict=True)
    assert set(names) == {"weight", "bias"}
    assert float(gaps[0]) >= float(gaps[1]) > 1e-9


def test_one_backend_is_nothing_to_compare() -> None:
    for call in (
        lambda: assert_matches(experiment("torch")),
        lambda: assert_matches(experiment(), backends=("torch",)),
        lambda: assert_matches(experiment(), backends="torch"),
    ):
        assert_raises(ConfigurationError, call, "backends must be two names at least", '@pytest.mark.backends("torch"')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "line.json"
    golden.save(golden.record(experiment(), "stub", updates=4), file)
    return file


def test_a_golden_run_passes(path: Path) -> None:
    """On the backend that it was recorded on unless another is named."""
    report = assert_golden(experiment(), path)
    assert isinstance(report, golden.GoldenReport)
    assert report.actual.backend == "stub"
    for backend in ("torch", "jax"):
        assert_golden(experiment(), path, backend=backend, updates=4)


def test_a_run_that_parts_from_its_golden_trace_fails_with_words(path: Path) -> None:
    other = experiment(optimizer=mb.optimizers.SGD(learning_rate=0.1, momentum=0.1))
    error = assert_raises(
        MatchError,
        lambda: assert_golden(other, path, backend="torch"),
        "line on torch",
        f"in {path}",
        "First divergence: loss at update 3: recorded ",
        "2 of 4 losses moved, most at update ",
        "2 of 2 parameters moved by the end: ",
        "pytest --update-golden",
    )
    assert isinstance(error, AssertionError)
    before = path.read_bytes()
    assert_raises(MatchError, lambda: assert_golden(experiment(), path, updates=3), "updates: recorded with 4")
    assert path.read_bytes() == before
    assert_raises(GoldenFileError, lambda: assert_golden(experiment(), path.with_name("other.json")), "there is no")


def test_updating_runs_the_backend_that_recorded(path: Path) -> None:
    """An update asked for on another backend rewrites from the recording one, then holds the other against it.

    A port that broke is not written down as golden.
    """
    before = path.read_bytes()
    assert_golden(experiment(), path, backend="torch", update=True)
    assert path.read_bytes() == before
    moved = experiment(optimizer=mb.optimizers.SGD(learning_rate=0.05))
    change = assert_golden(moved, path, backend="torch", update=True)
    assert isinstance(change, golden.Change)
    assert change.written
    assert golden.load(path).backend == "stub"
    golden.save(golden.record(experiment("torch", "jax"), "torch", updates=4), path)
    before = path.read_bytes()
    broken = experiment("torch", "jax", loss=wrong_on("jax"))
    assert_raises(
        MatchError,
        lambda: assert_golden(broken, path, backend="jax", update=True),
        "First divergence: loss at update 1",
    )
    assert path.read_bytes() == before


def test_a_new_file_is_recorded_on_the_backend_asked_for(tmp_path: Path) -> None:
    """Of twenty updates unless told otherwise."""
    for backend in ("torch", None):
        path = tmp_path / f"{backend}.json"
        change = assert_golden(experiment("torch", "jax"), path, backend=backend, update=True)
        assert isinstance(change, golden.Change)
        assert (change.golden.backend, change.golden.updates) == ("torch", 20)
        assert np.isfinite(change.golden.history["loss"]).all()
