"""`multibackend record`: a golden trace is written, held, rewritten; each mistake is one message."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from multibackend.cli.main import main

EXPERIMENT = '''
"""A line on three backends."""
import numpy as np
import multibackend as mb

def build_torch():
    import torch
    return torch.nn.Linear(2, 1)

def build_flax(rngs):
    from flax import nnx
    return nnx.Linear(2, 1, rngs=rngs)

def build_stub():
    from multibackend_stub.backend import Linear
    return Linear(2, 1)

def experiment(*, learning_rate: float = 0.1, updates: int = 100) -> mb.Experiment:
    """A line.

    Args:
        learning_rate: of SGD.
        updates: when the rate reaches zero.
    """
    x = np.random.default_rng(0).normal(size=(20, 2))
    rate = mb.schedules.WarmupCosine(peak=learning_rate, warmup=1, total=updates)
    return mb.Experiment(
        name="line",
        model=mb.Model(torch=build_torch, jax=build_flax, stub=build_stub, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=rate),
        train_data={"x": x, "y": x @ np.array([[1.0], [2.0]])},
        micro_batch_size=2,
        gradient_accumulation_steps=2,
    )
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "line.py"
    path.write_text(EXPERIMENT)
    return str(path)


def test_a_trace_is_written_and_held_by_every_backend(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision and number of updates are the recorded ones, also where experiment() has a flag of that name."""
    path = tmp_path / "golden" / "line.json"
    recorded = ["record", file, "--backend", "stub", "--updates", "6", "--precision", "float64"]
    assert main([*recorded, "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: written\n  the first trace, for there was none\n"
    rate = json.loads(path.read_text())["history"][5]["learning_rate"]
    assert abs(rate - 0.05 * (1 + math.cos(0.8 * math.pi))) < 1e-15  # of a run of 6 updates
    for backend in ("stub", "torch", "jax"):
        assert main(["record", file, "--check", str(path), "--backend", backend]) == 0
        assert f"line on {backend}" in (printed := capsys.readouterr().out)
        assert "matches the golden trace of stub" in printed
    assert main(["record", file, "--check", str(path)]) == 0
    assert "line on stub" in (printed := capsys.readouterr().out)
    assert "bit for bit" in printed
    assert main([*recorded, "--output", str(path)]) == 0
    assert "nothing moved beyond rounding, left as it is" in capsys.readouterr().out


def test_a_run_that_parts_exits_with_1(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first divergence with update and both values; recording anew says what moved."""
    path = str(tmp_path / "line.json")
    arguments = ["record", file, "--backend", "stub", "--updates", "3"]
    assert main([*arguments, "--output", path]) == 0
    capsys.readouterr()
    assert main(["record", file, "--check", path, "--learning-rate", "0.2"]) == 1
    printed = capsys.readouterr().out
    assert "does NOT match the golden trace of stub" in printed
    assert "First divergence: learning_rate at update 2: recorded 0.1, now 0.2" in printed
    assert main([*arguments, "--learning-rate", "0.2", "--output", path]) == 0
    assert "learning_rate at update 2: recorded 0.1, now 0.2" in capsys.readouterr().out
    assert main(["record", file, "--check", path, "--learning-rate", "0.2"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FILE"], "say where: --output GOLDEN writes a trace, --check GOLDEN checks one"),
        (["FILE", "--check", "nowhere.json"], "there is no golden file 'nowhere.json'"),
        (["FILE", "--check", "FILE"], "is no golden file"),
        (["FILE", "--output", "OUT", "--updates", "0"], "must be >= 1, got 0"),
        (["FILE", "--output", "OUT", "--backend", "tensorflow"], "no backend is called 'tensorflow'"),
        (["nowhere.py", "--output", "OUT"], "there is no file 'nowhere.py'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], words: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    out = tmp_path / "out.json"
    names = {"FILE": file, "OUT": str(out)}
    assert main(["record", *(names.get(argument, argument) for argument in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_help_shows_the_options(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", file, "--help"])
    printed = capsys.readouterr().out
    for option in ("--output GOLDEN", "--check GOLDEN", "--updates", "--learning-rate"):
        assert option in printed
