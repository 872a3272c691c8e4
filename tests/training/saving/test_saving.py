"""When a run is saved, what it goes on from, and what it refuses. One backend, because nothing here depends on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.resume_models import TorchNet, data, experiment

import multibackend as mb
from multibackend.checkpoint import CheckpointStore, list_checkpoints, read_checkpoint, write_checkpoint
from multibackend.errors import (
    CapabilityError,
    CheckpointError,
    CheckpointWarning,
    ConfigurationError,
    Interrupted,
    ResumeError,
)
from multibackend.testing import assert_bit_identical, assert_raises
from multibackend.testing.assertions import assert_snapshots_identical


def trainer(given: mb.Experiment | None = None, **options: Any) -> mb.Trainer:
    return mb.Trainer(given or experiment(), "torch", **options)


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]


def test_nothing_is_written_without_a_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run_dir, no file; checkpointing=None, no checkpoint."""
    monkeypatch.chdir(tmp_path)
    trainer().fit(updates=2)
    assert list(tmp_path.iterdir()) == []
    trainer(run_dir="run", checkpointing=None).fit(updates=2)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_when_it_is_saved_and_what_stays(tmp_path: Path) -> None:
    """Every 2 updates and at the end; the last two stay, every fourth for good, and the best one by the loss."""
    rules = mb.Checkpointing(every=2, keep_last=2, keep_every=4, keep_best=1)
    given = experiment(eval_data=data(examples=9))
    result = trainer(given, run_dir=tmp_path, checkpointing=rules).fit(updates=11, evaluate_every=2)
    saved = {evaluation.update: evaluation.metrics["loss"] for evaluation in result.evaluations}
    best = min(saved, key=lambda update: saved[update])
    kept = sorted({4, 8, 10, 11, best})
    assert names(tmp_path) == [f"update-{update:08d}" for update in kept]


def test_saves_inside_windows_and_by_the_clock(tmp_path: Path) -> None:
    """`every_micro_batches` stops inside windows, `every_seconds=0` saves after each dispatch; the run is the same."""
    straight = trainer()
    straight.fit(epochs=2)
    inside = trainer(run_dir=tmp_path / "a", checkpointing=mb.Checkpointing(every_micro_batches=2, keep_last=None))
    inside.fit(epochs=2)
    assert_snapshots_identical(inside.snapshot(), straight.snapshot())
    first_epoch = ["update-00000000-micro-2", "update-00000001-micro-1", "update-00000002"]
    assert names(tmp_path / "a")[:3] == first_epoch
    always = trainer(run_dir=tmp_path / "b", checkpointing=mb.Checkpointing(every_seconds=0, keep_last=None))
    always.fit(updates=4)
    assert names(tmp_path / "b")[-1] == "update-00000004"
    assert len(names(tmp_path / "b")) >= 2


