"""Checkpoints with right digests whose contents do not fit the run: refused alike on both backends, never accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.resume_models import experiment

import multibackend as mb
from multibackend.checkpoint import Contents, newest_checkpoint, read_checkpoint, write_checkpoint
from multibackend.errors import CheckpointError, CheckpointWarning, ResumeError
from multibackend.training.saving.restore import open_run, restore

BACKENDS = ("torch", "jax")
Change = Callable[[Contents], dict[str, Any]]


def without(contents: Contents, group: str, name: str = "") -> dict[str, Any]:
    """All but a group of tensors, or one tensor of it."""
    tensors = {key: dict(arrays) for key, arrays in contents.tensors.items()}
    if name:
        del tensors[group][name]
    else:
        del tensors[group]
    return {"tensors": tensors}


def changed(group: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """One tensor of a group made another."""

    def make(contents: Contents) -> dict[str, Any]:
        tensors = {key: dict(arrays) for key, arrays in contents.tensors.items()}
        tensors[group][name] = change(tensors[group][name])
        return {"tensors": tensors}

    return make


def stated(name: str, value: Any) -> Change:
    """One entry of the state made another, an object by what it gets."""

    def make(contents: Contents) -> dict[str, Any]:
        before = contents.state[name]
        return {"state": {**contents.state, name: {**before, **value} if isinstance(value, Mapping) else value}}

    return make


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def longer(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


def tall(array: np.ndarray) -> np.ndarray:
    return array[None]


# what is changed in a run that stands after one micro-batch of a window of three, the error, its words
REFUSED: dict[str, tuple[Change, type[CheckpointError], str]] = {
    "average missing": (lambda c: without(c, "ema"), ResumeError, "ema: stem.weight is missing in the checkpoint"),
    "average of one missing": (lambda c: without(c, "ema", "head.bias"), ResumeError, "ema: head.bias is missing"),
    "average flat": (changed("ema", "stem.weight", flat), CheckpointError, "ema has stem.weight of the shape (15,)"),
    "moment missing": (
        lambda c: without(c, "optimizer", "exp_avg/head.bias"),
        ResumeError,
        "optimizer exp_avg: head.bias is missing",
    ),
    "moments missing": (lambda c: without(c, "optimizer"), ResumeError, "optimizer: its state has []"),
    "moment longer": (
        changed("optimizer", "exp_avg/head.bias", longer),
        CheckpointError,
        "(4,), which itself has (2,)",
    ),
    "moment whole": (changed("optimizer", "exp_avg/head.bias", lambda a: a.astype(int)), ResumeError, "int64"),
    "statistic missing": (
        lambda c: without(c, "model_state", "norm.running_mean"),
        ResumeError,
        "model_state: norm.running_mean is missing",
    ),
    "parameters flat": (
        changed("parameters", "stem.weight", flat),
        CheckpointError,
        "stem.weight of the shape (5, 3), which",
    ),
    "parameter missing": (lambda c: without(c, "parameters", "head.bias"), CheckpointError, "holds no run"),
    "sum longer": (
        changed("window", "accumulator/head.bias", longer),
        CheckpointError,
        "window/accumulator has head.bias",
    ),
    "statistics of the window": (
        changed("window", "model_state/norm.running_mean", longer),
        CheckpointError,
        "window/model",
    ),
    "terms": (changed("window", "totals", lambda a: np.ones((1, 2))), CheckpointError, "sums have the shapes"),
    "window done": (lambda c: {"micro_batches": 3}, ResumeError, "3 of its micro-batches are done"),
    "window more than done": (lambda c: {"micro_batches": 10**8}, ResumeError, "100000000 of its micro-batches"),
    "offset": (stated("data", {"offset": 10**15}), CheckpointError, "at example 1000000000000000 of an epoch of 26"),
    "offset of 31 digits": (stated("data", {"offset": 10**30}), CheckpointError, "should be a whole number"),
    "epoch": (stated("data", {"epoch": 10**30}), CheckpointError, "should be a whole number"),
    "epoch not reached": (stated("data", {"epoch": 10**15}), CheckpointError, "in epoch 1000000000000000 after 3"),
    "update": (lambda c: {"update": 10**15}, CheckpointError, "update 1000000000000000 in its manifest, 1 in its"),
    "updates": (
        lambda c: {"update": 10**15, **stated("schedule", {"update": 10**15})(c)},
        CheckpointError,
        "at most 2147483646",
    ),
    "history": (changed("history", "loss", longer), CheckpointError, "columns of its history have the lengths"),
    "history of two axes": (changed("history", "loss", tall), CheckpointError, "not one axis"),
    "shares of two axes": (changed("history", "gradient_shares", tall), CheckpointError, "not one axis"),
    "terms of the history": (stated("history", {"terms": [["loss"]]}), CheckpointError, "should be a str"),
    "loss scale": (
        lambda c: {"state": {**c.state, "loss_scale": {"scale": 0.0, "updates": 0}}},
        CheckpointError,
        "no loss scale",
    ),
    "probes": (stated("experiment", {"learning_rate": {"law": 0, "probes": 5}}), ResumeError, "learning_rate: "),
    "layers": (stated("randomness", {"dropout_layers": [[]]}), CheckpointError, "should be a str"),
    "kinds": (stated("kinds", {"stem.weight": []}), CheckpointError, "should be a str"),
}


@pytest.fixture(scope="module", params=BACKENDS)
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[mb.Trainer, Contents]:
    """A run inside a window, and what a checkpoint of it holds; the trainer serves all cases, for one compilation."""
    trainer = mb.Trainer(experiment(), request.param)
    trainer.fit(micro_batches=4)
    path = trainer.save(tmp_path_factory.mktemp("run") / "begun")
    return trainer, read_checkpoint(path)


def take_up(trainer: mb.Trainer, path: Path) -> None:
    run = trainer._run
    restore(run.plan, run.program, run.loop, run.state, open_run(path))


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit(case: str, begun: tuple[mb.Trainer, Contents], tmp_path: Path) -> None:
    """The type, and what is wrong, whatever the backend."""
    trainer, contents = begun
    change, kind, words = REFUSED[case]
    path = write_checkpoint(tmp_path / "bad", replace(contents, **change(contents)))
    with pytest.raises(CheckpointError) as refusal:
        take_up(trainer, path)
    assert type(refusal.value) is kind
    assert words in str(refusal.value)


def test_what_was_not_changed_is_taken_up(begun: tuple[mb.Trainer, Contents], tmp_path: Path) -> None:
    """So that the refusals above are for what was changed."""
    trainer, contents = begun
    take_up(trainer, write_checkpoint(tmp_path / "good", contents))
    assert trainer.fit(updates=4).updates == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_goes_back_to_what_can_be_read(backend: str, tmp_path: Path) -> None:
    """A newest checkpoint that no reader could read is no newest one, whatever its digests say."""
    from support.forgery import forge, tensor_file  # noqa: PLC0415

    mb.Trainer(experiment(), backend, run_dir=tmp_path, checkpointing=mb.Checkpointing(every=1)).fit(updates=1)
    head = {
        "a": {"dtype": "U8", "shape": [0, 2**62], "data_offsets": [0, 0]},
        "b": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
    }
    text = None
    for shape, data in (([0, 2**62], b"\1"), ([0], b"\2")):
        head["a"]["shape"] = shape
        files = {"parameters.safetensors": tensor_file(head, data)}
        forge(tmp_path / "checkpoints" / "update-00000003", files, text)
        with pytest.warns(CheckpointWarning, match="parameters.safetensors"):
            assert newest_checkpoint(tmp_path).name == "update-00000001"
        with pytest.warns(CheckpointWarning, match="passed over"):
            resumed = mb.Trainer(experiment(), backend, run_dir=tmp_path, resume="auto")
        assert resumed.snapshot().update == 1
