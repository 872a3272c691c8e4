"""Files of weights: of any writer, in bfloat16 too, and what is none is refused alike on both backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from support.forgery import DATA, header, tensor_file
from support.resume_models import experiment

import multibackend as mb
from multibackend.errors import DataError, FileError, MultibackendError, ParameterMatchError
from multibackend.testing import assert_bit_identical, assert_raises
from multibackend.weights import convert_weights, load_weights, save_weights

BACKENDS = ("torch", "jax")


@pytest.fixture(scope="module", params=BACKENDS)
def trainer(request: pytest.FixtureRequest) -> mb.Trainer:
    return mb.Trainer(experiment(), request.param)


def test_bfloat16(trainer: mb.Trainer, tmp_path: Path) -> None:
    """Written and read by ours and by safetensors' own: each number is the bfloat16 one, exactly."""
    save_weights(trainer.snapshot(), tmp_path / "own")
    metadata = {"parameters": json.dumps(sorted(trainer.parameters()))}
    halves = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype.kind == "f" else array
        for name, array in load_file(tmp_path / "own").items()
    }
    save_file(halves, tmp_path / "theirs", metadata=metadata)
    load_weights(trainer, tmp_path / "theirs")
    expected = {name: halves[name].astype(np.float64) for name in trainer.parameters()}
    assert_bit_identical(trainer.parameters(), expected)


def test_flattened_weights(trainer: mb.Trainer, tmp_path: Path) -> None:
    """Nothing tells the order of the elements: refused, and the trainer is as it was."""
    before = trainer.parameters()
    flat = {name: array.reshape(-1) for name, array in before.items()}
    for arrays in (flat, {**before, "stem.weight": flat["stem.weight"]}):
        save_file(arrays, tmp_path / "flat", metadata={"parameters": json.dumps(sorted(before))})
        assert_raises(
            ParameterMatchError, lambda: load_weights(trainer, tmp_path / "flat"), "lie flat", "stem.weight (15,)"
        )
        assert_raises(ParameterMatchError, lambda arrays=arrays: trainer.load_parameters(arrays), "lie flat")
    assert_bit_identical(trainer.parameters(), before)


def test_a_bias_of_heads_beside_its_matrix_is_none() -> None:
    """An attention's [heads, features] of flax against [heads * features]: both lie beside a matrix."""

    class Heads(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.query = nnx.LinearGeneral(4, (2, 3), rngs=rngs)

        def __call__(self, x: object) -> object:
            return self.query(x).reshape(-1, 6)

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = torch.nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query(x)

    given = mb.Experiment(
        model=mb.Model(torch=Flat, jax=Heads, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data={"x": np.ones((4, 4)), "y": np.ones((4, 6))},
        micro_batch_size=2,
    )
    first, second = mb.Trainer(given, "torch"), mb.Trainer(given, "jax")
    second.load_parameters(first.parameters())
    assert second.parameters()["query.bias"].size == 6


NO_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (lambda path: None, "there are no weights"),
    "a directory": (lambda path: path.mkdir(), "not a regular file"),
    "empty": (lambda path: path.write_bytes(b""), "too short"),
    "a pickle": (lambda path: torch.save({"a": torch.ones(2)}, path), "header would take"),
    "cut off": (lambda path: path.write_bytes(tensor_file(header())[:-1]), "47 follow"),
    "nested": (lambda path: path.write_bytes(tensor_file(b"[" * 100_000, b"")), "nested"),
    "nested metadata": (lambda path: save(path, "[" * 100_000), "nested"),
    "a number": (lambda path: save(path, "5"), "no list of names"),
    "numbers": (lambda path: save(path, "[5]"), "no list of names"),
    "unhashable": (lambda path: save(path, "[[]]"), "no list of names"),
    "float8": (lambda path: path.write_bytes(tensor_file(header(dtype="F8_E4M3"))), "F8_E4M3"),
    "shape": (
        lambda path: path.write_bytes(
            tensor_file({**header(), "c": {"dtype": "U8", "shape": [0, 2**62], "data_offsets": [48, 48]}}, DATA)
        ),
        "no array can have it",
    ),
}


def save(path: Path, parameters: str) -> None:
    save_file({"a": np.ones(2)}, path, metadata={"parameters": parameters})


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_are_no_weights(case: str, trainer: mb.Trainer, tmp_path: Path) -> None:
    make, words = NO_WEIGHTS[case]
    make(tmp_path / "file")
    error = assert_raises(DataError, lambda: load_weights(trainer, tmp_path / "file"), words)
    assert isinstance(error, MultibackendError)


def test_weights_that_cannot_be_written(trainer: mb.Trainer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_raises(FileError, lambda: save_weights(trainer.snapshot(), tmp_path / "file" / "below"), "cannot be written")


def test_outputs_of_other_shapes_are_not_compared(tmp_path: Path) -> None:
    """As a metric they would be broadcast to one shape, and a model that is none be said to agree."""

    class Line(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.line = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x: object) -> object:
            return self.line(x)[:, 0]

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x)

    given = mb.Experiment(
        model=mb.Model(torch=Module, jax=Line, inputs="x"),
        loss=mb.losses.Custom(lambda xp, outputs, batch: xp.reshape(outputs, (-1,)) ** 2),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data={"x": np.ones((4, 3))},
        micro_batch_size=2,
    )
    torch.save(Module().state_dict(), tmp_path / "weights.pt")
    assert_raises(
        ParameterMatchError,
        lambda: convert_weights(given, tmp_path / "weights.pt", tmp_path / "out.safetensors"),
        "(2, 1)",
        "(2,)",
    )
