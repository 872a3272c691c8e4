"""Evaluations during `fit`: when they are made, that they change nothing, which was the best, and early stopping."""

import math

import numpy as np
import pytest
from multibackend_stub.backend import Linear
from support.variants import DISPATCH, SCAN, SCAN_MANY, STUB, TORCH

import multibackend as mb
from multibackend.errors import ConfigurationError
from multibackend.events import EvaluationFinished
from multibackend.metrics import Accuracy, ConfusionMatrix, Custom, MeanAbsoluteError
from multibackend.testing import Variant, assert_arrays_match, assert_bit_identical, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, columns, regression
from multibackend.testing.conformance.skipping import assert_skipped, poisoned
from multibackend.testing.tolerances import ONE_WINDOW, SAME_ARITHMETIC
from multibackend.training.early_stopping import improves

DATA = regression(36)


def trainer_of(variant: Variant = STUB, *, windows: int | None = None, **options: object) -> mb.Trainer:
    defaults = {"eval_data": DATA, "eval_batch_size": 36, "gradient_accumulation_steps": 4, "ema_decay": 0.9}
    return variant.trainer(variant.experiment(DATA, **{**defaults, **options}), START, windows_per_dispatch=windows)


class Valley:
    """A loss that takes given values, evaluation by evaluation: what `program.evaluate` is replaced by.

    The trainer evaluates in one batch.
    """

    def __init__(self, trainer: mb.Trainer, values: list[float]) -> None:
        self.values = values
        trainer.program.evaluate = lambda state, batch, **options: (self.values.pop(0), 1.0)


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN, SCAN_MANY, DISPATCH], ids=str)
def test_evaluates_after_every_n_updates_and_at_the_end(variant: Variant) -> None:
    """At multiples of N of the run's updates, in pieces too; each is what evaluate() says there."""
    trainer, alone = trainer_of(variant), trainer_of(variant)
    first = trainer.fit(updates=5, evaluate_every=3)
    assert [evaluation.update for evaluation in first.evaluations] == [3, 5]
    second = trainer.fit(epochs=3, evaluate_every=3)
    assert [evaluation.update for evaluation in second.evaluations] == [6, 9]
    for evaluation in (*first.evaluations, *second.evaluations):
        alone.fit(updates=evaluation.update)
        assert_arrays_match(dict(evaluation.metrics), alone.evaluate(), relative=SAME_ARITHMETIC)
    assert first.best is not None
    assert first.best.value == min(evaluation.metrics["loss"] for evaluation in first.evaluations)


@pytest.mark.parametrize("model", ["linear", "batch_norm", "dropout"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("variant", [TORCH, SCAN_MANY, DISPATCH], ids=str)
def test_training_is_bit_identical_with_and_without(variant: Variant, precision: str, model: str) -> None:
    """Statistics, masks, optimizer slots, the average and the history, evaluated often or never."""
    options = {"model": model, "precision": precision, "optimizer": mb.optimizers.AdamW(learning_rate=0.05)}
    start = START if model == "linear" else None
    experiment = variant.experiment(regression(29), eval_data=DATA, ema_decay=0.9, shuffle=True, **options)
    watched, alone = (variant.trainer(experiment, start) for _ in range(2))
    result = watched.fit(epochs=3, evaluate_every=1, evaluate_ema=True, keep_best=True)
    expected = alone.fit(epochs=3)
    assert len(result.evaluations) == len(result.history) == 30
    assert_bit_identical(columns(result), columns(expected), what="history")
    assert_snapshots_identical(watched.snapshot(), alone.snapshot())


def test_a_torch_module_that_counts_its_calls_is_put_back() -> None:
    """A buffer that a module changes even in evaluation mode has after an evaluation what it had before."""
    import torch  # noqa: PLC0415

    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.head(x)

    variant = Variant("torch", {"counts": Counts})
    watched, alone = (variant.trainer(variant.experiment(DATA, model="counts", eval_data=DATA)) for _ in range(2))
    watched.fit(updates=4, evaluate_every=1)
    alone.fit(updates=4)
    assert_snapshots_identical(watched.snapshot(), alone.snapshot())
    assert float(alone.snapshot().model_state["calls"]) >= 4


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN_MANY], ids=str)
def test_skipped_windows_do_not_count(variant: Variant) -> None:
    """An evaluation waits for the updates that were made, not for windows, several of which are one dispatch."""
    data = poisoned(DATA, 13)
    experiment = variant.experiment(data, eval_data=DATA, gradient_accumulation_steps=4, on_nonfinite="skip")
    result = variant.trainer(experiment, START, windows_per_dispatch=4).fit(updates=6, evaluate_every=2)
    assert [evaluation.update for evaluation in result.evaluations] == [2, 4, 6]
    assert_skipped(result, [(2, 0, 12, "nonfinite"), (4, 1, 12, "nonfinite"), (6, 2, 12, "nonfinite")])


