"""What changes over a run, by update: the learning rate and the number of micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibackend.errors import MatchError
from multibackend.experiment.accumulation import EffectiveBatch
from multibackend.optimizers import SGD
from multibackend.schedules import WarmupCosine
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance.problems import (
    START,
    assert_matches_reference,
    linear_trainer,
    regression,
    without,
)
from multibackend.testing.conformance.skipping import poisoned
from multibackend.testing.reference import cut, train
from multibackend.testing.tolerances import FORMULA
from multibackend.testing.variant import Variant

__all__ = ["ScheduleConformance"]

SCHEDULE = {0: 4, 3: 2}  # k = 4, and from update index 3 on k = 2
COSINE = WarmupCosine(peak=0.2, warmup=2, total=8, final=0.01)


class ScheduleConformance:
    """Schedules are functions of the update index, never of micro-batches. Needs "linear"."""

    def test_learning_rate_counts_updates(self, variant: Variant) -> None:
        """Update number u has the rate schedule(u - 1), in the arithmetic and in the history."""
        data = regression(29)
        optimizer = SGD(learning_rate=COSINE)
        trainer = linear_trainer(variant, data, optimizer=optimizer, gradient_accumulation_steps=4)
        result = trainer.fit(updates=10)
        windows = (cut(range(29), 3, [4, 4, 4]) * 4)[:10]  # ten updates end inside the fourth epoch
        assert_matches_reference(trainer, result, train(START, data, windows, rate=COSINE))
        rates = np.array([COSINE(update) for update in range(10)])
        assert_bit_identical(result.history["learning_rate"], rates, what="learning rates")

    def test_learning_rate_scales_with_the_effective_batch(self, variant: Variant) -> None:
        """lr_scaling multiplies the rate by effective batch / base_batch_size, or by its root."""
        data = regression(60)
        steps = np.array([4] * 3 + [2] * 4)  # as SCHEDULE has them for seven updates
        for lr_scaling, factors in (("linear", steps * 3 / 8), ("sqrt", np.sqrt(steps * 3 / 8))):
            options: dict[str, Any] = {"lr_scaling": lr_scaling, "base_batch_size": 8}
            options["gradient_accumulation_steps"] = SCHEDULE
            trainer = linear_trainer(variant, data, optimizer=SGD(learning_rate=COSINE), **options)
            result = trainer.fit(updates=7)
            rates = np.array([COSINE(update) for update in range(7)]) * factors
            windows = cut(range(60), 3, steps.tolist())
            expected = train(START, data, windows, rate=lambda update, rates=rates: rates[update])
            assert_matches_reference(trainer, result, expected)
            history = result.history["learning_rate"]
            assert_arrays_match(history, rates, relative=FORMULA, what="learning rates")

    def test_learning_rate_waits_for_a_skipped_window(self, variant: Variant) -> None:
        """A skipped window uses up no place of the schedule."""
        data = regression(36)
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "on_nonfinite": "skip"}
        options["optimizer"] = SGD(learning_rate=COSINE)
        trainer = linear_trainer(variant, poisoned(data, 13), **options)
        result = trainer.fit(updates=6)
        examples = [*range(12), *range(24, 36)]
        expected = train(START, data, cut(examples, 3, [4, 4]) * 3, rate=COSINE)
        assert_matches_reference(trainer, result, expected)

    def test_accumulation_schedule(self, variant: Variant) -> None:
        """{0: 4, 3: 2}: three updates of four micro-batches, then two each, across epochs."""
        data = regression(60)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=SCHEDULE)
        result = trainer.fit(updates=12)
        windows = [*cut(range(60), 3, [4, 4, 4, 2, 2, 2, 2]), *cut(range(60), 3, [2] * 5)]
        assert_matches_reference(trainer, result, train(START, data, windows))
        sizes = np.array([12] * 3 + [6] * 9)
        assert_arrays_match(result.history["examples"], sizes, relative=0.0, what="examples")

    def test_accumulation_as_a_function(self, variant: Variant) -> None:
        """A function of the update index, here growing from one to three micro-batches."""
        data = regression(40)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=lambda u: 1 + u % 3)
        result = trainer.fit(updates=7)
        windows = cut(range(40), 3, [1, 2, 3, 1, 2, 3, 1])  # 39 of the 40 examples
        assert_matches_reference(trainer, result, train(START, data, windows))

    def test_accumulation_schedule_waits_for_a_skipped_window(self, variant: Variant) -> None:
        """A skipped window uses up no place of this schedule either, also inside a dispatch."""
        data = regression(60)
        options = {"gradient_accumulation_steps": SCHEDULE, "on_nonfinite": "skip"}
        trainer = linear_trainer(variant, poisoned(data, 13), **options)
        result = trainer.fit(updates=6)
        clean = linear_trainer(variant, without(data, 12, 24), **options)
        sizes = clean.fit(updates=6).history["examples"]
        assert_arrays_match(result.history["examples"], sizes, relative=0.0, what="examples")
        windows = [*cut([*range(12), *range(24, 60)], 3, [4, 4, 4, 2, 2]), *cut(range(60), 3, [2])]
        assert_matches_reference(trainer, result, train(START, data, windows))

    def test_effective_batch(self, variant: Variant) -> None:
        """EffectiveBatch(12) with micro-batches of three is four micro-batches."""
        data = regression(24)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=EffectiveBatch(12))
        result = trainer.fit(epochs=1)
        assert_matches_reference(trainer, result, train(START, data, cut(range(24), 12, [1, 1])))

    def test_one_compilation_serves_a_run(self, variant: Variant) -> None:
        """Partial windows, both schedules and further epochs compile nothing after epoch 1."""
        data = regression(62)  # its epochs end in a partial window with a ragged micro-batch
        options: dict[str, Any] = {"gradient_accumulation_steps": {0: 4, 7: 2}}
        trainer = linear_trainer(variant, data, optimizer=SGD(learning_rate=COSINE), **options)
        trainer.fit(epochs=1)
        before = trainer.program.compilations()
        trainer.fit(epochs=4)
        after = trainer.program.compilations()
        if after != before:
            raise MatchError(f"compilations grew from {before} to {after} after epoch 1")
