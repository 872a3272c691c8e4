"""What changes over a run: the learning rate and the number of micro-batches. Both count updates."""

from __future__ import annotations

import numpy as np

from multibackend.errors import MatchError
from multibackend.experiment.accumulation import EffectiveBatch
from multibackend.optimizers import SGD
from multibackend.schedules import WarmupCosine
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance.problems import START, assert_matches_reference, regression, without
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
        """Update number u has the rate schedule(u - 1): the same float, in the arithmetic and in the history."""
        data = regression(29)
        optimizer = SGD(learning_rate=COSINE)
        trainer = variant.trainer(variant.experiment(data, optimizer=optimizer, gradient_accumulation_steps=4), START)
        result = trainer.fit(updates=10)
        windows = (cut(range(29), 3, [4, 4, 4]) * 4)[:10]  # ten updates end inside the fourth epoch
        assert_matches_reference(trainer, result, train(START, data, windows, rate=COSINE))
        rates = np.array([COSINE(update) for update in range(10)])
        assert_bit_identical(result.history["learning_rate"], rates, what="learning rates")

    def test_learning_rate_scales_with_the_effective_batch(self, variant: Variant) -> None:
        """lr_scaling multiplies the rate by micro_batch_size * steps(update) / base_batch_size, or by its root."""
        data = regression(60)
        steps = np.array([4] * 3 + [2] * 4)  # as SCHEDULE has them for seven updates
        for lr_scaling, factors in (("linear", steps * 3 / 8), ("sqrt", np.sqrt(steps * 3 / 8))):
            experiment = variant.experiment(
                data,
                optimizer=SGD(learning_rate=COSINE),
                gradient_accumulation_steps=SCHEDULE,
                lr_scaling=lr_scaling,
                base_batch_size=8,
            )
            trainer = variant.trainer(experiment, START)
            result = trainer.fit(updates=7)
            rates = np.array([COSINE(update) for update in range(7)]) * factors
            windows = cut(range(60), 3, steps.tolist())
            expected = train(START, data, windows, rate=lambda update, rates=rates: rates[update])
            assert_matches_reference(trainer, result, expected)
            assert_arrays_match(result.history["learning_rate"], rates, relative=FORMULA, what="learning rates")

    def test_learning_rate_waits_for_a_skipped_window(self, variant: Variant) -> None:
        """A skipped window uses up no place of the schedule."""
        data = regression(36)
        experiment = variant.experiment(
            poisoned(data, 13), optimizer=SGD(learning_rate=COSINE), gradient_accumulation_steps=4, on_nonfinite="skip"
        )
        trainer = variant.trainer(experiment, START)
        result = trainer.fit(updates=6)
        examples = [*range(12), *range(24, 36)]
        assert_matches_reference(trainer, result, train(START, data, cut(examples, 3, [4, 4]) * 3, rate=COSINE))

    def test_accumulation_schedule(self, variant: Variant) -> None:
        """{0: 4, 3: 2}: three updates of four micro-batches, then two each, across epochs."""
        data = regression(60)
        trainer = variant.trainer(variant.experiment(data, gradient_accumulation_steps=SCHEDULE), START)
        result = trainer.fit(updates=12)
        windows = [*cut(range(60), 3, [4, 4, 4, 2, 2, 2, 2]), *cut(range(60), 3, [2] * 5)]
        assert_matches_reference(trainer, result, train(START, data, windows))
        assert_arrays_match(result.history["examples"], np.array([12] * 3 + [6] * 9), relative=0.0, what="examples")

    def test_accumulation_as_a_function(self, variant: Variant) -> None:
        """A function of the update index, here growing from one to three micro-batches."""
        data = regression(40)
        experiment = variant.experiment(data, gradient_accumulation_steps=lambda update: 1 + update % 3)
        trainer = variant.trainer(experiment, START)
        result = trainer.fit(updates=7)
        windows = cut(range(40), 3, [1, 2, 3, 1, 2, 3, 1])  # 39 of the 40 examples
        assert_matches_reference(trainer, result, train(START, data, windows))

    def test_accumulation_schedule_waits_for_a_skipped_window(self, variant: Variant) -> None:
        """A skipped window uses up no place of this schedule either, also where several windows are one dispatch."""
        data = regression(60)
        options = {"gradient_accumulation_steps": SCHEDULE, "on_nonfinite": "skip"}
        trainer = variant.trainer(variant.experiment(poisoned(data, 13), **options), START)
        result = trainer.fit(updates=6)
        clean = variant.trainer(variant.experiment(without(data, 12, 24), **options), START)
        expected = clean.fit(updates=6)
        assert_arrays_match(result.history["examples"], expected.history["examples"], relative=0.0, what="examples")
        windows = [*cut([*range(12), *range(24, 60)], 3, [4, 4, 4, 2, 2]), *cut(range(60), 3, [2])]
        assert_matches_reference(trainer, result, train(START, data, windows))

    def test_effective_batch(self, variant: Variant) -> None:
        """EffectiveBatch(12) with micro-batches of three is four micro-batches."""
        data = regression(24)
        trainer = variant.trainer(variant.experiment(data, gradient_accumulation_steps=EffectiveBatch(12)), START)
        result = trainer.fit(epochs=1)
        assert_matches_reference(trainer, result, train(START, data, cut(range(24), 12, [1, 1])))

    def test_one_compilation_serves_a_run(self, variant: Variant) -> None:
        """Full and partial windows, both schedules and further epochs compile nothing after the first epoch."""
        data = regression(62)  # its epochs end in a partial window with a ragged micro-batch
        optimizer = SGD(learning_rate=COSINE)
        experiment = variant.experiment(data, optimizer=optimizer, gradient_accumulation_steps={0: 4, 7: 2})
        trainer = variant.trainer(experiment, START)
        trainer.fit(epochs=1)
        before = trainer.program.compilations()
        trainer.fit(epochs=4)
        if trainer.program.compilations() != before:
            raise MatchError(f"compilations grew from {before} to {trainer.program.compilations()} after epoch 1")
