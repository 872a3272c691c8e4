"""What newcomers get wrong, on every backend: each is a typed error or a warning that names the repair."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from sklearn.metrics import accuracy_score
from support.variants import QUICK, STUB

import multibackend as mb
from multibackend import losses, optimizers
from multibackend.cli.main import main
from multibackend.core.precision import PRECISIONS
from multibackend.errors import (
    BackendNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
    DataError,
    OutputsWarning,
    UserCodeError,
)

RANDOM = np.random.default_rng(4)
N = 16
DATA = {"x": RANDOM.normal(size=(N, 3)), "k": np.arange(N) % 4, "y": (np.arange(N) % 2)[:, None].astype(float)}
CROSS_ENTROPY = losses.CrossEntropy(target="k")
BINARY = losses.BinaryCrossEntropy(target="y")


def net(end: Callable[[Any], Any] | None = None, size: int = 4) -> Any:
    """A linear layer and what comes behind it, in torch."""
    layer = torch.nn.Linear(3, size)
    return layer if end is None else torch.nn.Sequential(layer, end)


def flax_net(end: Callable[[Any], Any], size: int = 4) -> Callable[..., Any]:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layer = nnx.Linear(3, size, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return end(self.layer(x))

    return Net


def experiment(**changes: Any) -> mb.Experiment:
    options: dict[str, Any] = {
        "model": mb.Model(torch=net, jax=flax_net(lambda z: z), inputs="x"),
        "loss": CROSS_ENTROPY,
        "optimizer": optimizers.SGD(learning_rate=0.1),
        "train_data": DATA,
        "micro_batch_size": 8,
    }
    return mb.Experiment(**{**options, **changes})


def trainer(backend: str, **changes: Any) -> mb.Trainer:
    return mb.Trainer(experiment(**changes), backend, execution=QUICK.get(backend, "auto"))


def label(value: object) -> str:
    """A name without an address, which differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:40]


@pytest.mark.parametrize(
    "module",
    [torch.nn.Linear(4, 1), nnx.Linear(4, 1, rngs=nnx.Rngs(0)), flax.linen.Dense(1), torch.nn.ReLU()],
    ids=lambda module: type(module).__module__.partition(".")[0] + type(module).__name__,
)
def test_a_module_is_no_builder(module: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"torch=lambda: {type(module).__name__}\(\.\.\.\).*rngs=rngs"):
        mb.Model(torch=module, inputs="x")


@pytest.mark.parametrize(
    ("given", "repair"),
    [
        (torch.nn.MSELoss(), "mb.losses.MeanSquaredError(target=...)"),
        (torch.nn.CrossEntropyLoss(), "mb.losses.CrossEntropy(target=...)"),
        (torch.nn.BCEWithLogitsLoss, "mb.losses.BinaryCrossEntropy(target=...)"),
        (torch.nn.functional.cross_entropy, "mb.losses.CrossEntropy(target=...)"),
        (torch.nn.functional.mse_loss, "mb.losses.MeanSquaredError(target=...)"),
        (optax.softmax_cross_entropy_with_integer_labels, "mb.losses.CrossEntropy(target=...)"),
        (optax.squared_error, "mb.losses.MeanSquaredError(target=...)"),
        (optax.huber_loss, "mb.losses.Huber(target=...)"),
        (losses.Huber, "mb.losses.Huber(target=...)"),
        ("mse", "mb.losses.MeanSquaredError(target=...)"),
        ("accuracy", "metrics=mb.metrics.Accuracy(...)"),
        (torch.nn.CTCLoss(), "mb.losses has BinaryCrossEntropy, CrossEntropy, Custom"),
        (lambda outputs, batch: outputs, "function (xp, outputs, batch)"),
    ],
    ids=label,
)
def test_a_framework_s_loss(given: Any, repair: str) -> None:
    """By its name, as one loss or as a term."""
    for loss in (given, {"a": given}):
        with pytest.raises(ConfigurationTypeError) as caught:
            experiment(loss=loss)
        assert repair in str(caught.value)


@pytest.mark.parametrize(
    ("given", "repair"),
    [
        ("adam", "mb.optimizers.Adam(learning_rate=...)"),
        (torch.optim.SGD, "mb.optimizers.SGD(learning_rate=...)"),
        (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), "mb.optimizers.AdamW(learning_rate=...)"),
        (functools.partial(torch.optim.RMSprop, lr=0.1), "mb.optimizers.RMSprop(learning_rate=...)"),
        (optax.sgd, "mb.optimizers.SGD(learning_rate=...)"),
        (optax.sgd(0.1), "mb.optimizers.Native takes a framework's own"),
        (optimizers.Lion, "mb.optimizers.Lion(learning_rate=...)"),
        ("lbfgs", "mb.optimizers has SGD, "),
    ],
    ids=label,
)
def test_a_framework_s_optimizer(given: Any, repair: str) -> None:
    with pytest.raises(ConfigurationTypeError) as caught:
        experiment(optimizer=given)
    assert repair in str(caught.value)