@pytest.mark.parametrize("variant", [STUB, TORCH, SCAN], ids=str)
def test_the_best_keeps_its_parameters(variant: Variant) -> None:
    """`best` names update, value, metric and mode; its parameters give that value again, the average's where asked."""
    metrics = {} if variant is STUB else {"metrics": (MeanAbsoluteError(target="y"),)}
    best = "loss" if variant is STUB else "mean_absolute_error"
    for ema in (False, True):
        trainer = trainer_of(variant, optimizer=mb.optimizers.SGD(learning_rate=0.9), **metrics)
        result = trainer.fit(updates=12, evaluate_every=2, best=best, keep_best=True, evaluate_ema=ema)
        values = [evaluation.metrics[best] for evaluation in result.evaluations]
        assert result.best.value == min(values)
        assert result.best.update == result.evaluations[int(np.argmin(values))].update
        assert (result.best.metric, result.best.mode) == (best, "min")
        again = trainer_of(variant, **metrics)
        again.load_parameters(result.best.parameters)
        assert_arrays_match(again.evaluate()[best], result.best.value, relative=ONE_WINDOW)
    assert trainer_of(variant).fit(updates=2, evaluate_every=1).best.parameters is None


def test_a_larger_accuracy_is_the_better_one() -> None:
    """The metric says which direction is better; of equal values the first is the best."""
    label = (DATA["y"][:, 0] > 0).astype(np.int64)
    data = {"x": DATA["x"], "label": label}
    metrics = (Accuracy(target="label"), ConfusionMatrix(target="label", classes=2))
    experiment = TORCH.experiment(data, eval_data=data, loss=mb.losses.CrossEntropy(target="label"), metrics=metrics)
    result = TORCH.trainer(experiment, START).fit(updates=20, evaluate_every=1, best="accuracy")
    values = [evaluation.metrics["accuracy"] for evaluation in result.evaluations]
    assert (result.best.value, result.best.mode) == (max(values), "max")
    assert result.best.update == int(np.argmax(values)) + 1
    assert all(np.trace(e.metrics["confusion_matrix"]) == round(36 * e.metrics["accuracy"]) for e in result.evaluations)


@pytest.mark.parametrize("as_callback", [False, True])
def test_early_stopping(as_callback: bool) -> None:
    """The run ends after `patience` evaluations in a row without improvement, exactly there; the best is remembered."""
    values = [5.0, 4.0, 4.5, 3.95, 4.2, 3.96, 1.0]
    stopping = mb.EarlyStopping(patience=3, minimum_change=0.1)
    trainer = STUB.trainer(
        STUB.experiment(DATA, eval_data=DATA, eval_batch_size=36), START, callbacks=[stopping] if as_callback else []
    )
    Valley(trainer, list(values))
    options = {} if as_callback else {"early_stopping": stopping}
    result = trainer.fit(updates=100, evaluate_every=2, **options)
    # 3.95 is better than 4.0, but not by more than 0.1: evaluations 3, 4 and 5 do not improve
    assert [evaluation.metrics["loss"] for evaluation in result.evaluations] == values[:5]
    assert (result.updates, trainer.snapshot().update) == (10, 10)
    assert result.stopped == "loss has not improved on 4 of update 4 in 3 evaluations"
    assert (result.best.update, result.best.value) == (8, 3.95)
    again = trainer.fit(updates=14, evaluate_every=2, **options)
    assert (again.updates, again.stopped) == (14, None)  # each call begins with new patience


