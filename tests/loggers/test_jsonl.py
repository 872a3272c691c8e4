"""The log of a run: its errors are typed and do not cost the run; one writer, half lines, no links followed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from multibackend_stub.backend import Linear

import multibackend as mb
from multibackend.checkpoint import CheckpointStore, list_checkpoints
from multibackend.errors import CheckpointError, ConfigurationError, FileError, LogWarning
from multibackend.loggers.jsonl import JsonLog, read_log
from multibackend.testing import assert_raises

BACKENDS = ("torch", "jax", "stub")


class Line(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.line = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.line(x)


def experiment() -> mb.Experiment:
    random = np.random.default_rng(0)
    return mb.Experiment(
        model=mb.Model(torch=lambda: torch.nn.Linear(3, 1), jax=Line, stub=lambda: Linear(3, 1), inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data={"x": random.normal(size=(8, 3)), "y": random.normal(size=(8, 1))},
        micro_batch_size=4,
        precision="float64",
        dropout="native",
    )


def trainer(backend: str, run_dir: Path | str, **options: Any) -> mb.Trainer:
    return mb.Trainer(experiment(), backend, run_dir=run_dir, windows_per_dispatch=1, **options)


@contextmanager
def limited_files(most: int) -> Iterator[None]:
    """No file grows beyond `most` bytes, by the operating system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_log_that_cannot_grow_does_not_cost_the_run(backend: str, tmp_path: Path) -> None:
    """One warning, all updates, the final checkpoint, then the typed error; trainer and log go on afterwards."""
    going = trainer(backend, tmp_path)
    (tmp_path / "log.jsonl").write_bytes(b'{"event": "Earlier"}\n' * 4800)  # 100 800 bytes
    with limited_files(101_000), pytest.warns(LogWarning, match="larger than is allowed here.*The run goes on") as told:
        error = assert_raises(FileError, lambda: going.fit(updates=60), "log.jsonl", "events are missing", "is saved")
    assert len(told) == 1
    assert error.path == str(tmp_path / "log.jsonl")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update-00000060"]
    going.fit(updates=62)
    lines = read_log(tmp_path)  # nothing of a line is in it that is not whole
    assert [line["event"] for line in lines[4800:]][-1] == "FitFinished"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_log_that_fails_for_a_while_loses_nothing(backend: str, tmp_path: Path) -> None:
    def hide(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.EpochFinished) and event.epoch == 1:
            (tmp_path / "log.jsonl").rename(tmp_path / "aside")
            (tmp_path / "log.jsonl").mkdir()
        if isinstance(event, mb.events.EpochFinished) and event.epoch == 3:
            (tmp_path / "log.jsonl").rmdir()
            (tmp_path / "aside").rename(tmp_path / "log.jsonl")

    with pytest.warns(LogWarning, match="is a directory"):
        trainer(backend, tmp_path, callbacks=[hide]).fit(updates=10)
    made = [line["record"]["update"] for line in read_log(tmp_path) if line["event"] == "UpdateFinished"]
    assert made == list(range(1, 11))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_log_that_cannot_begin_ends_fit_before_the_first_update(backend: str, tmp_path: Path) -> None:
    """Links are not followed, and a directory or a pipe in the log's place is no log."""
    elsewhere = tmp_path / "elsewhere"
    for index, (plant, words) in enumerate(
        (
            (lambda path: path.symlink_to(elsewhere), "symbolic link, which is not followed"),
            (lambda path: path.mkdir(), "is a directory"),
            (os.mkfifo, "no regular file"),
        )
    ):
        run_dir = tmp_path / str(index)
        going = trainer(backend, run_dir)
        plant(run_dir / "log.jsonl")
        assert_raises(FileError, lambda going=going: going.fit(updates=3), words, "No update was made")
        assert going.snapshot().update == 0
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", ["a" * 300, "/".join(["a" * 250] * 17), "a\0b", "dangling", "file/below"])
def test_run_directories_that_cannot_be(name: str, tmp_path: Path) -> None:
    """Before anything is trained, typed; the checkpoints' own look at the directory may find it first."""
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for checkpointing in (mb.Checkpointing(), None):
        with pytest.raises((FileError, CheckpointError, ConfigurationError)):
            trainer("torch", tmp_path / name, checkpointing=checkpointing)
    if name != "dangling":  # the store alone makes what a link leads to
        with pytest.raises(CheckpointError):
            CheckpointStore(tmp_path / name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_directory_that_vanishes(backend: str, tmp_path: Path) -> None:
    """The checkpoints say so, not the log."""
    run_dir = tmp_path / "run"

    def remove(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == 2:
            shutil.rmtree(run_dir)

    going = trainer(backend, run_dir, callbacks=[remove])
    with pytest.warns(LogWarning, match="has vanished"):
        assert_raises(CheckpointError, lambda: going.fit(updates=5), "vanished")


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_was_refused_writes_nothing(backend: str, tmp_path: Path) -> None:
    """Neither the failure of a refused `fit`, nor an evaluation beside another's run."""
    first = trainer(backend, tmp_path)
    with CheckpointStore(tmp_path):
        with pytest.warns(LogWarning, match="another run writes"):
            assert_raises(CheckpointError, lambda: first.fit(updates=1), "another run writes")
        first.evaluate(experiment().train_data)
        assert not (tmp_path / "log.jsonl").exists()
    first.fit(updates=1)
    first.evaluate(experiment().train_data)  # outside of `fit`, where nobody writes, it is logged
    events = [line["event"] for line in read_log(tmp_path)]
    assert events[0] == "FitStarted"
    assert events[-1] == "EvaluationFinished"


def test_a_half_line(tmp_path: Path) -> None:
    """A run was killed in a line: a resumed one begins a line of its own; logs of before this are read as well."""
    half = '{"event": "UpdateFinished", "time": 1.0, "rec'
    (tmp_path / "log.jsonl").write_text('{"event": "FitStarted"}\n' + half)
    JsonLog(tmp_path)(mb.events.FitFailed(experiment="e", backend="b", update=3, error='{"event": "quoted'))
    with pytest.warns(LogWarning, match="passed over 1 broken lines: 2"):
        assert [line["event"] for line in read_log(tmp_path)] == ["FitStarted", "FitFailed"]
    glued = half + '{"event": "FitFinished", "time": 2.0}\n'
    (tmp_path / "log.jsonl").write_bytes(glued.encode() + b"\xff\n[1]\n" + b"[" * 100_000 + b"\n" + half.encode())
    with pytest.warns(LogWarning, match="passed over 5 broken lines: 1, 2, 3, 4, 5"):
        assert [line["event"] for line in read_log(tmp_path)] == ["FitFinished"]


def test_logs_that_are_not_there(tmp_path: Path) -> None:
    assert_raises(FileError, lambda: read_log(tmp_path), "there is no log", "run_dir=")
    (tmp_path / "log.jsonl").mkdir()
    assert_raises(FileError, lambda: read_log(str(tmp_path)), "is a directory")


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    """NaN and infinities become null, in arrays too; what is no number its repr."""
    metrics = {
        "a": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "b": np.float32("nan"),
        "c": (1, {2: float("-inf")}),
        "d": 1j,
    }
    JsonLog(tmp_path)(mb.events.EvaluationFinished(experiment="e", backend="b", update=1, metrics=metrics))
    logged = read_log(tmp_path)[0]["metrics"]
    assert logged == {"a": [[1.0, None], [None, 2.0]], "b": None, "c": [1, {"2": None}], "d": "1j"}
