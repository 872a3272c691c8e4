"""`multibackend predict`: what trained weights return, to a file; and `--initial`, where a run starts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from multibackend.cli.main import main

EXPERIMENT = """
import numpy as np
import multibackend as mb

UPDATES = 3

def build_torch():
    import torch
    return torch.nn.Linear(2, 2)

def build_flax(rngs):
    from flax import nnx
    return nnx.Linear(2, 2, rngs=rngs)

def experiment(*, held_out: bool = True) -> mb.Experiment:
    x = np.random.default_rng(0).normal(size=(10, 2))
    data = {"x": x, "y": x @ np.array([[1.0, 0.5], [2.0, 1.0]])}
    return mb.Experiment(
        name="plane",
        model=mb.Model(torch=build_torch, jax=build_flax, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        eval_data=data if held_out else None,
        micro_batch_size=4,
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An experiment file, and the directory of a run of torch's that began at the values of the jax builder."""
    directory = tmp_path_factory.mktemp("predict")
    file = directory / "plane.py"
    file.write_text(EXPERIMENT)
    assert main(["train", str(file), "--initial", "jax", "--run-dir", str(directory / "run")]) == 0
    return str(file), directory / "run"


def test_the_log_has_the_start_that_the_flag_names(run: tuple[str, Path]) -> None:
    lines = [json.loads(line) for line in (run[1] / "log.jsonl").read_text().splitlines()]
    assert next(line for line in lines if line["event"] == "FitStarted")["initial"] == "jax"


def test_every_format_and_both_backends(
    run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation data, batches with a ragged last one: the same numbers from either backend in each format."""
    file, run_dir = run
    for backend, name in (("torch", "o.npz"), ("jax", "o.safetensors"), ("torch", "o.csv")):
        arguments = ["predict", file, "--backend", backend, "--run", str(run_dir), "--output", str(tmp_path / name)]
        assert main(arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"plane on {backend} output shape type values" in printed
        assert "output [10, 2] float32" in printed
    with np.load(tmp_path / "o.npz") as content:
        outputs = content["output"]
    np.testing.assert_allclose(load_file(tmp_path / "o.safetensors")["output"], outputs, rtol=1e-5, atol=1e-6)
    with (tmp_path / "o.csv").open() as content:
        rows = list(csv.reader(content))
    assert rows[0] == ["output.0", "output.1"]
    np.testing.assert_array_equal(np.array(rows[1:], np.float32), outputs)


def test_data_of_ones_own(run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields by name, or the one array; only what the model reads is asked for."""
    file, run_dir = run
    x = np.ones((5, 2))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    weights = str(run_dir / "weights.safetensors")
    for name in ("x.npy", "x.npz"):
        arguments = ["predict", file, "--no-held-out", "--weights", weights, "--data", str(tmp_path / name)]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "[5, 2]" in printed
        assert "nothing written; --output FILE keeps them" in printed


def test_mistakes_are_told(run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run_dir = run
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "z.npz", z=np.ones(3))
    for arguments, words in (
        ([], "give the weights: --run-dir DIR"),
        (["--run", str(run_dir), "--output", "o.txt"], "--output must end with one of .npz, .safetensors, .csv"),
        (["--run", str(run_dir), "--data", "x.csv"], "--data must end with one of"),
        (["--run", str(run_dir), "--data", "no.npz"], "there are no data at 'no.npz'"),
        (["--run", str(run_dir), "--data", str(tmp_path / "bad.npz")], "cannot be read as .npz"),
        (["--run", str(run_dir), "--data", str(tmp_path / "z.npz")], "no field 'x', which the model's inputs needs"),
        (["--run", str(run_dir), "--no-held-out"], "give the data, --data FILE"),
        (["--run", str(run_dir), "--part", "cls"], "the model returns one array"),
    ):
        assert main(["predict", file, *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_start_that_is_none_is_refused(run: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", run[0], "--initial", "jaxx"]) == 2
    assert "did you mean 'jax'?" in capsys.readouterr().err
