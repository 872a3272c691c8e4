"""Windows that make no update: without weight, or with a gradient that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multibackend.errors import MatchError, NonFiniteError
from multibackend.losses import MeanSquaredError
from multibackend.optimizers import SGD
from multibackend.testing.assertions import (
    assert_arrays_match,
    assert_bit_identical,
    assert_raises,
    assert_snapshots_identical,
)
from multibackend.testing.conformance.problems import (
    START,
    assert_matches_reference,
    columns,
    linear_trainer,
    regression,
    without,
)
from multibackend.testing.reference import cut, train
from multibackend.testing.tolerances import ONE_WINDOW
from multibackend.testing.variant import Variant
from multibackend.training.trainer import FitResult

__all__ = ["SkipConformance", "assert_skipped"]

WEIGHTED = MeanSquaredError(target="y", weights="w")
MOMENTUM = SGD(learning_rate=lambda update: 0.1 / (1 + update), momentum=0.9)


def assert_skipped(result: FitResult, expected: list[tuple[int, int, int, str]]) -> None:
    """Raise `MatchError` unless exactly these were skipped: (update, epoch, offset, reason)."""
    windows = [(w.update, w.epoch, w.offset, w.reason) for w in result.skipped]
    if windows != expected:
        raise MatchError(f"skipped windows: {windows} against {expected} expected")


def poisoned(data: Mapping[str, np.ndarray], *examples: int) -> dict[str, np.ndarray]:
    """Return the data with NaN in the inputs of some examples."""
    x = data["x"].copy()
    x[list(examples), 1] = np.nan  # one element is enough to spoil every gradient of its window
    return {**data, "x": x}


def infinite(data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the data with a target in the first window whose squared error overflows in float64.

    Twice the error, which the gradient is made of, does not: nor does the square of its norm.
    """
    y = data["y"].copy()
    y[1, 0] = 1.6e154
    return {**data, "y": y}


