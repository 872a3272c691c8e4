"""A run that is stopped by a signal, and the command that its message names."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from multibackend.checkpoint import list_checkpoints
from multibackend.cli.main import main
from multibackend.testing import assert_bit_identical

EXPERIMENT = '''
import time
import numpy as np
import multibackend as mb

def build_torch():
    import torch
    return torch.nn.Linear(3, 2)

def build_flax(rngs):
    from flax import nnx
    return nnx.Linear(3, 2, rngs=rngs)

class Slow:
    """Examples that take their time, so that a signal comes in the middle."""
    def __init__(self, pause):
        self.pause = pause
    def __len__(self):
        return 22
    def __getitem__(self, index):
        time.sleep(self.pause)
        random = np.random.default_rng(index)
        return {"x": random.normal(size=3), "y": random.normal(size=2)}

def experiment(*, learning_rate: float = 0.05, pause: float = 0.0) -> mb.Experiment:
    """A line.

    Args:
        learning_rate: of AdamW.
        pause: seconds that an example takes.
    """
    return mb.Experiment(
        name="line",
        model=mb.Model(torch=build_torch, jax=build_flax, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.AdamW(learning_rate=learning_rate),
        train_data=Slow(pause),
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        precision="float64",
    )
'''
UPDATES = 60


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "line.py"
    path.write_text(EXPERIMENT)
    return str(path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from multibackend.cli.main import main; sys.exit(main())", *arguments]


def updates(run_dir: Path) -> list[int]:
    log = run_dir / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line["record"]["update"] for line in lines if line["event"] == "UpdateFinished"]


@pytest.mark.parametrize(
    ("backend", "number", "code"),
    [("torch", signal.SIGTERM, 143), ("jax", signal.SIGTERM, 143), ("torch", signal.SIGINT, 130)],
)
def test_a_signal_and_the_command_that_the_message_names(
    backend: str, number: signal.Signals, code: int, file: str, tmp_path: Path
) -> None:
    """The run ends with the exit code of the signal, saved; the named command ends it as if nothing had happened."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped run"
    arguments = ["train", file, "--backend", backend, "--updates", str(UPDATES), "--learning-rate", "0.03"]
    assert main([*arguments, "--run-dir", str(straight)]) == 0
    started = command(*arguments, "--pause", "0.01", "--run-dir", str(stopped))
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not updates(stopped) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        message = process.communicate(timeout=120)[1]
    assert process.returncode == code, message
    assert 0 < len(set(updates(stopped))) < UPDATES
    named = shlex.split(message.strip().splitlines()[-1])
    assert named == ["multibackend", "resume", str(stopped)]
    assert main([*named[1:], "--pause", "0"]) == 0
    assert_bit_identical(load_file(stopped / "weights.safetensors"), load_file(straight / "weights.safetensors"))


def test_resume_on_the_other_backend_and_further(file: str, tmp_path: Path) -> None:
    """`resume --backend` changes the framework, `--updates` the goal; what is not given is as it was."""
    run_dir = tmp_path / "run"
    assert main(["train", file, "--updates", "5", "--run-dir", str(run_dir), "--learning-rate", "0.03"]) == 0
    assert main(["resume", str(run_dir), "--backend", "jax", "--updates", "9"]) == 0
    assert list_checkpoints(run_dir)[-1].name == "update-00000009"
    assert json.loads((run_dir / "run.json").read_text())["options"]["backend"] == "jax"
    assert updates(run_dir) == list(range(1, 10))


def test_mistakes(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run, another experiment, a moved file, a second run in one directory: each error says what to do."""
    run_dir = tmp_path / "run"
    assert main(["resume", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err
    train = ["train", file, "--updates", "2", "--run-dir", str(run_dir)]
    assert main(train) == 0
    capsys.readouterr()
    assert main(train) == 2
    assert "--resume auto" in capsys.readouterr().err
    assert main(["resume", str(run_dir), "--learning-rate", "0.5", "--updates", "4"]) == 2
    told = capsys.readouterr().err
    assert "learning_rate: 0.05 in the checkpoint, 0.5 here" in told
    assert (
        main(["resume", str(run_dir), "--learning-rate", "0.5", "--updates", "4", "--may-differ", "learning_rate"]) == 0
    )
    moved = Path(file).rename(tmp_path / "moved.py")
    assert main(["resume", str(run_dir)]) == 2
    assert "--file FILE" in capsys.readouterr().err
    assert main(["resume", str(run_dir), "--file", str(moved), "--updates", "5"]) == 0
    assert main(["evaluate", str(moved), "--run-dir", str(tmp_path / "none")]) == 2


def test_code_is_run_only_where_it_can_be_told_what_it_is(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run directory may come from anywhere: what it names is run unasked only outside of it and unchanged."""
    run_dir = tmp_path / "run dir"
    assert main(["train", file, "--updates", "2", "--run-dir", str(run_dir)]) == 0
    described = json.loads((run_dir / "run.json").read_text())
    asked = ["resume", str(run_dir), "--updates", "3"]

    def refused(words: str) -> None:
        capsys.readouterr()
        assert main(asked) == 2
        told = capsys.readouterr().err
        assert words in told
        assert f"multibackend resume {shlex.quote(str(run_dir))} --trust" in told
        assert not (run_dir / "planted").exists()

    planted = f"import pathlib\npathlib.Path({str(run_dir / 'planted')!r}).touch()\n" + EXPERIMENT
    (run_dir / "inside.py").write_text(planted)
    (tmp_path / "out.py").symlink_to(run_dir / "inside.py")
    (run_dir / "in.py").symlink_to(file)
    for name in (str(run_dir / "inside.py"), str(tmp_path / "out.py"), str(run_dir / "in.py")):
        (run_dir / "run.json").write_text(json.dumps({**described, "file": name}))
        refused("lies in the run's own directory")
    (run_dir / "run.json").write_text(json.dumps({**described, "digest": ""}))
    refused("its digest was not kept")
    (run_dir / "run.json").write_text(json.dumps(described))
    Path(file).write_text(EXPERIMENT + "\n# changed\n")
    refused("has changed since the run began")
    assert main([*asked, "--trust"]) == 0
    assert main(["resume", str(run_dir), "--updates", "4"]) == 0  # what was trusted is known from then on
    assert main(["resume", str(run_dir), "--updates", "5", "--file", str(run_dir / "inside.py")]) == 0
    assert (run_dir / "planted").exists()


def described(**changes: Any) -> bytes:
    """A run file with those entries made others."""
    fields = {"format": "multibackend run", "version": 1, "file": "a", "file_from_here": "", "flags": [], "options": {}}
    return json.dumps({**fields, **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"format": "\xff"}',
        b"null",
        b"{}",
        described(version=2),
        described(file=5),
        described(file="a\0b"),
        described(options={"epochs": []}),
    ],
    ids=range(8),
)
def test_a_run_file_that_is_none(text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_bytes(text)
    assert main(["resume", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "run.json" in told or "experiment file" in told


def test_a_planted_link_is_not_written_through(file: str, tmp_path: Path) -> None:
    """`run.json` takes a link's place, and the names beside it cannot be guessed."""
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run_dir.mkdir()
    elsewhere.write_text("mine")
    for name in ("run.json", f".run.json.{os.getpid()}", "weights.safetensors", f".weights.safetensors.{os.getpid()}"):
        (run_dir / name).symlink_to(elsewhere)
    assert main(["train", file, "--updates", "1", "--run-dir", str(run_dir)]) == 0
    assert elsewhere.read_text() == "mine"
    assert not (run_dir / "run.json").is_symlink()