@pytest.mark.parametrize(
    ("given", "repair"),
    [
        ("accuracy", "mb.metrics.Accuracy(target=...)"),
        (["auc"], "mb.metrics.ROCAUC(target=...)"),
        ([accuracy_score], "mb.metrics.Accuracy(target=...); mb.metrics.Custom takes functions"),
        (mb.metrics.F1, "mb.metrics.F1(target=...)"),
        (["bleu"], "mb.metrics has F1, "),
    ],
    ids=label,
)
def test_a_word_for_a_metric(given: Any, repair: str) -> None:
    with pytest.raises(ConfigurationTypeError) as caught:
        experiment(metrics=given)
    assert repair in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(
    ("labels", "repair"),
    [
        (DATA["k"].astype(np.float32), r"whole numbers: pass data\['k'\].astype\(np.int64\)"),
        (DATA["k"][:, None].astype(float), r"pass data\['k'\]\[:, 0\].astype\(np.int64\)"),
        (DATA["k"][:, None], r"pass data\['k'\]\[:, 0\]"),
        (np.eye(4)[DATA["k"]], r"one-hot: pass data\['k'\].argmax\(1\)"),
        (np.eye(4, dtype=int)[DATA["k"]], r"one-hot: pass data\['k'\].argmax\(1\)"),
        (np.full((N, 4), 0.3), r"probabilities of classes are no labels.*argmax\(1\)"),
        (RANDOM.normal(size=N), "not whole are no classes: MeanSquaredError"),
    ],
    ids=["floats", "a column of floats", "a column", "one-hot", "integer one-hot", "soft", "numbers"],
)
def test_labels_that_are_none(backend: str, labels: np.ndarray, repair: str) -> None:
    with pytest.raises(DataError, match=repair):
        trainer(backend, train_data={**DATA, "k": labels})


def softmax_in_a_dict(z: Any) -> Any:
    return {"cls": torch.softmax(z, -1)} if isinstance(z, torch.Tensor) else {"cls": nnx.softmax(z)}


class InADict(torch.nn.Module):
    """A softmax among several outputs."""

    def forward(self, z: Any) -> Any:
        return softmax_in_a_dict(z)


SQUASHED = {
    "softmax": (torch.nn.Softmax(-1), nnx.softmax, CROSS_ENTROPY, r"each row of 4 sums to 1 within \d.*drop it"),
    "picked": (InADict(), softmax_in_a_dict, losses.CrossEntropy(target="k", output="cls"), r"\(output='cls'\) takes"),
    "sigmoid": (torch.nn.Sigmoid(), nnx.sigmoid, BINARY, r"all 8 outputs .* lie between 0\.\d+ and 0\.\d+, as prob"),
}


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", SQUASHED)
def test_probabilities_where_a_loss_takes_logits(backend: str, kind: str) -> None:
    """One warning with figures, at the run's first `fit`, at the line that calls it."""
    end, flax_end, loss, words = SQUASHED[kind]
    size = 1 if kind == "sigmoid" else 4
    model = mb.Model(torch=lambda: net(end, size), jax=flax_net(flax_end, size), inputs="x")
    run = trainer(backend, model=model, loss=loss)
    with pytest.warns(OutputsWarning, match=words) as caught:
        run.fit(updates=1)
    assert [warning.filename for warning in caught] == [__file__]
    run.fit(updates=2)  # and not again, or the test fails


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["nothing", "log softmax", "tanh", "another loss"])
def test_no_warning_without_probabilities(backend: str, kind: str) -> None:
    """Of logits and their like; a model that ends in a linear layer is not even run for it."""
    ends: dict[str, Any] = {
        "nothing": (None, lambda z: z, CROSS_ENTROPY),
        "log softmax": (torch.nn.LogSoftmax(-1), nnx.log_softmax, CROSS_ENTROPY),
        "tanh": (torch.nn.Tanh(), nnx.tanh, CROSS_ENTROPY),
        "another loss": (torch.nn.Sigmoid(), nnx.sigmoid, losses.MeanSquaredError(target="y")),
    }
    end, flax_end, loss = ends[kind]
    size = 1 if kind == "another loss" else 4
    model = mb.Model(torch=lambda: net(end, size), jax=flax_net(flax_end, size), inputs="x")
    run = trainer(backend, model=model, loss=loss)
    assert run.program.info.nonlinear_outputs in (((),) if kind == "nothing" else (("",), ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.fit(updates=1)


class Forgetful(nnx.Module):
    """A dropout layer without random numbers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.layer(x))


@pytest.mark.parametrize("builder", [lambda: nnx.Linear(3, 4), Forgetful], ids=["layer", "dropout"])  # pyright: ignore
def test_forgotten_random_numbers(builder: Callable[..., Any]) -> None:
    with pytest.raises(UserCodeError, match=r"lacks its random numbers.*jax=lambda rngs: Net\(rngs=rngs\)"):
        trainer("jax", model=mb.Model(jax=builder, inputs="x")).fit(updates=1)


def test_fit_takes_names() -> None:
    run = STUB.trainer(STUB.experiment({"x": DATA["x"], "y": DATA["x"][:, :2]}))
    with pytest.raises(ConfigurationTypeError, match=r"got 5 without one; write fit\(updates=5\) or fit\(epochs=5\)"):
        run.fit(5)  # pyright: ignore
    assert "updates" in inspect.signature(run.fit).parameters


@pytest.mark.parametrize(("name", "meant"), [("flax", "jax"), ("optax", "jax"), ("Flax", "jax"), ("pytorch", "torch")])
def test_a_framework_s_name_for_a_backend(name: str, meant: str) -> None:
    with pytest.raises(BackendNotFoundError, match=f"did you mean '{meant}'"):
        mb.Trainer(experiment(), name)


def test_help_lists_every_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["train", "--help"]))
    assert ", ".join(PRECISIONS) in " ".join(capsys.readouterr().out.split())