def test_auto_resume(tmp_path: Path) -> None:
    """ "auto" begins anew where there is nothing, else goes on; "never" and "must" say what is in the way."""
    straight = trainer()
    expected = straight.fit(updates=9)
    run_dir = tmp_path / "run"
    assert_raises(CheckpointError, lambda: trainer(run_dir=run_dir, resume="must"), "no valid checkpoint", "auto")
    trainer(run_dir=run_dir, resume="auto").fit(updates=4)
    assert_raises(CheckpointError, lambda: trainer(run_dir=run_dir), "update-00000004", 'resume="auto"')
    going = trainer(run_dir=run_dir, resume="auto")
    result = going.fit(updates=9)
    assert_snapshots_identical(going.snapshot(), straight.snapshot())
    history = {name: result.history[name] for name in result.history.columns}
    assert_bit_identical(history, {name: expected.history[name] for name in expected.history.columns})
    assert (result.updates, result.epochs) == (expected.updates, expected.epochs)
    assert trainer(run_dir=run_dir, resume="auto").fit(updates=9).history["loss"].shape == (9,)


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    """The newest valid one is taken, each damaged one named with its file; with none valid the run begins anew."""
    trainer(run_dir=tmp_path, checkpointing=mb.Checkpointing(every=1)).fit(updates=3)
    newest, middle = list_checkpoints(tmp_path)[::-1][:2]
    flip(newest / "optimizer.safetensors")
    (middle / "manifest.json").unlink()
    with pytest.warns(CheckpointWarning) as told:
        going = trainer(run_dir=tmp_path, resume="auto")
    words = " ".join(str(warning.message) for warning in told)
    assert "optimizer.safetensors" in words
    assert middle.name in words
    assert going.snapshot().update == 1
    with pytest.warns(CheckpointWarning):
        going.fit(updates=5)
    straight = trainer()
    straight.fit(updates=5)
    assert_snapshots_identical(going.snapshot(), straight.snapshot())
    assert_snapshots_identical(trainer(run_dir=tmp_path, resume="must").snapshot(), straight.snapshot())


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_a_failed_save_is_reported_at_the_next_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the background ends `fit` with its own error soon after; earlier checkpoints are intact."""
    run_dir = tmp_path / "run"
    trainer(run_dir=run_dir).fit(updates=1)
    before = read_checkpoint(list_checkpoints(run_dir)[-1])
    from multibackend.checkpoint import store  # noqa: PLC0415

    def full(*given: Any) -> Path:
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(store, "write_checkpoint", full)
    going = trainer(run_dir=run_dir, resume="auto", checkpointing=mb.Checkpointing(every=2))
    assert_raises(CheckpointError, lambda: going.fit(updates=100), "no space left")
    assert going.snapshot().update < 10
    monkeypatch.undo()
    after = read_checkpoint(list_checkpoints(run_dir)[-1])
    assert_bit_identical(after.tensors["parameters"], before.tensors["parameters"])
    result = going.fit(updates=12)  # the trainer stays usable
    assert result.updates == 12


def test_one_run_per_directory(tmp_path: Path) -> None:
    """Another writer, and one that wrote in between, are noticed before anything is written."""
    first = trainer(run_dir=tmp_path)
    with CheckpointStore(tmp_path):
        assert_raises(CheckpointError, lambda: first.fit(updates=1), "another run writes")
    second = trainer(run_dir=tmp_path)
    second.fit(updates=2)
    assert_raises(CheckpointError, lambda: first.fit(updates=1), "written by another run", 'resume="auto"')
    assert names(tmp_path) == ["update-00000002"]
    other = second.save(tmp_path / "elsewhere")
    assert_raises(
        CheckpointError, lambda: mb.Trainer.resume(other, experiment(), run_dir=tmp_path), "earlier run", "another"
    )


def test_going_back_on_purpose(tmp_path: Path) -> None:
    """A run may go on from an older checkpoint of its directory; what it then saves is the newest."""
    trainer(run_dir=tmp_path, checkpointing=mb.Checkpointing(every=1)).fit(updates=3)
    back = mb.Trainer.resume(list_checkpoints(tmp_path)[0], experiment(), run_dir=tmp_path)
    assert back.snapshot().update == 1
    back.fit(updates=2)
    assert trainer(run_dir=tmp_path, resume="auto").snapshot().update == 2


def test_streams_go_on(tmp_path: Path) -> None:
    """An iterable is read from the beginning of its epoch and what was seen is thrown away: the same run."""
    rows = data()

    def read(epoch: int) -> Any:
        for index in range(len(rows["x"])):
            yield {name: column[(index + epoch) % len(column)] for name, column in rows.items()}

    given = experiment(train_data=read)
    straight, first = trainer(given), trainer(given)
    straight.fit(epochs=3)
    first.fit(micro_batches=12)  # the second epoch, inside a window
    going = mb.Trainer.resume(first.save(tmp_path / "saved"), given)
    going.fit(epochs=3)
    assert_snapshots_identical(going.snapshot(), straight.snapshot())


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "seed": ({"seed": 1}, ["seed: 0 in the checkpoint, 1 here"]),
    "data": ({"train_data": data(examples=22)}, ["data length: 26 in the checkpoint, 22 here"]),
    "values": ({"train_data": {**data(), "x": data()["x"] + 1}}, ["data: "]),
    "optimizer": (
        {"optimizer": mb.optimizers.SGD(learning_rate=0.1, momentum=0.9)},
        ["optimizer: 'AdamW' in the checkpoint, 'SGD' here", "learning_rate: WarmupCosine(peak=0.03"],
    ),
    "several": (
        {"gradient_accumulation_steps": 2, "micro_batch_size": 6, "normalize": "microbatch", "ema_decay": None},
        [
            "micro_batch_size: 4 in the checkpoint, 6 here",
            "gradient_accumulation_steps: [[0, 3]] in the checkpoint, [[0, 2]] here",
            "normalize: 'window' in the checkpoint, 'microbatch' here",
            "ema_decay: 0.9 in the checkpoint, None here",
        ],
    ),
    "function": (
        {"optimizer": mb.optimizers.AdamW(learning_rate=lambda update: 0.03, weight_decay=0.05)},
        ["learning_rate", "update index 0: 0.0 and 0.03"],
    ),
    "shapes": ({"model": mb.Model(torch=lambda: torch.nn.Linear(3, 2), inputs="x")}, ["model: ", "stem.weight"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    """Every difference is listed with both values."""
    changes, mentions = REFUSED[case]
    first = trainer()
    first.fit(updates=1)
    path = first.save(tmp_path / "saved")
    error = assert_raises(ResumeError, lambda: mb.Trainer.resume(path, experiment(**changes)), *mentions)
    assert len(error.differences) >= len(mentions) - (case in ("function", "shapes"))


def test_what_may_differ(tmp_path: Path) -> None:
    """Named differences are let through, others are not; an open window begins anew where it could not be finished;
    another optimizer begins with a state of its own; and a name that means nothing is told.
    """
    first = trainer()
    first.fit(micro_batches=4)
    path = first.save(tmp_path / "saved")
    longer = experiment(train_data=data(examples=40), name="longer")
    error = assert_raises(ResumeError, lambda: mb.Trainer.resume(path, longer, may_differ="data length"), "name")
    assert "data length" not in str(error)
    with pytest.warns(CheckpointWarning, match="begins anew"):
        going = mb.Trainer.resume(path, longer, may_differ=("data length", "name", "data"))
    assert going.fit(updates=2).history["examples"].tolist() == [12, 12]
    other = experiment(optimizer=mb.optimizers.SGD(learning_rate=0.1))
    with pytest.warns(CheckpointWarning, match="state of its own"):
        going = mb.Trainer.resume(path, other, may_differ=("optimizer", "learning_rate"))
    assert going.fit(updates=3).history["learning_rate"][-1] == 0.1
    wrong = assert_raises(ConfigurationError, lambda: mb.Trainer.resume(path, longer, may_differ=("sed",)), "'sed'")
    assert "seed" in str(wrong)


def test_arguments() -> None:
    """Wrong rules, and a resume without a directory, are told at once and together."""
    assert_raises(
        ConfigurationError, lambda: mb.Checkpointing(every=0, every_seconds=-1, keep_last=0, keep_best=-1), "4 problems"
    )
    assert_raises(ConfigurationError, lambda: trainer(resume="auto"), "run_dir")
    assert_raises(ConfigurationError, lambda: trainer(resume="sometimes"), "'never', 'auto', 'must'")
    assert_raises(ConfigurationError, lambda: trainer(checkpointing=3), "Checkpointing")
    assert_raises(ConfigurationError, lambda: trainer().fit(updates=1, micro_batches=2), "either updates=")


def test_a_backend_that_cannot_stop_inside_a_window_says_so() -> None:
    """Between windows it can stop; inside it raises `CapabilityError`, and goes on afterwards."""
    from multibackend_stub.backend import Linear  # noqa: PLC0415

    model = mb.Model(stub=lambda: Linear(3, 2), inputs="x")
    given = experiment(model=model, dropout="native", optimizer=mb.optimizers.SGD(learning_rate=0.1))
    stub = mb.Trainer(given, "stub")
    assert_raises(CapabilityError, lambda: stub.fit(micro_batches=4), "middle of a window")
    assert stub.fit(micro_batches=7).updates == 3


def test_a_foreign_checkpoint_is_no_run(tmp_path: Path) -> None:
    """A valid checkpoint whose state is not that of a run gives a typed error."""
    first = trainer()
    first.fit(micro_batches=2)
    contents = read_checkpoint(first.save(tmp_path / "saved"))
    tampered = [
        {"state": {}},
        {"state": {**contents.state, "data": {"epoch": -1, "offset": 0, "micro_batches": 0}}},
        {"state": {**contents.state, "loss_scale": {"scale": "x", "updates": 0}}},
        {"state": {**contents.state, "history": {"terms": 3}}},
        {"tensors": {**contents.tensors, "history": {}}},
        {"tensors": {name: group for name, group in contents.tensors.items() if name != "parameters"}},
        {"tensors": {name: group for name, group in contents.tensors.items() if name != "window"}},
        {"tensors": {**contents.tensors, "window": {"totals": np.zeros(3)}}},
    ]
    for index, changes in enumerate(tampered):
        from dataclasses import replace  # noqa: PLC0415

        path = write_checkpoint(tmp_path / f"bad-{index}", replace(contents, **changes))
        assert_raises(CheckpointError, lambda path=path: mb.Trainer.resume(path, experiment()), "holds no run")


def test_parameters_load_into_a_plain_torch_model(tmp_path: Path) -> None:
    """`safetensors.torch.load_file` and `load_state_dict`, nothing of ours: the same outputs."""
    first = trainer()
    first.fit(updates=3)
    path = first.save(tmp_path / "saved")
    model = TorchNet().double()
    model.load_state_dict({**load_file(path / "parameters.safetensors"), **load_file(path / "model_state.safetensors")})
    x = torch.from_numpy(data()["x"])
    with torch.no_grad():
        expected, found = first.state.program_state.module.eval()(x), model.eval()(x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_tells_how_to_go_on(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The window is finished and saved, the message says how to go on, handlers are put back; so it goes on."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def kill(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as ended:
        trainer(run_dir=tmp_path, callbacks=[kill], checkpointing=mb.Checkpointing(every=1)).fit(updates=500)
    assert ended.value.code == 128 + number
    # a notebook's `except KeyboardInterrupt` means Ctrl-C, and not the end of the machine
    assert isinstance(ended.value, KeyboardInterrupt) == (number is signal.SIGINT)
    assert isinstance(ended.value, SystemExit)
    assert str(ended.value) == ended.value.message
    assert 'resume="auto"' in capsys.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    straight = trainer()
    straight.fit(updates=8)
    going = trainer(run_dir=tmp_path, resume="must")
    assert 3 <= going.snapshot().update < 8
    going.fit(updates=8)
    assert_snapshots_identical(going.snapshot(), straight.snapshot())


def test_signals_are_left_alone_elsewhere(tmp_path: Path) -> None:
    """In another thread, and without a run directory, no handler is set; the user's own stays."""
    seen: list[Any] = []

    def look(event: mb.events.Event) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    trainer(callbacks=[look]).fit(updates=1)
    thread = threading.Thread(target=trainer(run_dir=tmp_path, callbacks=[look]).fit, kwargs={"updates": 1})
    thread.start()
    thread.join()
    assert set(seen) == {signal.SIG_DFL}

    def mine(number: int, frame: object) -> None:
        """The user's own handler."""

    seen.clear()
    signal.signal(signal.SIGTERM, mine)
    try:
        trainer(run_dir=tmp_path, callbacks=[look], resume="auto").fit(updates=2)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert set(seen) == {mine}


def test_a_run_directory_that_vanishes(tmp_path: Path) -> None:
    """A clear error, and the trainer stays usable."""
    run_dir = tmp_path / "run"

    def remove(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == 2:
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            os.unlink(run_dir / ".lock")

    going = trainer(run_dir=run_dir, callbacks=[remove], checkpointing=mb.Checkpointing(every=1))
    error = assert_raises(CheckpointError, lambda: going.fit(updates=200))
    assert re.search("vanished|checkpoints", str(error))
    with warnings.catch_warnings():
        assert going.snapshot().update >= 2