def test_early_stopping_listens_to_its_own_run_only() -> None:
    """An evaluation that the user makes is none of the run's, and a NaN is no improvement."""
    stopping = mb.EarlyStopping(patience=2)
    trainer = STUB.trainer(STUB.experiment(DATA, eval_data=DATA, eval_batch_size=36), START, callbacks=[stopping])
    Valley(trainer, [1.0, 2.0, 3.0, math.nan, math.nan])
    for _ in range(3):
        trainer.evaluate()
    result = trainer.fit(updates=9, evaluate_every=1)
    assert (result.updates, result.best) == (2, None)
    assert result.stopped == "loss has not been a number in 2 evaluations"


def test_early_stopping_given_twice_counts_once() -> None:
    """One object among the callbacks and as an argument hears each evaluation once."""
    stopping = mb.EarlyStopping(patience=2)
    trainer = STUB.trainer(STUB.experiment(DATA, eval_data=DATA, eval_batch_size=36), START, callbacks=[stopping])
    Valley(trainer, [1.0, 2.0, 3.0])
    assert trainer.fit(updates=9, evaluate_every=1, early_stopping=stopping).updates == 3


def test_without_early_stopping_the_run_goes_on() -> None:
    """A loss that only rises ends nothing by itself, and nothing is evaluated unless asked for."""
    trainer, heard = trainer_of(), []
    trainer._run.emit._listeners = (heard.append,)
    result = trainer.fit(updates=5)
    assert (result.evaluations, result.best, result.stopped) == ((), None, None)
    assert not [event for event in heard if isinstance(event, EvaluationFinished)]


def test_improvement() -> None:
    """Better by more than the least change, in the metric's direction."""
    assert improves(1.0, None, "min")
    assert improves(1.0, 1.5, "min")
    assert not improves(1.0, 1.5, "max")
    assert not improves(1.0, 1.0, "min")
    assert not improves(1.0, 1.5, "min", 0.5)
    assert improves(2.1, 1.5, "max", 0.5)
    assert not improves(math.nan, None, "min")
    assert improves(math.inf, None, "min")


LINEAR = Variant("stub", {"linear": lambda: Linear(3, 2)})
MIXED = {
    "metrics": (Custom(name="hits", function=lambda xp, o, b: o, mode="max"), ConfusionMatrix(target="y", classes=2))
}


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({}, {"evaluate_every": 0}, "evaluate_every must be >= 1, got 0"),
        ({}, {"evaluate_every": 2.0}, "evaluate_every must be an integer"),
        ({"eval_data": None}, {"evaluate_every": 2}, "needs evaluation data; pass eval_data="),
        ({}, {"keep_best": True}, "keep_best=True needs evaluations; pass evaluate_every="),
        ({}, {"best": "loss"}, "best= needs evaluations"),
        ({}, {"evaluate_ema": True}, "evaluate_ema=True needs evaluations"),
        ({}, {"early_stopping": mb.EarlyStopping()}, "early stopping needs evaluations"),
        ({}, {"early_stopping": 3}, "early_stopping must be an EarlyStopping"),
        ({}, {"keep_best": 1}, "keep_best must be True or False"),
        ({"ema_decay": None}, {"evaluate_every": 1, "evaluate_ema": True}, "needs a moving average; pass ema_decay="),
        ({}, {"evaluate_every": 1, "best": "los"}, "best must be one of 'loss', got 'los'; did you mean 'loss'"),
        (MIXED, {"evaluate_every": 1, "best": "confusion_matrix"}, "is an array [2, 2], which has no best value"),
        (
            MIXED,
            {"evaluate_every": 1, "early_stopping": mb.EarlyStopping(metric="hits")},
            "of 'hits' the maximum is the best; pass mode='max'",
        ),
        ({}, {"evaluate_every": 1, "early_stopping": mb.EarlyStopping(metric="accuracy")}, "got 'accuracy'"),
    ],
)
def test_arguments_of_fit(options: dict, arguments: dict, words: str) -> None:
    """Mistakes are found before the first window runs."""
    trainer = trainer_of(LINEAR, **options)
    with pytest.raises(ConfigurationError) as caught:
        trainer.fit(updates=1, **arguments)
    assert words in str(caught.value)
    assert trainer.snapshot().update == 0


def test_arguments_of_early_stopping() -> None:
    """All problems at once."""
    with pytest.raises(ConfigurationError) as caught:
        mb.EarlyStopping(metric="", patience=0, minimum_change=-1.0, mode="down")
    assert len(caught.value.problems) == 4
