"""What was trained can be used: outputs, the model itself and gradients, and looking changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from multibackend_stub.backend import Linear
from support import resume_models
from support.variants import QUICK, STUB

import multibackend as mb
from multibackend.errors import CapabilityError, ConfigurationError, ConfigurationTypeError, DataError
from multibackend.protocol import Predicts
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import ONE_WINDOW, ONE_WINDOW_FLOAT32

BACKENDS = ("torch", "jax")
DATA = resume_models.data()


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request: pytest.FixtureRequest) -> mb.Trainer:
    """BatchNorm, portable dropout, an average; after two windows, one of them short of nothing."""
    trainer = mb.Trainer(resume_models.experiment(eval_data=DATA), request.param)
    trainer.fit(updates=2)
    return trainer


def loss_of(outputs: np.ndarray) -> float:
    weights = DATA["w"][:, None]
    return float((weights * (outputs - DATA["y"]) ** 2).sum() / (weights.sum() * outputs.shape[1]))


def called(model: Any, x: np.ndarray) -> np.ndarray:
    """What the native model returns for float64 inputs."""
    if isinstance(model, torch.nn.Module):
        return model(torch.from_numpy(x)).detach().numpy()
    with jax.enable_x64(True):
        return np.array(model(jnp.asarray(x)))


def test_predictions_are_what_the_evaluation_is_made_of(trained: mb.Trainer) -> None:
    """Whatever the batch size, from a dict with only the inputs, from one array, and from eval_data."""
    outputs = trained.predict({"x": DATA["x"]})
    assert outputs.shape == (26, 2)
    assert outputs.dtype == np.float64
    expected = trained.evaluate()["loss"]
    assert_arrays_match(loss_of(outputs), expected, relative=ONE_WINDOW, what="loss")
    assert_arrays_match(trained.predict(DATA["x"], batch_size=26), outputs, relative=ONE_WINDOW, what="in one batch")
    assert_arrays_match(trained.predict(), outputs, relative=0.0, what="of eval_data")
    averaged = loss_of(trained.predict(DATA, ema=True))
    assert_arrays_match(averaged, trained.evaluate(ema=True)["loss"], relative=ONE_WINDOW, what="average")


def test_the_model_is_a_trained_copy_in_evaluation_mode(trained: mb.Trainer) -> None:
    outputs = trained.predict(DATA)
    model = trained.model
    assert_arrays_match(called(model, DATA["x"]), outputs, relative=ONE_WINDOW, what="the native model")
    before = trained.snapshot()
    if isinstance(model, torch.nn.Module):
        assert not any(part.training for part in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    else:
        with jax.enable_x64(True):
            nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    assert_bit_identical(trained.snapshot().parameters, before.parameters, what="the run's parameters")


@pytest.mark.parametrize("backend", BACKENDS)
def test_looking_changes_nothing(backend: str) -> None:
    """A run that is looked at between and inside windows ends in the bits of one that is not."""
    ends = []
    for looks in (False, True):
        trainer = mb.Trainer(resume_models.experiment(), backend, execution=QUICK.get(backend, "auto"))
        models = []
        for micro_batches in (3, 5, 9):
            trainer.fit(micro_batches=micro_batches)
            if looks:
                trainer.predict(DATA, ema=True)
                trainer.gradients()
                models.append((trainer.model, trainer.predict(DATA)))
        trainer.fit(updates=5)
        for model, outputs in models:  # training on does not reach a copy
            assert_arrays_match(called(model, DATA["x"]), outputs, relative=ONE_WINDOW, what="an earlier model")
        ends.append(trainer.snapshot())
    assert_bit_identical(ends[0].parameters, ends[1].parameters, what="parameters")
    assert_bit_identical(ends[0].model_state, ends[1].model_state, what="statistics")
    assert_bit_identical(ends[0].ema, ends[1].ema, what="average")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_next_update(backend: str) -> None:
    """Before any window, inside one, and of the short last window of an epoch: the norm that the update reports."""
    trainer = mb.Trainer(resume_models.experiment(), backend)
    for updates, micro_batches in ((1, 0), (2, 4), (3, 6)):
        if micro_batches:
            trainer.fit(micro_batches=micro_batches)
        gradients = trainer.gradients()
        norm = np.sqrt(sum(np.square(array).sum() for array in gradients.values()))
        reported = trainer.fit(updates=updates).history[-1].grad_norm
        assert_arrays_match(norm, reported, relative=ONE_WINDOW, what=f"update {updates}")
    assert gradients.keys() == trainer.parameters().keys()


def test_gradients_of_given_data_match_across_backends() -> None:
    """One window of all of them, in canonical layout: alike from one start, and zeros where a group is frozen."""
    frozen = [mb.optimizers.Group("head.*", frozen=True)]
    optimizer = mb.optimizers.SGD(learning_rate=0.1, groups=frozen)
    described = resume_models.experiment(initial="torch", optimizer=optimizer, ema_decay=None)
    found = [mb.Trainer(described, backend).gradients(DATA) for backend in BACKENDS]
    for name, array in found[0].items():
        assert_arrays_match(found[1][name], array, relative=ONE_WINDOW, what=name)
        assert bool(array.any()) != name.startswith("head")


@dataclass
class Answer:
    heads: dict[str, Any]
    pair: tuple[Any, Any]
    scale: Any
    note: str = "kept"


class TorchHeads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Answer:
        y = self.body(x)
        return Answer({"cls": y, "wide": y.repeat(1, 2)}, (y.argmax(-1), y + 1), y.sum())


class LinenHeads(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> Answer:
        y = linen.Dense(2, name="body")(x)
        return Answer({"cls": y, "wide": jnp.tile(y, (1, 2))}, (y.argmax(-1), y + 1), y.sum())


def heads_experiment(**options: Any) -> mb.Experiment:
    return mb.Experiment(
        model=mb.Model(torch=TorchHeads, jax=LinenHeads, inputs="x"),
        loss=lambda xp, outputs, batch: ((outputs.heads["cls"] - batch["y"]) ** 2).mean(-1),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=DATA,
        micro_batch_size=4,
        **options,
    )


@pytest.fixture(scope="module", params=BACKENDS)
def heads(request: pytest.FixtureRequest) -> mb.Trainer:
    """A model that returns a dataclass with one output that is no row per example."""
    return mb.Trainer(heads_experiment(), request.param)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_precision_reaches_into_dataclasses(backend: str) -> None:
    """A loss sees float32 whatever holds the outputs; so does whoever predicts."""
    trainer = mb.Trainer(heads_experiment(precision="bf16"), backend, execution=QUICK.get(backend, "auto"))
    assert np.isfinite(trainer.fit(updates=1).history[0].loss)
    assert trainer.predict(DATA, "heads.cls").dtype == np.float32


def test_a_part_of_the_outputs_is_picked_by_its_path(heads: mb.Trainer) -> None:
    logits = heads.predict(DATA, output="heads.cls")
    assert logits.dtype == np.float32
    classes = heads.predict(DATA, output="pair.0")  # integers are what the framework has them: int64, or int32
    assert_bit_identical(classes.astype(np.int64), logits.argmax(-1).astype(np.int64), what="classes")
    both = heads.predict(DATA, output="heads")
    assert list(both) == ["cls", "wide"]
    assert_bit_identical(both["wide"], np.tile(logits, (1, 2)), what="a dict of arrays")


def test_an_output_that_is_no_row_per_example_is_refused(heads: mb.Trainer) -> None:
    with pytest.raises(DataError, match=r"output 'scale' has the shape \[\] for a batch of 4 .*output='heads.cls'"):
        heads.predict(DATA)
    with pytest.raises(DataError, match="output 'scale'"):
        heads.predict(DATA, output="scale")


def test_a_single_batch_keeps_the_structure(heads: mb.Trainer) -> None:
    """The program's own answer: the user's class, arrays in numpy, what is no array as it was."""
    assert isinstance(heads.program, Predicts)
    answer = heads.program.predict(heads.state.program_state, {"x": DATA["x"][:4]})
    assert isinstance(answer, Answer)
    assert isinstance(answer.scale, np.ndarray)
    assert answer.note == "kept"


def test_a_bound_linen_module_is_the_model(heads: mb.Trainer) -> None:
    x = DATA["x"].astype(np.float32)
    given = torch.from_numpy(x) if heads.backend == "torch" else jnp.asarray(x)
    returned = heads.model(given).heads["cls"]
    outputs = np.asarray(returned.detach() if heads.backend == "torch" else returned)
    assert_arrays_match(outputs, heads.predict(DATA, "heads.cls"), relative=ONE_WINDOW_FLOAT32, what="the model")


def test_what_is_wrong_is_told(trained: mb.Trainer) -> None:
    with pytest.raises(DataError, match="no field 'x', which the model's inputs needs; it has 'y'"):
        trained.predict({"y": DATA["y"]})
    with pytest.raises(ConfigurationError, match="batch_size must be >= 1"):
        trained.predict(DATA, batch_size=0)
    with pytest.raises(ConfigurationTypeError, match="output must be a path"):
        trained.predict(DATA, output=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="output='cls' picks a part, but the model returns one array"):
        trained.predict(DATA, output="cls")
    with pytest.raises(DataError, match="empty"):
        trained.predict({"x": DATA["x"][:0]})


def test_from_a_checkpoint_on_the_other_backend(trained: mb.Trainer, tmp_path: Path) -> None:
    other = BACKENDS[1 - BACKENDS.index(trained.backend)]
    path = trained.save(tmp_path / "saved")
    resumed = mb.Trainer.resume(path, resume_models.experiment(eval_data=DATA), backend=other)
    assert_arrays_match(resumed.predict(DATA), trained.predict(DATA), relative=ONE_WINDOW, what="outputs")
    assert resumed.initial == "native"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", ["rematerialize", "window", "frozen"])
def test_the_model_is_free_of_what_the_run_put_into_it(backend: str, option: str) -> None:
    options: dict[str, Any] = {"rematerialize": True} if option == "rematerialize" else {"batch_statistics": option}
    trainer = mb.Trainer(resume_models.experiment(**options), backend, execution=QUICK.get(backend, "auto"))
    trainer.fit(updates=1)
    model = trainer.model
    assert_arrays_match(called(model, DATA["x"]), trainer.predict(DATA), relative=ONE_WINDOW, what="outputs")
    if isinstance(model, torch.nn.Module):
        assert type(model) is resume_models.TorchNet
        assert not model.norm._forward_pre_hooks
        assert model.norm.momentum == 0.1
        with pytest.raises(ConfigurationError, match="train the model with a Trainer"):
            model.train()(torch.from_numpy(DATA["x"]))  # rather than one mask for ever
    else:
        assert type(model) is resume_models.NnxNet


def test_the_stub_predicts_and_says_what_it_does_not_do() -> None:
    data = regression(10)
    trainer = STUB.trainer(STUB.experiment(data))
    parameters = trainer.parameters()
    expected = data["x"] @ parameters["weight"].T + parameters["bias"]
    assert_arrays_match(trainer.predict({"x": data["x"]}), expected, relative=ONE_WINDOW, what="outputs")
    assert isinstance(STUB.experiment(data).model.builder("stub")(), Linear)
    with pytest.raises(CapabilityError, match="does not hand out its model"):
        _ = trainer.model
    with pytest.raises(CapabilityError, match="gradient of a window"):
        trainer.gradients()
