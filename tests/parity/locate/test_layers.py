"""Batch statistics and dropout on both backends, and `compare` on models that match and that do not."""

import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from support import flax_models, torch_models

import multibackend as mb
from multibackend.testing import assert_arrays_match, assert_raises
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import FORMULA, MANY_UPDATES, ONE_WINDOW

DATA = regression(24)


def experiment(layers: str = "linear", **options: object) -> mb.Experiment:
    defaults: dict = {
        "model": mb.Model(torch=torch_models.MODELS[layers], jax=flax_models.NNX[layers], inputs="x"),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.AdamW(learning_rate=0.05),
        "train_data": DATA,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "precision": "float64",
    }
    return mb.Experiment(**{**defaults, **options})


def test_batch_norm_in_training() -> None:
    """Losses, parameters and running means agree; the variances by the factor n / (n - 1) that differences.md names."""
    trainers = [mb.Trainer(experiment("batch_norm"), backend) for backend in ("torch", "jax")]
    start = trainers[0].parameters()
    trainers[1].load_parameters(start)
    histories = [trainer.fit(epochs=3).history["loss"] for trainer in trainers]
    assert_arrays_match(histories[1], histories[0], relative=MANY_UPDATES, what="loss")
    assert_arrays_match(trainers[1].parameters(), trainers[0].parameters(), relative=MANY_UPDATES)
    torch_state, jax_state = (trainer.snapshot().model_state for trainer in trainers)
    assert_arrays_match(
        jax_state["norm.running_mean"], torch_state["norm.running_mean"], relative=ONE_WINDOW, what="running mean"
    )
    kept = 0.9**18  # what is left of the initial 1 after 18 micro-batches
    unbiased = kept + (jax_state["norm.running_var"] - kept) * 4 / 3
    assert_arrays_match(unbiased, torch_state["norm.running_var"], relative=ONE_WINDOW, what="running variance")


class TorchMask(torch.nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.scale, self.drop = torch.nn.Parameter(torch.ones(())), torch.nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x) * self.scale


class FlaxMask(nnx.Module):
    def __init__(self, rate: float, rngs: nnx.Rngs) -> None:
        self.scale, self.drop = nnx.Param(jax.numpy.ones(())), nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop(x) * self.scale[...]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_dropout_law(backend: str) -> None:
    """In training an element is 0 or 1 / (1 - rate), with the right frequency; in evaluation it is itself."""
    rate, size, windows = 0.2, 4000, 8
    ones = {"x": np.ones((windows, size))}
    masked = experiment(
        model=mb.Model(torch=functools.partial(TorchMask, rate), jax=functools.partial(FlaxMask, rate), inputs="x"),
        loss=lambda xp, outputs, batch: outputs,
        optimizer=mb.optimizers.SGD(learning_rate=0.0),
        train_data=ones,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
    )
    trainer = mb.Trainer(masked, backend)
    losses = trainer.fit(epochs=1).history["loss"]
    kept = losses * (1 - rate) * size  # how many elements of each window survived
    assert_arrays_match(kept, np.round(kept), relative=FORMULA, what="survivors")
    deviation = np.sqrt(size * windows * rate * (1 - rate))
    assert abs(kept.sum() - size * windows * (1 - rate)) < 5 * deviation
    assert len(set(kept.tolist())) > 1
    assert_arrays_match(trainer.evaluate(ones)["loss"], 1.0, relative=FORMULA)


def test_compare_matches() -> None:
    """Two frameworks, one experiment: the same losses and parameters in float64."""
    report = mb.compare(experiment(eval_data=DATA), updates=10)
    assert report.matches, report.first_divergence
    assert report.max_relative_difference < MANY_UPDATES
    assert report.max_loss_difference < MANY_UPDATES
    assert_arrays_match(report.evaluations[1], report.evaluations[0], relative=MANY_UPDATES)


class Gelu(torch.nn.Module):
    """torch's default GELU, with erf; flax's is the approximation with tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(self.head(x))


class FlaxGelu(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(self.head(x))


def test_compare_finds_the_first_difference() -> None:
    """Models that differ in the definition of GELU part at the first update, after the last layer."""
    report = mb.compare(experiment(model=mb.Model(torch=Gelu, jax=FlaxGelu, inputs="x")), updates=5)
    assert not report.matches
    assert report.first_divergence is not None
    found = report.first_divergence
    assert (found.stage, found.update, found.what) == ("activations", 1, "")
    assert found.place == "after head, at the end of the model"
    untraced = mb.compare(experiment(model=mb.Model(torch=Gelu, jax=FlaxGelu, inputs="x")), updates=5, trace=False)
    assert untraced.first_divergence is not None
    assert (untraced.first_divergence.update, untraced.first_divergence.what) == (1, "loss")


def test_compare_needs_pairs() -> None:
    """Parameters that do not pair up are an error that names them and the remedy."""
    wide = mb.Model(torch=functools.partial(torch.nn.Linear, 3, 2), jax=functools.partial(nnx.Linear, 3, 4), inputs="x")
    other = mb.Model(torch=torch_models.linear, jax=functools.partial(flax_models.Mlp, 3, 4, 2), inputs="x")
    # outputs of another shape are found before any parameter is paired
    assert_raises(mb.errors.DataError, lambda: mb.compare(experiment(model=wide), updates=1), "(4, 4)", "(4, 2)")
    assert_raises(
        mb.errors.ParameterMatchError,
        lambda: mb.compare(experiment(model=other), updates=1),
        "layers.0.weight",
        "rename",
    )


def test_more_than_ten_layers_keep_their_places() -> None:
    """Layers 2 and 10 are not confused: names and values of twelve layers cross over and come back."""

    class Deep(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    class TorchDeep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(12)])
            self.head = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    deep = experiment(model=mb.Model(torch=TorchDeep, jax=Deep, inputs="x"), eval_data=DATA)
    trainers = [mb.Trainer(deep, backend) for backend in ("torch", "jax")]
    trainers[1].load_parameters(trainers[0].parameters())
    losses = [trainer.evaluate()["loss"] for trainer in trainers]
    assert_arrays_match(losses[1], losses[0], relative=ONE_WINDOW)
