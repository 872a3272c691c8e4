"""Runs that stop anywhere and go on, on the same backend bit for bit, on the other one with no visible seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.resume_models import data, experiment

import multibackend as mb
from multibackend.protocol import Snapshot
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.assertions import assert_snapshots_identical
from multibackend.testing.tolerances import FEW_UPDATES_RESUMED, HOPS, HOPS_FLOAT32
from multibackend.training.saving.restore import open_run, restore

BACKENDS = ("torch", "jax")
MICRO_BATCHES = 14  # two epochs of 7: windows of 3, 3 and a ragged 1
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "schedule and skipped windows": {
        "gradient_accumulation_steps": {0: 3, 3: 2},
        "train_data": data(bad=True),
        "on_nonfinite": "skip",
        "batch_statistics": "window",
        "normalize": "microbatch",
    },
    "terms": {
        "loss": {
            "main": mb.losses.MeanSquaredError(target="y", weights="w"),
            "small": mb.losses.Custom(lambda xp, out, batch: xp.mean(out**2), per="micro_batch", scale=0.1),
        },
        "optimizer": mb.optimizers.Adam(
            learning_rate=0.01, groups=(mb.optimizers.Group("stem.*", frozen=True),), amsgrad=True
        ),
    },
    "weights that only the loss knows": {
        "loss": mb.losses.Custom(lambda xp, out, batch: ((out - batch["y"]) ** 2, xp.ones_like(out))),
        "gradient_accumulation_steps": 4,
        "drop_last": True,
    },
    "fp16": {"precision": "fp16"},
    "float32": {"precision": "float32"},
}
# the other options do not meet the execution
CASES = [
    *((name, "scan") for name in OPTIONS if name != "float32"),
    pytest.param("float32", "scan", marks=pytest.mark.slow),  # fp16 keeps its state in float32, "all" runs in float64
    ("all", "dispatch"),
    ("schedule and skipped windows", "dispatch"),
]


def columns(result: Any) -> dict[str, np.ndarray]:
    return {name: result.history[name] for name in result.history.columns}


def assert_snapshots_match(actual: Snapshot, expected: Snapshot, relative: float) -> None:
    """All that both backends keep: torch alone counts the batches that a BatchNorm layer has seen."""
    assert actual.update == expected.update
    for part in ("parameters", "ema", "optimizer"):
        assert_arrays_match(getattr(actual, part), getattr(expected, part), relative=relative, floor=0.01, what=part)
    shared = ("norm.running_mean", "norm.running_var")
    assert_arrays_match(
        {name: actual.model_state[name] for name in shared},
        {name: expected.model_state[name] for name in shared},
        relative=relative,
        floor=0.01,
    )


def take_up(trainer: mb.Trainer, path: Path) -> None:
    """Let a trainer that is there already go on from a checkpoint, which costs no new compilation."""
    restore(trainer._run.plan, trainer.program, trainer._run.loop, trainer.state, open_run(path))


@pytest.mark.parametrize(("options", "execution"), CASES)
def test_cut_at_every_micro_batch(options: str, execution: str, tmp_path: Path) -> None:
    """Saved after each micro-batch and gone on with on both backends, from both: on the same one state, history and
    skipped windows have the bits of the straight run, on the other one they match it. The run that is interrupted so
    often ends in the bits of the straight run too.
    """
    given = experiment(**OPTIONS[options])
    executions = {"torch": "auto", "jax": execution}
    straight = {name: mb.Trainer(given, name, execution=executions[name]) for name in BACKENDS}
    start = straight["torch"].snapshot().parameters
    for name in BACKENDS:
        straight[name].load_parameters(start)
    results = {name: straight[name].fit(micro_batches=MICRO_BATCHES) for name in BACKENDS}
    histories = {name: columns(results[name]) for name in BACKENDS}
    ends = {name: straight[name].snapshot() for name in BACKENDS}
    assert (len(results["torch"].skipped) > 0) == (options.startswith("schedule") or options == "fp16")
    goers = straight  # each is put back again and again, which spares a compilation each time
    for writer in BACKENDS:
        cut = mb.Trainer(given, writer, execution=executions[writer])
        cut.load_parameters(start)
        for done in range(1, MICRO_BATCHES):
            cut.fit(micro_batches=done)
            path = cut.save(tmp_path / f"{writer}-{done}")
            for reader in BACKENDS:
                take_up(goers[reader], path)
                result = goers[reader].fit(micro_batches=MICRO_BATCHES)
                if reader == writer:
                    assert result.skipped == results[reader].skipped
                    assert_snapshots_identical(goers[reader].snapshot(), ends[reader])
                    assert_bit_identical(columns(result), histories[reader], what=f"history, cut at {done}")
                elif given.precision == "float64":  # in fp16 windows may overflow on one backend only
                    assert result.skipped == results[reader].skipped
                    assert_snapshots_match(goers[reader].snapshot(), ends[reader], FEW_UPDATES_RESUMED)
        cut.fit(micro_batches=MICRO_BATCHES)
        assert_snapshots_identical(cut.snapshot(), ends[writer])


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_hop_between_frameworks(precision: str, tmp_path: Path) -> None:
    """torch → jax → torch every 7 updates and some micro-batches for 100 updates, in the middle of epochs and windows,
    against the straight run: parameters, moments, average, statistics and losses.
    """
    given = experiment(precision=precision, train_data=data(examples=58))
    straight = mb.Trainer(given, "torch")
    expected = straight.fit(updates=100)
    first = mb.Trainer(given, "torch")
    trainers, hops, at = {"torch": first}, 0, "torch"
    while trainers[at].snapshot().update < 100:
        trainer, hops = trainers[at], hops + 1
        trainer.fit(updates=min(7 * hops, 100))
        inside = trainer._run.loop.micro_batches + hops % 3  # 0: between windows, 1 and 2: inside the next one
        if trainer.snapshot().update < 100:
            trainer.fit(micro_batches=inside)
        path = trainer.save(tmp_path / f"hop-{hops}")
        at = "jax" if at == "torch" else "torch"
        if at in trainers:
            take_up(trainers[at], path)
        else:
            trainers[at] = mb.Trainer.resume(path, given, at)
    assert hops >= 15
    result = trainers[at].fit(updates=100)
    bound = HOPS if precision == "float64" else HOPS_FLOAT32
    assert_snapshots_match(trainers[at].snapshot(), straight.snapshot(), bound)
    assert_arrays_match(columns(result), columns(expected), relative=bound, what="history")


def test_evaluation_and_early_stopping_go_on(tmp_path: Path) -> None:
    """Killed after a save and resumed with the same words: evaluations, the best one with its parameters, and the
    patience of early stopping are those of the straight run.
    """
    given = experiment(eval_data=data(examples=9), metrics=(mb.metrics.MeanAbsoluteError(target="y"),))
    words: dict[str, Any] = {"updates": 60, "evaluate_every": 2, "keep_best": True}

    def fit(trainer: mb.Trainer) -> mb.FitResult:
        return trainer.fit(**words, early_stopping=mb.EarlyStopping(metric="mean_absolute_error", patience=4))

    expected = fit(mb.Trainer(given, "torch"))
    assert expected.stopped is not None
    last = expected.updates - 3  # in the middle of the patience

    class KilledError(Exception):
        """Stands for a kill: nothing after it runs."""

    def kill(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == last + 1:
            raise KilledError

    rules = mb.Checkpointing(every=1)
    killed = mb.Trainer(given, "torch", run_dir=tmp_path / "run", checkpointing=rules, callbacks=[kill])
    with pytest.raises(KilledError):
        fit(killed)
    result = fit(mb.Trainer(given, "torch", run_dir=tmp_path / "run", resume="must"))
    assert (result.updates, result.stopped) == (expected.updates, expected.stopped)
    assert result.evaluations == expected.evaluations
    assert result.best is not None
    assert expected.best is not None
    assert (result.best.update, result.best.value) == (expected.best.update, expected.best.value)
    assert_bit_identical(result.best.parameters, expected.best.parameters)


def test_other_names_and_dropout_layers_of_other_names(tmp_path: Path) -> None:
    """A checkpoint goes on in a model whose parameters and dropout layers are called otherwise, there and back."""
    from support.dropout_models import NnxMlp, TorchMlp  # noqa: PLC0415

    model = mb.Model(torch=TorchMlp, jax=NnxMlp, inputs="x")
    given = experiment(model=model)
    straight = mb.Trainer(given, "torch")
    straight.fit(updates=12)
    trainer = mb.Trainer(given, "torch")
    trainer.fit(micro_batches=8)
    over = mb.Trainer.resume(trainer.save(tmp_path / "one"), given, "jax")
    over.fit(micro_batches=15)
    back = mb.Trainer.resume(over.save(tmp_path / "two"), given, "torch")
    back.fit(updates=12)
    for part in ("parameters", "optimizer", "ema"):
        actual, expected = getattr(back.snapshot(), part), getattr(straight.snapshot(), part)
        assert_arrays_match(actual, expected, relative=FEW_UPDATES_RESUMED, floor=0.01, what=part)


@pytest.mark.parametrize("backend", BACKENDS)
def test_native_dropout_goes_on(backend: str, tmp_path: Path) -> None:
    """Masks of the framework's own generator are a pure function of seed, update and micro-batch too: a run that stops
    inside a window has the bits of the straight one, whatever the process has drawn in between.
    """
    given = experiment(dropout="native")
    straight, first = mb.Trainer(given, backend), mb.Trainer(given, backend)
    straight.fit(updates=5)
    first.fit(micro_batches=5)
    going = mb.Trainer.resume(first.save(tmp_path / "saved"), given)
    assert going.backend == backend
    np.random.default_rng().normal(size=3)
    going.evaluate(data())
    going.fit(updates=5)
    assert_snapshots_identical(going.snapshot(), straight.snapshot())
