"""Listeners: what they hear and in which order, how they end a run, and that one that raises breaks nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.variants import DISPATCH, SCAN_MANY, STUB, TORCH

import multibackend as mb
from multibackend.errors import NonFiniteError
from multibackend.events import (
    EpochFinished,
    EvaluationFinished,
    Event,
    FitFailed,
    FitFinished,
    FitStarted,
    Stop,
    UpdateFinished,
    WindowSkipped,
)
from multibackend.loggers.jsonl import read_log
from multibackend.testing import Variant, assert_bit_identical, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, columns, regression
from multibackend.testing.conformance.skipping import poisoned

DATA = regression(36)
BACKENDS = [STUB, TORCH, SCAN_MANY, DISPATCH]


class TroubleError(Exception):
    """What the listeners of these tests raise."""


def experiment_of(variant: Variant, *, data: Any = None, **options: Any) -> mb.Experiment:
    given = {"eval_data": DATA, "gradient_accumulation_steps": 4, "on_nonfinite": "skip", **options}
    return variant.experiment(poisoned(DATA, 13) if data is None else data, **given)


def raises_at(kind: type[Event], number: int) -> Any:
    """A listener that raises at the event of a kind with a number, and counts what it heard."""
    seen = []

    def listener(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(other, kind) for other in seen) == number and isinstance(event, kind):
            raise TroubleError(f"at {kind.__name__} number {number}")

    return listener


@pytest.mark.parametrize("variant", BACKENDS, ids=str)
def test_every_event_is_heard_in_order(variant: Variant) -> None:
    """Started, then skips, updates, epochs and evaluations, each once, then finished."""
    heard: list[Event] = []
    trainer = variant.trainer(experiment_of(variant), START, callbacks=[heard.append], windows_per_dispatch=1)
    trainer.fit(epochs=2, evaluate_every=2)
    kinds = [type(event).__name__ for event in heard]
    epoch = ["UpdateFinished", "WindowSkipped", "UpdateFinished"]
    expected = ["FitStarted", "RunDescribed", *epoch, "EpochFinished", "EvaluationFinished"]
    expected += [*epoch, "EpochFinished", "EvaluationFinished", "FitFinished"]
    assert kinds == expected
    assert [event.record.update for event in heard if isinstance(event, UpdateFinished)] == [1, 2, 3, 4]
    assert [event.skipped.update for event in heard if isinstance(event, WindowSkipped)] == [2, 4]
    assert [event.epoch for event in heard if isinstance(event, EpochFinished)] == [0, 1]
    assert [(e.update, e.scheduled) for e in heard if isinstance(e, EvaluationFinished)] == [(2, True), (4, True)]
    assert {(event.experiment, event.backend) for event in heard} == {("experiment", variant.backend)}


@pytest.mark.parametrize("variant", BACKENDS, ids=str)
def test_a_listener_ends_the_run(variant: Variant) -> None:
    """At an evaluation exactly there, at an update soon after; the reason is told, and the run can go on."""

    def at_evaluation(event: Event) -> Stop | None:
        return Stop("enough") if isinstance(event, EvaluationFinished) and event.update == 4 else None

    def at_update(event: Event) -> Stop | None:
        return Stop("too much") if isinstance(event, UpdateFinished) and event.record.update == 3 else None

    heard: list[Event] = []
    experiment = experiment_of(variant, data=DATA)
    trainer = variant.trainer(experiment, START, callbacks=[at_evaluation, heard.append])
    result = trainer.fit(updates=50, evaluate_every=2)
    assert (result.updates, result.stopped, heard[-1].stopped) == (4, "enough", "enough")
    eager = variant.trainer(experiment, START, callbacks=[at_update])
    result = eager.fit(updates=5000)
    assert result.stopped == "too much"
    assert 3 <= result.updates == len(result.history) == eager.snapshot().update < 5000
    alone = variant.trainer(experiment, START)
    goal = result.updates + 7
    assert_bit_identical(columns(eager.fit(updates=goal)), columns(alone.fit(updates=goal)), what="history")
    assert_snapshots_identical(eager.snapshot(), alone.snapshot())


def test_a_run_may_end_before_it_begins() -> None:
    """Whoever stops at FitStarted sees no update."""
    trainer = STUB.trainer(experiment_of(STUB), START, callbacks=[lambda event: Stop("not today")])
    assert (trainer.fit(updates=5).updates, trainer.fit(updates=5).stopped) == (0, "not today")


@pytest.mark.parametrize("variant", BACKENDS, ids=str)
@pytest.mark.parametrize(
    ("kind", "number"),
    [(FitStarted, 1), (WindowSkipped, 1), (UpdateFinished, 2), (EpochFinished, 1), (EvaluationFinished, 1)],
)
def test_a_listener_that_raises_breaks_nothing(kind: type[Event], number: int, variant: Variant) -> None:
    """Its error reaches the caller as it is; the run goes on afterwards and ends in the bits of an undisturbed one."""
    experiment = experiment_of(variant)
    trainer = variant.trainer(experiment, START, callbacks=[raises_at(kind, number)])
    with pytest.raises(TroubleError, match=f"at {kind.__name__} number {number}"):
        trainer.fit(updates=12, evaluate_every=4)
    made = trainer.snapshot().update
    assert trainer.fit(updates=made).updates == made
    result, alone = trainer.fit(updates=20), variant.trainer(experiment, START)
    expected = alone.fit(updates=20)
    assert_bit_identical(columns(result), columns(expected), what="history")
    assert result.history["update"].tolist() == list(range(1, 21))
    assert result.skipped == expected.skipped
    assert_snapshots_identical(trainer.snapshot(), alone.snapshot())


@pytest.mark.parametrize("first", [True, False])
def test_the_others_hear_everything(first: bool, tmp_path: Path) -> None:
    """Whatever one listener raises, and wherever it stands, the log has every update, and how the run ended."""
    heard: list[Event] = []
    trouble = raises_at(UpdateFinished, 2)
    callbacks = [trouble, heard.append] if first else [heard.append, trouble]
    trainer = STUB.trainer(experiment_of(STUB), START, callbacks=callbacks, windows_per_dispatch=4, run_dir=tmp_path)
    with pytest.raises(TroubleError):
        trainer.fit(updates=8)
    made = trainer.snapshot().update
    for updates in (
        [event.record.update for event in heard if isinstance(event, UpdateFinished)],
        [line["record"]["update"] for line in read_log(tmp_path) if line["event"] == "UpdateFinished"],
    ):
        assert updates == list(range(1, made + 1))
    assert isinstance(heard[-1], FitFailed)
    assert heard[-1].error == "TroubleError: at UpdateFinished number 2"
    assert read_log(tmp_path)[-1]["event"] == "FitFailed"


@pytest.mark.parametrize("variant", BACKENDS, ids=str)
def test_a_failed_window_is_told_whatever_a_listener_does(variant: Variant) -> None:
    """A listener that raises at the updates before it hides no NonFiniteError, and the trainer stays usable."""
    data = poisoned(DATA, 25)
    trainer = variant.trainer(
        experiment_of(variant, data=data, on_nonfinite="raise"), START, callbacks=[raises_at(UpdateFinished, 1)]
    )
    with pytest.raises((NonFiniteError, TroubleError)):
        trainer.fit(updates=3)
    with pytest.raises(NonFiniteError, match="update 3"):
        trainer.fit(updates=3)
    clean = variant.trainer(experiment_of(variant, data=DATA), START)
    clean.fit(updates=2)
    assert_snapshots_identical(trainer.snapshot(), clean.snapshot())
    assert np.isfinite(trainer.evaluate()["loss"])


def test_a_failed_run_is_told() -> None:
    """FitFailed, with the error, takes the place of FitFinished."""
    heard: list[Event] = []
    experiment = experiment_of(STUB, on_nonfinite="raise")
    trainer = STUB.trainer(experiment, START, callbacks=[heard.append])
    with pytest.raises(NonFiniteError):
        trainer.fit(updates=3)
    assert isinstance(heard[-1], FitFailed)
    assert (heard[-1].update, heard[-1].error[:14]) == (1, "NonFiniteError")
    assert not any(isinstance(event, FitFinished) for event in heard)


@pytest.mark.parametrize("variant", BACKENDS, ids=str)
def test_a_listener_may_look_at_the_trainer(variant: Variant) -> None:
    """Evaluating, or taking parameters, at any event is safe, and changes nothing."""
    experiment = experiment_of(variant)
    taken = []

    def looks(event: Event) -> None:
        if isinstance(event, UpdateFinished | WindowSkipped | EpochFinished):
            taken.append((trainer.evaluate()["loss"], trainer.parameters(), trainer.snapshot().update))

    trainer = variant.trainer(experiment, START, callbacks=[looks])
    alone = variant.trainer(experiment, START)
    result, expected = trainer.fit(updates=9), alone.fit(updates=9)
    assert len(taken) >= 9
    assert_bit_identical(columns(result), columns(expected), what="history")
    assert_snapshots_identical(trainer.snapshot(), alone.snapshot())