class SkipConformance:
    """A window that makes no update leaves no trace but in the books. Needs "linear"."""

    def test_window_without_weight_changes_nothing_and_is_counted(self, variant: Variant) -> None:
        """The state has the bits of a run where the window never existed."""
        data = {**regression(36), "w": np.ones(36)}
        data["w"][12:24] = 0.0
        options: dict[str, Any] = {"optimizer": MOMENTUM, "gradient_accumulation_steps": 4}
        options["loss"] = WEIGHTED
        trainer = linear_trainer(variant, data, **options)
        result = trainer.fit(updates=4)
        clean = linear_trainer(variant, without(data, 12, 24), **options)
        expected = clean.fit(updates=4)
        assert_skipped(result, [(2, 0, 12, "weightless"), (4, 1, 12, "weightless")])
        assert_snapshots_identical(trainer.snapshot(), clean.snapshot())
        assert_bit_identical(columns(result), columns(expected), what="history")

    def test_nonfinite_window_is_dropped_whole(self, variant: Variant) -> None:
        """One NaN example drops its own window and no other, first, middle or last of the epoch.

        Parameters, momentum, schedule position and history are bit for bit those of a run where the
        window never existed.
        """
        data = regression(36)
        options: dict[str, Any] = {"optimizer": MOMENTUM, "gradient_accumulation_steps": 4}
        options["on_nonfinite"] = "skip"
        # {the poisoned example: (update, epoch, offset) of each skip among four updates}
        cases = {0: [(1, 0, 0), (3, 1, 0)], 13: [(2, 0, 12), (4, 1, 12)], 35: [(3, 0, 24)]}
        for example, skipped in cases.items():
            begin = example // 12 * 12  # of its window
            trainer = linear_trainer(variant, poisoned(data, example), **options)
            result = trainer.fit(updates=4)
            clean = linear_trainer(variant, without(data, begin, begin + 12), **options)
            expected = clean.fit(updates=4)
            assert_snapshots_identical(trainer.snapshot(), clean.snapshot())
            assert_bit_identical(columns(result), columns(expected), what="history")
            assert_skipped(result, [(*place, "nonfinite") for place in skipped])

    def test_nonfinite_ragged_window_is_dropped_whole(self, variant: Variant) -> None:
        """The same where the NaN is in the ragged last micro-batch."""
        data = regression(29)
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "on_nonfinite": "skip"}
        trainer = linear_trainer(variant, poisoned(data, 28), **options)
        result = trainer.fit(epochs=2)
        windows = cut(range(24), 3, [4, 4])
        assert_matches_reference(trainer, result, train(START, data, [*windows, *windows]))
        assert_skipped(result, [(3, 0, 24, "nonfinite"), (5, 1, 24, "nonfinite")])

    def test_nonfinite_raises_with_update_and_parameters(self, variant: Variant) -> None:
        """By default the run ends before that window; the error names update and parameters."""
        data = regression(36)
        trainer = linear_trainer(variant, poisoned(data, 13), gradient_accumulation_steps=4)
        mentions = ("update 2", "weight", "bias", "skip")
        error = assert_raises(NonFiniteError, lambda: trainer.fit(updates=3), *mentions)
        place = {"update": error.update, "epoch": error.epoch, "offset": error.offset}
        assert_arrays_match(place, {"update": 2, "epoch": 0, "offset": 12}, relative=0.0)
        if set(error.parameters) != {"weight", "bias"}:
            raise MatchError(f"parameters: {error.parameters} against weight and bias expected")
        result = trainer.fit(updates=1)
        assert_matches_reference(trainer, result, train(START, data, cut(range(12), 3, [4])))

    def test_infinite_loss_with_a_finite_gradient_is_dropped(self, variant: Variant) -> None:
        """The window leaves the state bit for bit as it was, and the run goes on behind it."""
        data = infinite(regression(36))
        options: dict[str, Any] = {"optimizer": MOMENTUM, "gradient_accumulation_steps": 4}
        trainer = linear_trainer(variant, data, on_nonfinite="skip", **options)
        before = trainer.snapshot()
        assert_skipped(trainer.fit(micro_batches=4), [(1, 0, 0, "nonfinite")])
        assert_snapshots_identical(trainer.snapshot(), before)
        rest = cut(range(12, 36), 3, [4, 4])
        expected = train(START, data, rest, rate=lambda u: 0.1 / (1 + u), momentum=0.9)
        assert_matches_reference(trainer, trainer.fit(updates=2), expected)

    def test_infinite_loss_with_a_finite_gradient_raises(self, variant: Variant) -> None:
        """The error names the loss, and no parameter."""
        trainer = linear_trainer(variant, infinite(regression(36)), gradient_accumulation_steps=4)
        before = trainer.snapshot()
        mentions = ("the loss of update 1", "inf", "its gradient is finite")
        error = assert_raises(NonFiniteError, lambda: trainer.fit(updates=2), *mentions)
        if error.terms != ("loss",) or error.parameters:
            raise MatchError(f"terms {error.terms} and parameters {error.parameters}, ('loss',) and () expected")
        assert_snapshots_identical(trainer.snapshot(), before)

    def test_the_trainer_stays_usable_after_the_error(self, variant: Variant) -> None:
        """Parameters can be read, evaluation works, going on meets the same window again."""
        data = regression(36)
        trainer = linear_trainer(variant, poisoned(data, 13), gradient_accumulation_steps=4)
        assert_raises(NonFiniteError, lambda: trainer.fit(updates=3), "update 2")
        before = trainer.snapshot()
        again = assert_raises(NonFiniteError, lambda: trainer.fit(updates=3), "update 2")
        if again.offset != 12:
            raise MatchError(f"the second error is at example {again.offset}, 12 expected")
        assert_snapshots_identical(trainer.snapshot(), before)
        loss = trainer.evaluate(data)["loss"]
        residual = data["x"] @ before.parameters["weight"].T + before.parameters["bias"] - data["y"]
        assert_arrays_match(loss, float((residual**2).mean()), relative=ONE_WINDOW, what="loss")

    def test_window_without_weight_before_the_error_is_counted(self, variant: Variant) -> None:
        """What was skipped before the failing window is counted, also within one dispatch."""
        data = {**poisoned(regression(36), 25), "w": np.ones(36)}
        data["w"][12:24] = 0.0
        trainer = linear_trainer(variant, data, loss=WEIGHTED, gradient_accumulation_steps=4)
        assert_raises(NonFiniteError, lambda: trainer.fit(updates=3), "update 2")
        assert_skipped(trainer.fit(updates=1), [(2, 0, 12, "weightless")])

    def test_several_windows_per_dispatch_across_a_skip(self, variant: Variant) -> None:
        """A skip in the middle of a dispatch leaves the windows after it right."""
        data = regression(72)
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "on_nonfinite": "skip"}
        experiment = variant.experiment(poisoned(data, 14, 40), optimizer=MOMENTUM, **options)
        examples = [*range(12), *range(24, 36), *range(48, 72)]
        windows = cut(examples, 3, [4] * 4) * 2
        expected = train(START, data, windows, rate=lambda u: 0.1 / (1 + u), momentum=0.9)
        for windows_per_dispatch in (1, 2, 5):
            trainer = variant.trainer(experiment, START, windows_per_dispatch=windows_per_dispatch)
            assert_matches_reference(trainer, trainer.fit(epochs=2), expected)
