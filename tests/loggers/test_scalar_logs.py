"""TensorBoard, Weights & Biases and MLflow: what was written is read back, from event files or from a stand-in."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.variants import SCAN, STUB, TORCH

import multibackend as mb
from multibackend import events
from multibackend.errors import ConfigurationError, MultibackendError, NonFiniteError, PackageNotInstalledError
from multibackend.loggers import scalars
from multibackend.loggers.mlflow import MlflowLog
from multibackend.loggers.scalars import ScalarLog
from multibackend.loggers.tensorboard import TensorBoardLog
from multibackend.loggers.wandb import WandbLog
from multibackend.testing import Variant, assert_arrays_match
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.conformance.skipping import poisoned
from multibackend.testing.tolerances import FEW_UPDATES_FLOAT32

DATA = regression(36)
Written = dict[str, dict[int, float]]  # by name, then by update


@pytest.fixture(autouse=True)
def _speed_at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, examples per second are told once for each fit."""
    monkeypatch.setattr(scalars, "_SECONDS_PER_SPEED", float("inf"))


def run(variant: Variant, listener: ScalarLog, **options: Any) -> mb.FitResult:
    """Two pieces, with a skipped window, an evaluation every second update, and one of the average at the end."""
    given = {"eval_data": DATA, "gradient_accumulation_steps": 4, "on_nonfinite": "skip", "ema_decay": 0.9, **options}
    trainer = variant.trainer(variant.experiment(poisoned(DATA, 13), **given), START, callbacks=[listener])
    trainer.fit(updates=3, evaluate_every=2)
    result = trainer.fit(updates=5, evaluate_every=2)
    trainer.evaluate(ema=True)
    return result


def assert_written(written: Written, result: mb.FitResult, *, relative: float = 0.0) -> None:
    """Every update and every evaluation, at the right step."""
    for name in ("loss", "grad_norm", "learning_rate"):
        steps = written[f"train/{name}"]
        assert list(steps) == [1, 2, 3, 4, 5]
        assert_arrays_match(np.array(list(steps.values())), result.history[name], relative=relative, what=name)
    assert list(written["evaluation/loss"]) == [2, 3, 4, 5]
    last = {evaluation.update: evaluation.metrics["loss"] for evaluation in result.evaluations}
    for update, loss in last.items():
        assert_arrays_match(written["evaluation/loss"][update], loss, relative=relative)
    assert list(written["evaluation_ema/loss"]) == [5]
    assert written["evaluation_ema/loss"][5] != written["evaluation/loss"][5]
    assert written["train/skipped_windows"] == {1: 1.0, 3: 2.0}
    assert list(written["train/examples_per_second"]) == [3, 5]
    assert min(written["train/examples_per_second"].values()) > 0


def records(path: Path) -> Iterator[bytes]:
    """The records of a TensorBoard file: length, its checksum, the record, its checksum."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield content[place + 12 : place + 12 + length]
        place += 16 + length


def event_files(directory: Path) -> Written:
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    written: Written = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for record in records(path):
            event = Event.FromString(record)
            for value in event.summary.value:
                written.setdefault(value.tag, {})[event.step] = value.simple_value
    return written


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN], ids=str)
def test_tensorboard(variant: Variant, tmp_path: Path) -> None:
    """The event file holds every number, in float32."""
    pytest.importorskip("tensorboardX")
    with TensorBoardLog(tmp_path / "board") as log:
        result = run(variant, log)
    assert_written(event_files(tmp_path / "board"), result, relative=FEW_UPDATES_FLOAT32)


class FakeWandb(ModuleType):
    """Keeps what wandb is told: `init(config, ...)`, `run.log(numbers, step)`, `run.finish(exit_code)`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.options: list[dict] = []
        self.written: Written = {}
        self.codes: list[int] = []

    def init(self, **options: Any) -> Any:
        self.options.append(options)
        return SimpleNamespace(log=self.log, finish=lambda *, exit_code: self.codes.append(exit_code))

    def log(self, numbers: dict[str, float], step: int) -> None:
        latest = max((max(steps) for steps in self.written.values()), default=0)
        assert step >= latest, "wandb drops what comes for an earlier step"
        for name, value in numbers.items():
            self.written.setdefault(name, {})[step] = float(value)


