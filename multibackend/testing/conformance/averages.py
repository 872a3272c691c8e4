"""The moving average of the parameters: one step per update, whatever an update is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.errors import ConfigurationError
from multibackend.optimizers import SGD
from multibackend.testing.assertions import assert_arrays_match, assert_raises, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, columns, linear_trainer, regression, without
from multibackend.testing.conformance.skipping import assert_skipped, poisoned
from multibackend.testing.reference import Window, cut, train
from multibackend.testing.tolerances import ONE_WINDOW, SAME_ARITHMETIC
from multibackend.testing.variant import Variant

__all__ = ["AverageConformance"]

MOMENTUM = SGD(learning_rate=0.1, momentum=0.9)
DECAY = 0.8  # small, so that the initial parameters soon fade


def averaged(
    data: Mapping[str, np.ndarray], windows: Sequence[Window], *, warmup: bool = False
) -> dict[str, np.ndarray]:
    """Compute e = d * e + (1 - d) * p after each window, from START, in plain numpy."""
    e = dict(START)
    d = DECAY
    for update in range(len(windows)):
        p = train(START, data, windows[: update + 1], momentum=0.9).parameters
        if warmup:
            d = min(DECAY, (1 + update) / (10 + update))
        for name, array in e.items():
            e[name] = d * array + (1 - d) * p[name]
    return e


class AverageConformance:
    """`ema_decay` of the experiment. Needs "linear"."""

    def test_average_of_each_update(self, variant: Variant) -> None:
        """The formula, across a schedule of k, a partial window, a ragged batch and a skip."""
        data = regression(59)
        options: dict[str, Any] = {"optimizer": MOMENTUM, "ema_decay": DECAY, "on_nonfinite": "skip"}
        options["gradient_accumulation_steps"] = {0: 4, 3: 2}
        trainer = linear_trainer(variant, poisoned(data, 13), **options)
        result = trainer.fit(epochs=1)
        assert_skipped(result, [(2, 0, 12, "nonfinite")])
        # the window of example 13 is dropped, so the fourth update, at which k becomes 2, begins at
        # example 48
        examples = [*range(12), *range(24, 59)]
        expected = averaged(data, cut(examples, 3, [4, 4, 4, 2, 2]))
        assert_arrays_match(trainer.ema_parameters(), expected, relative=ONE_WINDOW, what="average")
        residual = data["x"] @ expected["weight"].T + expected["bias"] - data["y"]
        loss = trainer.evaluate(data, ema=True)["loss"]
        assert_arrays_match(loss, float((residual**2).mean()), relative=ONE_WINDOW, what="its loss")

    def test_warmup_of_the_average(self, variant: Variant) -> None:
        """With ema_warmup the decay of update index t is min(d, (1 + t) / (10 + t))."""
        data = regression(36)
        options = {"optimizer": MOMENTUM, "ema_decay": DECAY, "ema_warmup": True}
        trainer = linear_trainer(variant, data, **options)
        trainer.fit(epochs=4)  # 48 updates; (1 + t) / (10 + t) passes 0.8 at t = 35
        expected = averaged(data, cut(range(36), 3, [1] * 12) * 4, warmup=True)
        assert_arrays_match(trainer.ema_parameters(), expected, relative=ONE_WINDOW, what="average")

    def test_skipped_window_leaves_the_average(self, variant: Variant) -> None:
        """The whole state has the bits of a run where the window never existed."""
        data = regression(36)
        options: dict[str, Any] = {"optimizer": MOMENTUM, "gradient_accumulation_steps": 4}
        # the warmup would show a skipped window that was counted
        options |= {"ema_decay": DECAY, "ema_warmup": True, "on_nonfinite": "skip"}
        trainer = linear_trainer(variant, poisoned(data, 13), **options)
        trainer.fit(updates=5)
        clean = linear_trainer(variant, without(data, 12, 24), **options)
        clean.fit(updates=5)
        assert_snapshots_identical(trainer.snapshot(), clean.snapshot())

    def test_average_does_not_show_in_training(self, variant: Variant) -> None:
        """Parameters and history are those of a run without it, and without it there is none."""
        data = regression(29)
        plain = linear_trainer(variant, data, optimizer=MOMENTUM)
        averaging = linear_trainer(variant, data, optimizer=MOMENTUM, ema_decay=DECAY)
        expected = columns(plain.fit(epochs=2))
        result = columns(averaging.fit(epochs=2))
        assert_arrays_match(result, expected, relative=SAME_ARITHMETIC, what="history")
        assert_arrays_match(averaging.parameters(), plain.parameters(), relative=SAME_ARITHMETIC)
        assert_raises(ConfigurationError, plain.ema_parameters, "ema_decay=")
        assert_raises(ConfigurationError, lambda: plain.evaluate(data, ema=True), "ema_decay=")

    def test_evaluating_the_average_changes_nothing(self, variant: Variant) -> None:
        """A run whose average is evaluated again and again has the bits of one that never is."""
        data = regression(29)
        experiment = variant.experiment(data, optimizer=MOMENTUM, ema_decay=DECAY)
        watched = variant.trainer(experiment, START)
        alone = variant.trainer(experiment, START)
        for updates in (3, 6, 9):  # evaluated before each part
            watched.evaluate(data, ema=True)
            watched.fit(updates=updates)
            alone.fit(updates=updates)
        before = watched.snapshot()
        watched.evaluate(data, ema=True)
        assert_snapshots_identical(watched.snapshot(), before)
        assert_snapshots_identical(watched.snapshot(), alone.snapshot())

    def test_snapshot_holds_the_average(self, variant: Variant) -> None:
        """Another trainer goes on from it; without it, the average begins at the parameters."""
        experiment = variant.experiment(regression(36), optimizer=MOMENTUM, ema_decay=DECAY)
        first = variant.trainer(experiment, START)
        second = variant.trainer(experiment)
        first.fit(epochs=1)
        second.restore(first.snapshot())
        assert_snapshots_identical(second.snapshot(), first.snapshot())
        first.fit(updates=18)
        second.fit(updates=18)
        assert_snapshots_identical(second.snapshot(), first.snapshot())
        second.load_parameters(START)
        assert_arrays_match(second.ema_parameters(), dict(START), relative=0.0, what="average")
