"""Metrics against numpy on both backends: weighted over the whole set, whatever the batch size."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, mean_absolute_error, mean_squared_error, top_k_accuracy_score
from support import flax_models, torch_models

import multibackend as mb
import multibackend.training.evaluation
from multibackend.cli.tables import metric_blocks
from multibackend.core.text import write_text
from multibackend.errors import ConfigurationError, DataError
from multibackend.loggers.jsonl import read_log
from multibackend.metrics import (
    Accuracy,
    ConfusionMatrix,
    Custom,
    MeanAbsoluteError,
    MeanSquaredError,
    Perplexity,
    TopKAccuracy,
)
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.tolerances import FEW_UPDATES_FLOAT32, FORMULA

RANDOM = np.random.default_rng(5)
W = RANDOM.normal(size=(160, 3))
TOKENS = {"x": RANDOM.normal(size=(23, 4, 3)), "label": RANDOM.integers(0, 160, size=(23, 4)).astype(np.uint8)}
TOKENS["label"][0, 0] = 156  # the bits of -100
PADDED = {**TOKENS, "label": np.where(RANDOM.uniform(size=(23, 4)) < 0.4, -100, TOKENS["label"].astype(np.int64))}
METRICS = (Accuracy(target="label"), TopKAccuracy(target="label", k=40), Perplexity(target="label"))


def torch_classifier() -> object:
    import torch  # noqa: PLC0415

    return torch.nn.Linear(3, 160)


def flax_classifier(rngs: object) -> object:
    from flax import nnx  # noqa: PLC0415

    return nnx.Linear(3, 160, rngs=rngs)


def classifier(data: dict, backend: str, precision: str, metrics: tuple = METRICS) -> mb.Trainer:
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_classifier, jax=flax_classifier, inputs="x"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data,
        micro_batch_size=5,
        precision=precision,
        metrics=metrics,
    )
    trainer = mb.Trainer(experiment, backend)
    trainer.load_parameters({"weight": W, "bias": np.zeros(160)})
    return trainer


def by_hand(data: dict) -> dict[str, float]:
    labels = data["label"].astype(int)
    used = labels != -100
    logits = (data["x"] @ W.T)[used]
    labels = labels[used]
    chosen = logits[np.arange(len(labels)), labels]
    entropy = np.log(np.exp(logits).sum(axis=1)) - chosen
    rank = (logits > chosen[:, None]).sum(axis=1)
    return {
        "loss": float(entropy.mean()),
        "accuracy": float((rank == 0).mean()),
        "top_k_accuracy": float((rank < 40).mean()),
        "perplexity": float(np.exp(entropy.mean())),
    }


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("data", [TOKENS, PADDED], ids=["all", "padded"])
def test_classification(data: dict, backend: str) -> None:
    """Loss, accuracy, top-k accuracy and perplexity, with a ragged last batch and labels that weigh nothing."""
    trainer = classifier(data, backend, "float64")
    for batch_size in (None, 23):
        assert_arrays_match(trainer.evaluate(batch_size=batch_size), by_hand(data), relative=FORMULA)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_classification_in_float32(backend: str) -> None:
    """The same in float32, where JAX has no 64-bit integers."""
    assert_arrays_match(
        classifier(PADDED, backend, "float32").evaluate(), by_hand(PADDED), relative=FEW_UPDATES_FLOAT32
    )


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_regression_and_custom(backend: str) -> None:
    """Mean absolute error, and metrics written by the user: with weights, and one native function per backend."""
    data = {"x": RANDOM.normal(size=(11, 3)), "y": RANDOM.normal(size=(11, 2)), "w": RANDOM.uniform(0, 2, size=11)}
    metrics = (
        MeanAbsoluteError(target="y"),
        Custom(name="bias", function=lambda xp, outputs, batch: (outputs - batch["y"], batch["w"])),
        Custom(name="hits", function=lambda xp, outputs, batch: xp.abs(outputs - batch["y"]) < 1),
        Custom(name="native", function={"torch": lambda o, b: o.square(), "jax": lambda o, b: o**2}),
    )
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_models.linear, jax=flax_models.linear, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        micro_batch_size=4,
        precision="float64",
        metrics=metrics,
    )
    trainer = mb.Trainer(experiment, backend)
    p = trainer.parameters()
    outputs = data["x"] @ p["weight"].T + p["bias"]
    residual = outputs - data["y"]
    expected = {
        "loss": (residual**2).mean(),
        "mean_absolute_error": np.abs(residual).mean(),
        "bias": (residual * data["w"][:, None]).sum() / (2 * data["w"].sum()),
        "hits": (np.abs(residual) < 1).mean(),
        "native": (outputs**2).mean(),
    }
    assert_arrays_match(trainer.evaluate(data), expected, relative=FORMULA)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("data", [TOKENS, PADDED], ids=["all", "padded"])
def test_confusion_matrix(data: dict, precision: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of the whole set as scikit-learn's, whatever the batch size, also where sums are read on the way."""
    matrix = ConfusionMatrix(target="label", classes=160)
    trainer = classifier(data, backend, precision, (matrix, Accuracy(target="label")))
    labels = data["label"].astype(int)
    used = labels != -100
    predicted = (data["x"] @ W.T).argmax(axis=-1)
    expected = confusion_matrix(labels[used], predicted[used], labels=range(160))
    for floats in (2**22, 160 * 160):
        monkeypatch.setattr(multibackend.training.evaluation, "_MOST_UNREAD_FLOATS", floats)
        for batch_size in (1, 5, 23):
            found = trainer.evaluate(batch_size=batch_size)
            assert_bit_identical(found["confusion_matrix"], expected.astype(np.int64), what="counts")
            accuracy = np.trace(expected) / expected.sum()
            assert_arrays_match(found["accuracy"], float(accuracy), relative=FEW_UPDATES_FLOAT32)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_top_k_as_scikit_learn(backend: str) -> None:
    """The share of labels among the k largest logits."""
    metrics = tuple(TopKAccuracy(target="label", k=k, name=f"top_{k}") for k in (1, 7, 160))
    found = classifier(TOKENS, backend, "float64", metrics).evaluate()
    logits, labels = (TOKENS["x"] @ W.T).reshape(-1, 160), TOKENS["label"].reshape(-1)
    for k in (1, 7):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(160))
        assert_arrays_match(found[f"top_{k}"], float(expected), relative=FORMULA)
    assert found["top_160"] == 1.0


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_residuals_with_weights(backend: str) -> None:
    """Mean absolute and mean squared error as scikit-learn's, plain and with a weight for each example."""
    data = {"x": RANDOM.normal(size=(11, 3)), "y": RANDOM.normal(size=(11, 2)), "w": RANDOM.uniform(0, 2, size=11)}
    data["w"][3:6] = 0.0
    metrics = (
        MeanAbsoluteError(target="y"),
        MeanSquaredError(target="y"),
        MeanAbsoluteError(target="y", weights="w", name="mae"),
        MeanSquaredError(target="y", weights="w", name="mse"),
    )
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_models.linear, jax=flax_models.linear, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y", weights="w"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data,
        micro_batch_size=4,
        precision="float64",
        metrics=metrics,
    )
    trainer = mb.Trainer(experiment, backend)
    p = trainer.parameters()
    outputs = data["x"] @ p["weight"].T + p["bias"]
    expected = {
        "loss": mean_squared_error(data["y"], outputs, sample_weight=data["w"]),
        "mean_absolute_error": mean_absolute_error(data["y"], outputs),
        "mean_squared_error": mean_squared_error(data["y"], outputs),
        "mae": mean_absolute_error(data["y"], outputs, sample_weight=data["w"]),
        "mse": mean_squared_error(data["y"], outputs, sample_weight=data["w"]),
    }
    for batch_size in (1, 4, 11):
        assert_arrays_match(trainer.evaluate(batch_size=batch_size), expected, relative=FORMULA)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_confusion_matrix_that_does_not_fit(backend: str) -> None:
    """Logits of another number of classes, and labels that are no class, are errors that say so."""
    trainer = classifier(TOKENS, backend, "float64", (ConfusionMatrix(target="label", classes=10),))
    with pytest.raises(DataError, match="have 160 classes on their last axis, the metric classes=10"):
        trainer.evaluate()
    strange = {**TOKENS, "other": np.where(TOKENS["label"] == TOKENS["label"][0, 0], 200, TOKENS["label"])}
    trainer = classifier(strange, backend, "float64", (ConfusionMatrix(target="other", classes=160),))
    with pytest.raises(DataError, match=r"label 200 in 'other' is outside \[0, 160\)"):
        trainer.evaluate()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_no_label_at_all(backend: str) -> None:
    """Where every label is ignored a mean is NaN, the perplexity too, and all counts are 0."""
    nothing = {**TOKENS, "label": np.full((23, 4), -100)}
    metrics = (*METRICS, ConfusionMatrix(target="label", classes=160))
    found = classifier(TOKENS, backend, "float64", metrics).evaluate(nothing)
    assert np.isnan([found[name] for name in ("loss", "accuracy", "top_k_accuracy", "perplexity")]).all()
    assert found["confusion_matrix"].sum() == 0