def test_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run over both pieces, its steps never falling, named after the experiment, finished when closed."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with WandbLog(project="digits", config={"width": 64}) as log:
        result = run(STUB, log)
        assert wandb.codes == []
    assert_written(wandb.written, result)
    config = {"backend": "stub", "device": "cpu", "execution": "plain", "width": 64}
    assert wandb.options == [{"name": "experiment", "project": "digits", "config": config}]
    assert wandb.codes == [0]
    log.close()
    assert wandb.codes == [0]


class FakeMlflow(ModuleType):
    """Keeps what MLflow's client is told: experiments, runs, batches of metrics, how a run ended."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, timestamp, step))
        self.experiments: dict[str, str] = {}
        self.runs: list[dict] = []
        self.batches: list[int] = []
        self.written: Written = {}
        self.uri: str | None = None

    def MlflowClient(self, tracking_uri: str | None) -> Any:  # noqa: N802 - MLflow's name
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.experiments.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str, run_name: str | None, tags: dict) -> Any:
        self.runs.append({"experiment": experiment_id, "name": run_name, "tags": tags, "status": "RUNNING"})
        return SimpleNamespace(info=SimpleNamespace(run_id=str(len(self.runs) - 1)))

    def log_batch(self, run_id: str, metrics: list) -> None:
        assert 0 < len(metrics) <= 1000
        self.batches.append(len(metrics))
        for key, value, timestamp, step in metrics:
            assert isinstance(value, float)
            assert timestamp > 1e12
            self.written.setdefault(key, {})[step] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[int(run_id)]["status"] = status


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run over both pieces, in batches, with its tags; the experiment is made once and found again."""
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with MlflowLog(tracking_uri="somewhere", run_name="first", tags={"who": "me"}) as log:
        result = run(STUB, log)
    assert_written(mlflow.written, result)
    tags = {"backend": "stub", "device": "cpu", "execution": "plain", "who": "me"}
    assert mlflow.uri == "somewhere"
    assert mlflow.runs == [{"experiment": "0", "name": "first", "tags": tags, "status": "FINISHED"}]
    assert len(mlflow.batches) < 10 < sum(mlflow.batches)
    with MlflowLog() as log:
        run(STUB, log)
    assert (mlflow.experiments, len(mlflow.runs)) == ({"experiment": "0"}, 2)


def test_mlflow_sends_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many updates between two requests go out in several of at most 1000 numbers."""
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    trainer = STUB.trainer(STUB.experiment(DATA), START, callbacks=[MlflowLog()])
    trainer.fit(updates=1500)
    assert list(mlflow.written["train/loss"]) == list(range(1, 1501))
    assert max(mlflow.batches) <= 1000


def test_a_failed_run_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose fit raised ends as failed in both."""
    wandb, mlflow = FakeWandb(), FakeMlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    logs = [WandbLog(), MlflowLog()]
    experiment = STUB.experiment(poisoned(DATA, 13), gradient_accumulation_steps=4)
    trainer = STUB.trainer(experiment, START, callbacks=logs)
    with pytest.raises(NonFiniteError):
        trainer.fit(updates=3)
    for log in logs:
        log.close()
    assert wandb.codes == [1]
    assert mlflow.runs[0]["status"] == "FAILED"


class Kept(ScalarLog):
    """Keeps numbers in a dict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.written: Written = {}

    def write(self, update: int, numbers: Any) -> None:
        for name, value in numbers.items():
            self.written.setdefault(name, {})[update] = value


def test_every_so_many_updates() -> None:
    """`every` thins out the updates, not the evaluations; metrics that are arrays are left out."""
    log = Kept(every=2)
    run(STUB, log)
    assert list(log.written["train/loss"]) == [2, 4]
    assert list(log.written["evaluation/loss"]) == [2, 3, 4, 5]
    common = {"experiment": "e", "backend": "stub"}
    log(events.EvaluationFinished(**common, update=9, metrics={"loss": 1.0, "confusion": np.ones((2, 2))}))
    assert 9 in log.written["evaluation/loss"]
    assert "evaluation/confusion" not in log.written
    with pytest.raises(ConfigurationError, match="every must be >= 1, got 0"):
        Kept(every=0)


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("tensorboardX", lambda: TensorBoardLog("nowhere"), "tensorboard"),
        ("wandb", WandbLog, "wandb"),
        ("mlflow", MlflowLog, "mlflow"),
    ],
)
def test_a_missing_package_is_named(module: str, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is typed, an ImportError too, and has the command that mends it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        PackageNotInstalledError, match=rf"'{module}' .*pip install 'multibackend\[{extra}\]'"
    ) as caught:
        make()
    assert isinstance(caught.value, MultibackendError)
    assert isinstance(caught.value, ImportError)
