"""Options of an experiment: terms of a loss, mixed precision, memory; a class for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multibackend.core.precision import LossScale
from multibackend.errors import MatchError, NonFiniteError
from multibackend.experiment.accumulation import EffectiveBatch
from multibackend.losses import Custom, MeanSquaredError
from multibackend.optimizers import Adam
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import (
    START,
    columns,
    linear_trainer,
    load_constant,
    moved_by_gradient,
    regression,
)
from multibackend.testing.conformance.skipping import assert_skipped
from multibackend.testing.reference import linear_gradient
from multibackend.testing.tolerances import ONE_WINDOW, SAME_ARITHMETIC
from multibackend.testing.variant import Variant

__all__ = ["MemoryConformance", "PrecisionConformance", "TermConformance"]


def _weighted() -> dict[str, np.ndarray]:
    """Draw 12 examples with two weights, the second rare."""
    rare = np.zeros(12)
    rare[[2, 7, 8, 11]] = [1.0, 3.0, 0.5, 2.0]
    return {**regression(12), "w": np.random.default_rng(7).uniform(0.1, 2, 12), "rare": rare}


def _mean_output(xp: Any, outputs: Any, batch: Any) -> Any:
    return xp.mean(outputs)


class TermConformance:
    """Several named terms of a loss. Needs "linear"."""

    terms: Mapping[str, Any] = {
        "main": MeanSquaredError(target="y", weights="w"),
        "rare": MeanSquaredError(target="y", weights="rare", scale=0.5),
    }

    def test_each_term_has_its_own_weights(self, variant: Variant) -> None:
        """A window's gradient is the sum of the terms' weighted means, wherever the weights are."""
        data = _weighted()
        trainer = linear_trainer(variant, data, loss=self.terms, gradient_accumulation_steps=4)
        history = trainer.fit(updates=1).history
        moved = moved_by_gradient(START, trainer.parameters())
        expected: dict[str, Any] = dict.fromkeys(START, 0.0)
        for name, field, scale in (("main", "w", 1.0), ("rare", "rare", 0.5)):
            total, weight, gradient = linear_gradient(START, {**data, "w": data[field]})
            loss = np.array([scale * total / weight])
            assert_arrays_match(history[f"loss/{name}"], loss, relative=ONE_WINDOW)
            for key, value in expected.items():
                expected[key] = value + scale * gradient[key] / weight
        assert_arrays_match(moved, expected, relative=ONE_WINDOW, what="gradient")

    def test_an_auxiliary_term_keeps_its_size(self, variant: Variant) -> None:
        """A term that counts once for each micro-batch has one gradient, whatever k is."""
        auxiliary = Custom(_mean_output, per="micro_batch", scale=5.0)
        terms = {"main": MeanSquaredError(target="y"), "auxiliary": auxiliary}
        runs = []
        for steps in (1, 2, 4):
            options: dict[str, Any] = {"loss": terms, "micro_batch_size": 12 // steps}
            options["gradient_accumulation_steps"] = steps
            trainer = linear_trainer(variant, regression(12), **options)
            trainer.fit(updates=1)
            runs.append(trainer.parameters())
        for parameters in runs[1:]:
            assert_arrays_match(parameters, runs[0], relative=ONE_WINDOW)

    def test_only_a_window_without_any_weight_is_skipped(self, variant: Variant) -> None:
        """A term without weight adds nothing; a window without any is skipped and counted."""
        data = _weighted()
        data["w"][:6] = 0.0
        data["rare"][:3] = 0.0  # the first window weighs nothing, the second has its rare term
        data["rare"][3:6] = 1.0
        experiment = variant.experiment(data, loss=self.terms, gradient_accumulation_steps=1)
        result = variant.trainer(experiment, START).fit(epochs=1)
        assert_skipped(result, [(1, 0, 0, "weightless")])
        losses = result.history["loss/main"]
        if len(losses) != 3 or losses[0] != 0:
            raise MatchError(f"the losses of the three other windows are {losses}")


class PrecisionConformance:
    """Mixed precision. Needs "linear"."""

    def test_what_is_kept_is_float32(self, variant: Variant) -> None:
        """Parameters and optimizer slots, in bf16 and in fp16."""
        for precision in ("bf16", "fp16"):
            options = {"optimizer": Adam(learning_rate=0.01), "precision": precision}
            trainer = linear_trainer(variant, regression(12), **options)
            trainer.fit(updates=3)
            state = trainer.snapshot()
            dtypes = set()
            for arrays in (state.parameters, *state.optimizer.values()):
                for array in arrays.values():
                    dtypes.add(str(array.dtype))
            if dtypes != {"float32"}:
                raise MatchError(f"a {precision} run keeps {dtypes}")

    def test_an_overflow_drops_its_window_and_halves_the_scale(self, variant: Variant) -> None:
        """The same windows on every backend; on_nonfinite="raise" has nothing to say about them.

        The derivative by one output is 2 * 3000 / 12 = 500, which float16 (up to 65504) holds at
        the scale 2^7 at most, less where the gradient of a weight is a larger sum: this one holds
        it at 2^5.
        """
        data = regression(6)
        data["y"][0] = 3e3  # the one large target
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=2, precision="fp16")
        windows = [(skipped.update, skipped.reason) for skipped in trainer.fit(updates=4).skipped]
        scale = trainer.snapshot().loss_scale
        # eleven halvings from the initial 2^16 to 2^5, then four updates at it
        if windows != [(1, "overflow")] * 11 or scale != LossScale(2.0**5, 4):
            raise MatchError(f"skipped {windows}, then {scale}")

    def test_a_gradient_that_overflows_at_every_scale_fails(self, variant: Variant) -> None:
        """After 16 halvings the scale is 1, and on_nonfinite decides.

        The loss is finite, in float32: about 0.3 * 60000 squared. The gradient of a weight is
        the outputs' of some thousands times 60000, which float16 does not hold.
        """
        data = regression(6)
        data["x"][0] = 6e4
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=2, precision="fp16")
        assert_raises(NonFiniteError, lambda: trainer.fit(updates=1), "weight")
        if trainer.snapshot().loss_scale != LossScale(1.0, 0):
            raise MatchError(f"the scale is {trainer.snapshot().loss_scale}")


class MemoryConformance:
    """Rematerialisation, and micro-batches as large as memory allows.

    Needs "batch_norm", see `StatisticsConformance`.
    """

    options: Mapping[str, Any] = {"model": "batch_norm", "gradient_accumulation_steps": 4}

    def test_rematerialisation_changes_no_value(self, variant: Variant) -> None:
        """Parameters and statistics match the plain run, but for what a compiler fuses."""
        runs = []
        for rule in (False, True):
            experiment = variant.experiment(regression(29), rematerialize=rule, **self.options)
            trainer = variant.trainer(experiment)
            load_constant(trainer)
            trainer.fit(epochs=2)
            state = trainer.snapshot()
            runs.append({**state.parameters, **state.model_state})
        assert_arrays_match(runs[1], runs[0], relative=SAME_ARITHMETIC)

    def test_auto_is_the_number_that_it_becomes(self, variant: Variant) -> None:
        """The effective batch is kept exactly, and the search leaves no trace in the run."""
        steps = EffectiveBatch(24)
        described = variant.experiment(
            regression(96),
            model="batch_norm",
            micro_batch_size="auto",
            gradient_accumulation_steps=steps,
            memory_budget="1GiB",
        )
        auto = variant.trainer(described)
        size = auto.experiment.micro_batch_size
        if size != 24:  # the whole effective batch at once
            raise MatchError(f"24 examples fit 1 GiB, but micro_batch_size became {size}")
        fixed = variant.trainer(described.replace(micro_batch_size=24, memory_budget=None))
        result = columns(auto.fit(epochs=1))
        expected = columns(fixed.fit(epochs=1))
        assert_bit_identical(result, expected, what="history")
