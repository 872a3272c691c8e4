"""Metrics that are no mean, against scikit-learn and numpy, on every backend and for every batch size."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from support.variants import SCAN, STUB, TORCH

import multibackend as mb
from multibackend.errors import CapabilityError, ConfigurationError, DataError, PackageNotInstalledError
from multibackend.metrics import F1, R2, RMSE, ROCAUC, Accuracy, CalibrationError, Custom
from multibackend.testing import Variant, assert_arrays_match
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW

RANDOM = np.random.default_rng(11)
CLASSES = 4
WEIGHT = RANDOM.normal(size=(CLASSES, 3))
START = {"weight": WEIGHT, "bias": np.zeros(CLASSES)}
N = 37
SEQUENCES = {
    "x": RANDOM.normal(size=(N, 2, 3)),
    "label": RANDOM.integers(0, CLASSES, size=(N, 2)),
    "w": RANDOM.uniform(0.5, 2, size=N) * (RANDOM.uniform(size=N) < 0.8),
}
SEQUENCES["label"][RANDOM.uniform(size=(N, 2)) < 0.2] = -100
BATCH_SIZES = (1, 5, N)


def linear(size: int) -> mb.Model:
    def build_torch() -> Any:
        import torch  # noqa: PLC0415

        return torch.nn.Linear(3, size)

    def build_flax(rngs: Any) -> Any:
        from flax import nnx  # noqa: PLC0415

        return nnx.Linear(3, size, rngs=rngs)

    return mb.Model(torch=build_torch, jax=build_flax, inputs="x")


def evaluated(backend: str, data: dict, start: dict, loss: Any, metrics: tuple) -> list[dict[str, float]]:
    """The results for each batch size."""
    experiment = mb.Experiment(
        model=linear(len(start["bias"])),
        loss=loss,
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data,
        micro_batch_size=5,
        precision="float64",
        metrics=metrics,
    )
    trainer = mb.Trainer(experiment, backend)
    trainer.load_parameters(start)
    return [trainer.evaluate(batch_size=size) for size in BATCH_SIZES]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def calibration(p: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int) -> float:
    """The definition, bin by bin."""
    confidence, hits = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            w = weights[inside]
            gap = abs(np.average(hits[inside], weights=w) - np.average(confidence[inside], weights=w))
            total += w.sum() * gap
    return total / weights.sum()


def of_classes(weighted: bool) -> tuple[Any, ...]:
    weights = "w" if weighted else None
    scores = {average: F1(target="label", average=average, weights=weights, name=average) for average in AVERAGES}
    return (
        *scores.values(),
        ROCAUC(target="label", weights=weights),
        CalibrationError(target="label", bins=7, weights=weights),
    )


AVERAGES = ("macro", "micro", "weighted")


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("weighted", [False, True])
def test_several_classes(backend: str, weighted: bool) -> None:
    """Of logits [batch, tokens, classes], with ignored labels, weights of examples and a ragged last batch."""
    labels = SEQUENCES["label"].reshape(-1)
    weights = np.repeat(SEQUENCES["w"], 2) if weighted else np.ones(2 * N)
    used = (labels != -100) & (weights > 0)
    z = (SEQUENCES["x"] @ WEIGHT.T).reshape(-1, CLASSES)[used]
    labels, weights = labels[used], weights[used]
    expected = {
        average: sklearn.metrics.f1_score(labels, z.argmax(1), average=average, sample_weight=weights)
        for average in AVERAGES
    }
    expected["roc_auc"] = sklearn.metrics.roc_auc_score(labels, softmax(z), multi_class="ovr", sample_weight=weights)
    expected["calibration_error"] = calibration(softmax(z), labels, weights, 7)
    loss = mb.losses.CrossEntropy(target="label")
    for found in evaluated(backend, SEQUENCES, START, loss, of_classes(weighted)):
        assert_arrays_match({name: found[name] for name in expected}, expected, relative=FORMULA)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_two_classes_with_one_logit(backend: str) -> None:
    """One logit for each label 0 or 1."""
    data = {"x": RANDOM.normal(size=(N, 3)), "label": RANDOM.integers(0, 2, size=(N, 1))}
    start = {"weight": WEIGHT[:1], "bias": np.zeros(1)}
    z = (data["x"] @ WEIGHT[:1].T)[:, 0]
    labels = data["label"][:, 0]
    p = 1 / (1 + np.exp(-z))
    metrics = (
        F1(target="label", average="binary"),
        F1(target="label", average="macro", threshold=0.3, name="raised"),
        ROCAUC(target="label"),
        CalibrationError(target="label"),
    )
    expected = {
        "f1": sklearn.metrics.f1_score(labels, z > 0),
        "raised": sklearn.metrics.f1_score(labels, z > 0.3, average="macro"),
        "roc_auc": sklearn.metrics.roc_auc_score(labels, z),
        "calibration_error": calibration(np.stack([1 - p, p], axis=1), labels, np.ones(N), 15),
    }
    loss = mb.losses.BinaryCrossEntropy(target="label")
    for found in evaluated(backend, data, start, loss, metrics):
        assert_arrays_match({name: found[name] for name in expected}, expected, relative=FORMULA)


def correlation(outputs: np.ndarray, batch: dict[str, np.ndarray]) -> float:
    assert set(batch) == {"y"}
    return float(np.corrcoef(outputs[:, 0], batch["y"][:, 0])[0, 1])


@pytest.mark.parametrize("variant", [TORCH, SCAN, STUB], ids=str)
def test_regression(variant: Variant) -> None:
    """R² by columns about a target with a large mean, weighted too, and a number of the whole set."""
    data = {"x": RANDOM.normal(size=(N, 3)), "w": RANDOM.uniform(0, 2, size=N)}
    data["y"] = data["x"] @ WEIGHT[:2].T + RANDOM.normal(size=(N, 2)) + 1e3
    metrics = (
        R2(target="y"),
        R2(target="y", weights="w", name="weighted"),
        Custom(correlation, over="set", reads="y", mode="max"),
        Custom(lambda outputs, batch: np.median(np.abs(outputs - batch["y"])), over="set", name="median"),
    )
    start = {"weight": WEIGHT[:2], "bias": np.full(2, 1e3)}
    trainer = variant.trainer(variant.experiment(data, eval_data=data, metrics=metrics), start)
    outputs = data["x"] @ WEIGHT[:2].T + 1e3
    expected = {
        "r2": sklearn.metrics.r2_score(data["y"], outputs),
        "weighted": sklearn.metrics.r2_score(data["y"], outputs, sample_weight=data["w"]),
        "correlation": np.corrcoef(outputs[:, 0], data["y"][:, 0])[0, 1],
        "median": np.median(np.abs(outputs - data["y"])),
    }
    for size in BATCH_SIZES:
        found = trainer.evaluate(batch_size=size)
        assert_arrays_match({name: found[name] for name in expected}, expected, relative=ONE_WINDOW)
    result = trainer.fit(updates=2, evaluate_every=1, best="correlation")
    assert (result.best.mode, result.best.metric) == ("max", "correlation")
    assert result.best.value == max(evaluation.metrics["correlation"] for evaluation in result.evaluations)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_root_mean_square(backend: str) -> None:
    data = {"x": RANDOM.normal(size=(N, 3)), "w": RANDOM.uniform(0, 2, size=N), "y": RANDOM.normal(size=(N, CLASSES))}
    metrics = (RMSE(target="y"), RMSE(target="y", weights="w", name="weighted"))
    outputs = data["x"] @ WEIGHT.T
    expected = {
        "rmse": sklearn.metrics.root_mean_squared_error(data["y"].reshape(-1), outputs.reshape(-1)),
        "weighted": math.sqrt(np.average(((outputs - data["y"]) ** 2).mean(axis=1), weights=data["w"])),
    }
    for found in evaluated(backend, data, START, mb.losses.MeanSquaredError(target="y"), metrics):
        assert_arrays_match({name: found[name] for name in expected}, expected, relative=FORMULA)


def test_what_cannot_be_computed_says_why() -> None:
    """A class that is missing, one that is none, wrong arguments, and a function that gives no number."""
    loss = mb.losses.CrossEntropy(target="label")
    one_class = {**SEQUENCES, "label": np.zeros((N, 2), np.int64)}
    with pytest.raises(DataError, match=r"no label 1 in 'label'"):
        evaluated("torch", one_class, START, loss, (ROCAUC(target="label"),))
    with pytest.raises(DataError, match=r"binary.*for two classes, the outputs have 4"):
        evaluated("torch", SEQUENCES, START, loss, (F1(target="label", average="binary"),))
    with pytest.raises(DataError, match=r"label 9 in 'other' is outside \[0, 4\)"):
        evaluated("torch", {**SEQUENCES, "other": np.full((N, 2), 9)}, START, loss, (F1(target="other"),))
    with pytest.raises(DataError, match=r"'accuracy': the target 'x' must hold integer labels, got float64"):
        evaluated("torch", SEQUENCES, START, loss, (Accuracy(target="x"),))
    with pytest.raises(DataError, match="must return one number for the whole set, got ndarray"):
        evaluated("torch", SEQUENCES, START, loss, (Custom(lambda o, b: o, over="set", name="all"),))
    with pytest.raises(ConfigurationError, match=r"average must be one of 'macro'.*did you mean 'macro'"):
        F1(target="label", average="marco")
    with pytest.raises(ConfigurationError, match=r"numpy arrays"):
        Custom({"torch": len}, over="set", name="a")
    nothing = {**SEQUENCES, "label": np.full((N, 2), -100)}
    for metric in (F1(target="label"), ROCAUC(target="label"), CalibrationError(target="label")):
        assert math.isnan(evaluated("torch", nothing, START, loss, (metric,))[0][metric.name])


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ROCAUC needs it, and says so when it is made."""

    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(PackageNotInstalledError, match=r"pip install 'multibackend\[metrics\]'"):
        ROCAUC(target="label")
    F1(target="label")


def test_a_backend_without_collected_outputs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": RANDOM.normal(size=(N, 3)), "y": RANDOM.normal(size=(N, 2))}
    trainer = STUB.trainer(STUB.experiment(data, eval_data=data, metrics=(R2(target="y"),)))
    monkeypatch.setattr(trainer.program, "evaluate", lambda state, batch: (1.0, 1.0))
    with pytest.raises(CapabilityError, match="does not collect outputs, which these metrics need: 'r2'"):
        trainer.evaluate()


@pytest.mark.parametrize("metric", [F1(target="label", weights="w"), CalibrationError(target="label", weights="w")])
@pytest.mark.parametrize("variant", [TORCH, SCAN], ids=str)
def test_negative_weights_are_refused(variant: Variant, metric: Any) -> None:
    """They would be left out in silence."""
    data = {**SEQUENCES, "w": -1.0 - SEQUENCES["w"]}
    with pytest.raises(DataError, match="'w'"):
        evaluated(variant.backend, data, START, mb.losses.CrossEntropy(target="label"), (metric,))
