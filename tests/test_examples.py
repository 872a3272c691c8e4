"""The example files do what they say: both backends match, and the loss falls."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.variants import QUICK

import multibackend as mb

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKENDS = ("torch", "jax")

# the sizes that keep a test quick
SMALL: dict[str, dict[str, Any]] = {
    "linear_regression": {},
    "token_lm": {"vocabulary": 50, "width": 16, "sequences": 200, "learning_rate": 1e-2},
    "digits": {"micro_batch_size": 16, "updates": 10},
    "port": {},
    "char_gpt": {"sequence_length": 16, "width": 16, "heads": 2, "updates": 10, "learning_rate": 1e-2},
}


def load(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    elsewhere = {"transformers_twins"}  # tests/parity/test_transformers.py, where the library is installed
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL) | elsewhere


@pytest.mark.parametrize("name", SMALL)
def test_both_backends_match_and_learn(name: str) -> None:
    """In float64, to the bounds of the contract; and the loss of the last updates is below the first."""
    executions = QUICK if name in ("digits", "port") else None  # tests/golden runs these two as they are
    report = mb.compare(load(name).experiment(**SMALL[name]), updates=10, precision="float64", executions=executions)
    assert report.matches, report.first_divergence
    assert report.max_relative_difference <= 1e-9
    for history in report.histories:
        assert history["loss"][-3:].mean() < history["loss"][0]


def test_an_untied_gpt_matches_too() -> None:
    untied = load("char_gpt").experiment(**SMALL["char_gpt"], tied=False)
    report = mb.compare(untied, updates=3, precision="float64", executions=QUICK)
    assert report.matches, report.first_divergence
    assert "head.weight" in report.parameter_differences


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_regression_gives_the_published_losses(backend: str) -> None:
    """The mean loss of each epoch, divided by 40.

    The published draw of the data cannot be had, so the bands are what other draws give: those of the seeds 0 to 199,
    trained by ten lines of numpy, lie within 0.908-1.037, 0.968-1.059 and 0.904-1.234 of the published figures.
    """
    module = load("linear_regression")
    history = mb.Trainer(module.experiment(), backend).fit(epochs=module.EPOCHS).history
    assert len(history) == module.UPDATES
    epochs = [history["loss"][history["epoch"] == epoch].mean() / 40 for epoch in range(module.EPOCHS)]
    np.testing.assert_allclose(epochs, [0.5309, 0.1944, 0.0716], rtol=1e-3)  # the figures in the file
    ratios = np.array(epochs) / [0.5434, 0.1914, 0.0675]
    assert (ratios > [0.908, 0.968, 0.904]).all()
    assert (ratios < [1.037, 1.059, 1.234]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_forty_examples_are_ten_times_four(backend: str, precision: str, tolerance: float) -> None:
    """Accumulation changes nothing: losses and parameters are those of one large batch."""
    experiment = load("linear_regression").experiment
    runs = []
    for size, steps in ((4, 10), (40, 1)):
        described = experiment(micro_batch_size=size, gradient_accumulation_steps=steps).replace(precision=precision)
        trainer = mb.Trainer(described, backend)
        runs.append((trainer.fit(epochs=3).history["loss"], trainer.parameters()))
    (losses, parameters), (expected_losses, expected) = runs
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance, atol=0)
    for name, array in expected.items():
        np.testing.assert_allclose(parameters[name], array, rtol=tolerance, atol=0)


def test_token_lm_has_padding_of_uneven_length() -> None:
    labels = load("token_lm").experiment().train_data.take(np.arange(100))["labels"]
    lengths = (labels != -100).sum(axis=1)
    assert lengths.min() < 12
    assert lengths.max() == 20
    for row, length in zip(labels, lengths, strict=True):
        assert (row[length:] == -100).all()


def test_digits_are_recognised() -> None:
    """The default run, in float32: at least 97 % of the held-out images on both backends, and the runs match."""
    module = load("digits")
    report = mb.compare(module.experiment(), updates=module.UPDATES)
    assert report.matches, report.first_divergence
    for evaluation in report.evaluations:
        assert evaluation["accuracy"] >= 0.97


def test_a_trained_gpt_writes_the_same_on_both_backends(capsys: pytest.CaptureFixture[str]) -> None:
    """It samples through the model itself: from the same start, the same draws of the same logits."""
    module = load("char_gpt")
    described = module.experiment(**SMALL["char_gpt"]).replace(precision="float64", initial="torch")
    written = []
    for backend in BACKENDS:
        trainer = mb.Trainer(described, backend)
        trainer.fit(updates=3)
        written.append(module.sample(trainer, length=24))
        logits = trainer.predict({"tokens": module.make_data(16)["tokens"][:4]})
        assert logits.shape == (4, 16, len(module.ALPHABET))
    assert written[0] == written[1]
    module.after(trainer)
    printed = capsys.readouterr().out
    assert printed.startswith(written[0])
    assert len(printed) == len("The ") + 300 + 1