def test_arguments_of_metrics() -> None:
    """Wrong arguments are refused at construction, and a field that is missing is named."""
    with pytest.raises(ConfigurationError, match="classes must be >= 2, got 1"):
        ConfusionMatrix(target="label", classes=1)
    with pytest.raises(ConfigurationError, match="mode must be one of 'min', 'max'"):
        Custom(name="bias", function=lambda xp, outputs, batch: outputs, mode="down")
    with pytest.raises(ConfigurationError, match="weights must be the name of a field"):
        MeanSquaredError(target="y", weights=3)
    with pytest.raises(ConfigurationError, match="eval_data has no field 'v', which the metric 'mean_squared_error'"):
        classifier(TOKENS, "torch", "float64", (MeanSquaredError(target="x", weights="v"),))


def test_an_array_is_shown_logged_and_compared(tmp_path: Path) -> None:
    """The log holds its numbers, the terminal its rows, a comparison its shape and the largest difference."""
    data = {"x": TOKENS["x"][:, 0], "label": TOKENS["label"][:, 0] % 2}
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_models.linear, jax=flax_models.linear, inputs="x"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data,
        micro_batch_size=5,
        precision="float64",
        metrics=(ConfusionMatrix(target="label", classes=2),),
    )
    trainer = mb.Trainer(experiment, "torch", run_dir=tmp_path)
    counts = trainer.fit(updates=3, evaluate_every=3).evaluations[0].metrics["confusion_matrix"]
    logged = next(line for line in read_log(tmp_path) if line["event"] == "EvaluationFinished")
    assert logged["metrics"]["confusion_matrix"] == counts.tolist()
    shown = write_text(metric_blocks("held-out", trainer.evaluate()))
    assert f"confusion_matrix:\n{counts}" in shown
    report = str(mb.compare(experiment, updates=3))
    row = next(line for line in report.splitlines() if "held-out confusion_matrix" in line)
    assert row.count("array [2, 2]") == 2
    assert "0.0e+00" in row
