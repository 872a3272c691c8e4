"""Metrics against numpy on both backends: weighted over the whole set, whatever the batch size."""

import numpy as np
import pytest
from support import flax_models, torch_models

import multibackend as mb
from multibackend.metrics import Accuracy, Custom, MeanAbsoluteError, Perplexity, TopKAccuracy
from multibackend.testing import assert_arrays_match
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


def classifier(data: dict, backend: str, precision: str) -> mb.Trainer:
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_classifier, jax=flax_classifier, inputs="x"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data,
        micro_batch_size=5,
        precision=precision,
        metrics=METRICS,
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
