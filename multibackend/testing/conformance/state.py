"""Training state: repeated, interrupted, evaluated, moved."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibackend.errors import MatchError, ParameterMatchError
from multibackend.optimizers import SGD
from multibackend.testing.assertions import (
    assert_arrays_match,
    assert_bit_identical,
    assert_raises,
    assert_snapshots_identical,
)
from multibackend.testing.conformance.problems import START, columns, linear_trainer, regression
from multibackend.testing.tolerances import FORMULA, SAME_ARITHMETIC
from multibackend.testing.variant import Variant

__all__ = ["StateConformance"]

MOMENTUM = SGD(learning_rate=lambda update: 0.1 / (1 + update), momentum=0.9)
OPTIONS: dict[str, Any] = {"gradient_accumulation_steps": 4, "optimizer": MOMENTUM}


class StateConformance:
    """The same run gives the same bits, and looking at it does not change it. Needs "linear"."""

    def test_runs_are_bit_identical(self, variant: Variant) -> None:
        """Two trainers of one experiment end in the same bits, initial parameters included."""
        experiment = variant.experiment(regression(29), shuffle=True, **OPTIONS)
        first = variant.trainer(experiment)
        second = variant.trainer(experiment)
        assert_snapshots_identical(first.snapshot(), second.snapshot())
        result = first.fit(epochs=3)
        repeated = second.fit(epochs=3)
        assert_snapshots_identical(first.snapshot(), second.snapshot())
        assert_bit_identical(columns(result), columns(repeated), what="history")

    def test_fit_in_pieces(self, variant: Variant) -> None:
        """Where a run ends is counted from its beginning: fit to 3, to 5 and to 8 is fit to 8."""
        experiment = variant.experiment(regression(29), **OPTIONS)
        whole = variant.trainer(experiment, START)
        pieces = variant.trainer(experiment, START)
        expected = whole.fit(updates=8)
        for updates in (3, 3, 5):  # the second 3 asks for nothing
            pieces.fit(updates=updates)
        result = pieces.fit(updates=8)
        assert_arrays_match(columns(result), columns(expected), relative=SAME_ARITHMETIC)
        assert_arrays_match(pieces.parameters(), whole.parameters(), relative=SAME_ARITHMETIC)

    def test_windows_per_dispatch_does_not_show(self, variant: Variant) -> None:
        """One, two or five windows per dispatch give the same run."""
        experiment = variant.experiment(regression(62), **OPTIONS)
        runs = []
        for windows_per_dispatch in (1, 2, 5):
            trainer = variant.trainer(experiment, START, windows_per_dispatch=windows_per_dispatch)
            runs.append({**columns(trainer.fit(epochs=2)), **trainer.parameters()})
        assert_arrays_match(runs[1], runs[0], relative=SAME_ARITHMETIC)
        assert_arrays_match(runs[2], runs[0], relative=SAME_ARITHMETIC)

    def test_evaluation_never_changes_training(self, variant: Variant) -> None:
        """A run that is evaluated again and again ends in the same bits as one that never is."""
        data = regression(29)
        experiment = variant.experiment(data, eval_data=data, **OPTIONS)
        watched = variant.trainer(experiment, START)
        alone = variant.trainer(experiment, START)
        for updates in (2, 4, 6):
            watched.evaluate()
            before = watched.snapshot()
            watched.evaluate(batch_size=7)  # a shape that training never has
            assert_snapshots_identical(watched.snapshot(), before)
            watched.fit(updates=updates)
            alone.fit(updates=updates)
        assert_snapshots_identical(watched.snapshot(), alone.snapshot())

    def test_evaluation_does_not_depend_on_the_batch_size(self, variant: Variant) -> None:
        """The loss is the mean over the whole evaluation set, ragged last batches included."""
        data = regression(29)
        trainer = linear_trainer(variant, data, eval_data=data)
        residual = data["x"] @ START["weight"].T + START["bias"] - data["y"]
        expected = float((residual**2).mean())
        for batch_size in (1, 4, 29, 100):  # single, ragged at the end, all at once, more than all
            loss = trainer.evaluate(batch_size=batch_size)["loss"]
            assert_arrays_match(loss, expected, relative=FORMULA, what=f"batch size {batch_size}")

    def test_snapshot_and_restore_go_on_bit_identically(self, variant: Variant) -> None:
        """Another trainer, given the state after an epoch, makes the same updates from there on."""
        experiment = variant.experiment(regression(36), **OPTIONS)
        first = variant.trainer(experiment, START)
        second = variant.trainer(experiment)
        first.fit(updates=3)
        second.restore(first.snapshot())
        assert_snapshots_identical(second.snapshot(), first.snapshot())
        expected = first.fit(updates=9)
        result = second.fit(updates=9)
        assert_snapshots_identical(second.snapshot(), first.snapshot())
        for name in (*columns(result), "update"):
            assert_bit_identical(result.history[name], expected.history[name][3:], what=name)

    def test_a_snapshot_is_a_copy(self, variant: Variant) -> None:
        """Changing what parameters() returned changes nothing, nor does training change it."""
        trainer = linear_trainer(variant, regression(12))
        parameters = trainer.parameters()
        expected = {name: array.copy() for name, array in parameters.items()}
        trainer.fit(updates=2)
        assert_bit_identical(parameters, expected, what="the copy")
        before = trainer.parameters()
        for array in trainer.parameters().values():
            array[...] = 7.0  # writes into what a view would share with the run
        assert_bit_identical(trainer.parameters(), before, what="parameters")

    def test_load_parameters(self, variant: Variant) -> None:
        """What was loaded is read back bit for bit; a missing name or another size is an error."""
        trainer = linear_trainer(variant, regression(12))
        assert_bit_identical(trainer.parameters(), dict(START), what="parameters")
        lacking = {"weight": START["weight"]}
        words = ("bias", "has no partner")
        assert_raises(ParameterMatchError, lambda: trainer.load_parameters(lacking), *words)
        misshapen = {**START, "bias": np.zeros(3)}
        words = ("bias", "(3,)", "(2,)")
        assert_raises(ParameterMatchError, lambda: trainer.load_parameters(misshapen), *words)

    def test_precisions_live_side_by_side(self, variant: Variant) -> None:
        """A float32 run beside a float64 run in one process stays float32, the other float64."""
        data = regression(24)
        # float64 again after float32: a precision that is set once for the process shows on the way
        # back only
        for precision in ("float64", "float32", "float64"):
            trainer = linear_trainer(variant, data, precision=precision)
            trainer.fit(updates=2)
            dtypes = {array.dtype.name for array in trainer.parameters().values()}
            if dtypes != {precision}:
                raise MatchError(f"parameters are {dtypes} in a {precision} run")
