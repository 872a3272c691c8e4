"""Beyond linear regression: labels, unused parameters, batch statistics, randomness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import MatchError, ParameterMatchError
from multibackend.losses import CrossEntropy
from multibackend.metrics import Accuracy
from multibackend.optimizers import SGD, AdamW
from multibackend.protocol.dropout_masks import keep_mask
from multibackend.testing.assertions import (
    assert_arrays_match,
    assert_bit_identical,
    assert_raises,
    assert_snapshots_identical,
)
from multibackend.testing.conformance.problems import (
    START,
    arrays_equal,
    assert_matches_reference,
    columns,
    linear_trainer,
    load_constant,
    regression,
    tokens,
    without,
)
from multibackend.testing.conformance.skipping import assert_skipped, poisoned
from multibackend.testing.reference import cut, linear_gradient, softmax_gradient, train
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW, SAME_ARITHMETIC
from multibackend.testing.variant import Variant

__all__ = ["ClassifierConformance", "PartialUseConformance", "RandomConformance", "StatisticsConformance"]

TOKENS = CrossEntropy(target="label")


class ClassifierConformance:
    """Cross entropy over tokens. Needs "linear", `CrossEntropy`, `Accuracy`."""

    def test_ignored_labels_spread_unevenly(self, variant: Variant) -> None:
        """The divisor is how many labels of the whole window count, however they are spread."""
        data = tokens(29)
        trainer = linear_trainer(variant, data, loss=TOKENS, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=2)
        windows = cut(range(29), 3, [4, 4, 4]) * 2
        assert_matches_reference(trainer, result, train(START, data, windows, softmax_gradient))

    def test_micro_batches_without_labels(self, variant: Variant) -> None:
        """A micro-batch of ignored labels adds nothing; a window of such is skipped and counted."""
        data = tokens(36)
        data["label"][3:9] = -100  # two micro-batches of the first window
        data["label"][12:24] = -100  # the whole second window
        trainer = linear_trainer(variant, data, loss=TOKENS, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=1)
        expected = train(START, data, cut(range(36), 3, [4] * 3), softmax_gradient)
        assert_matches_reference(trainer, result, expected)
        assert_skipped(result, [(2, 0, 12, "weightless")])

    def test_metrics_over_the_whole_set(self, variant: Variant) -> None:
        """Loss and accuracy are weighted over every label that counts, whatever the batch size."""
        data = tokens(29)
        metrics = (Accuracy(target="label"),)
        trainer = linear_trainer(variant, data, loss=TOKENS, eval_data=data, metrics=metrics)
        logits = data["x"] @ START["weight"].T + START["bias"]
        used = data["label"] != -100
        accuracy = float((logits.argmax(axis=-1) == data["label"])[used].mean())
        total, weight, _ = softmax_gradient(START, data)
        expected = {"loss": total / weight, "accuracy": accuracy}
        for batch_size in (1, 4, 29):  # 29 examples: single, ragged at the end, all at once
            result = trainer.evaluate(batch_size=batch_size)
            assert_arrays_match(result, expected, relative=FORMULA)

    def test_label_out_of_range(self, variant: Variant) -> None:
        """A label that is no class is an error that names it, before its window has run."""
        data = tokens(29)
        data["label"][20, 0] = 2  # of two classes, 0 and 1
        trainer = linear_trainer(variant, data, loss=TOKENS, gradient_accumulation_steps=4)
        assert_raises(ValueError, lambda: trainer.fit(epochs=1), "label 2", "[0, 2)")


def gated_gradient(p: Arrays, batch: Arrays) -> tuple[float, float, dict[str, Any]]:
    """The squared error of main(x) + gate * extra(x); `spare` has no part in it."""
    x = batch["x"]
    gate = batch["gate"][:, None]
    extra = x @ p["extra.weight"].T + p["extra.bias"]
    residual = x @ p["main.weight"].T + p["main.bias"] + gate * extra - batch["y"]
    slope = 2 * residual
    gradient = {
        "main.weight": slope.T @ x,
        "main.bias": slope.sum(axis=0),
        "extra.weight": (gate * slope).T @ x,
        "extra.bias": (gate * slope).sum(axis=0),
        "spare.weight": np.zeros((2, 3)),
        "spare.bias": np.zeros(2),
    }
    return float((residual**2).sum()), float(residual.size), gradient


class PartialUseConformance:
    """Parameters that only some micro-batches use, or none.

    Needs "gated", called with "x" [batch, 3] and "gate" [batch]: three linear layers 3 → 2, `main`,
    `extra` and `spare`; the outputs are main(x) + gate[:, None] * extra(x). Where the framework
    can, `extra` is not called at all for a micro-batch whose gates are all 0.
    """

    parts = ("main", "extra", "spare")
    options: Mapping[str, Any] = {
        "model": "gated",
        "inputs": ("x", "gate"),
        "gradient_accumulation_steps": 4,
    }

    def start(self) -> dict[str, np.ndarray]:
        """Give the parts other values each, so that one taken for another shows."""
        start = {}
        for factor, part in enumerate(self.parts, start=1):
            for name, array in START.items():
                start[f"{part}.{name}"] = factor * array
        return start

    def data(self) -> dict[str, np.ndarray]:
        """Let the first window's second micro-batch use `extra`, and none of the third window."""
        gate = np.zeros(29)
        gate[3:6] = (1.0, -0.5, 2.0)
        gate[12:24] = 1.0
        return {**regression(29), "gate": gate}

    def test_gradient_of_some_micro_batches_is_kept(self, variant: Variant) -> None:
        """A parameter used in one of four micro-batches has the gradient that it got there."""
        data = self.data()
        start = self.start()
        experiment = variant.experiment(data, **self.options)
        trainer = variant.trainer(experiment, start)
        result = trainer.fit(epochs=2)
        windows = cut(range(29), 3, [4, 4, 4]) * 2
        assert_matches_reference(trainer, result, train(start, data, windows, gated_gradient))

    def test_unused_parameter_has_gradient_zero(self, variant: Variant) -> None:
        """Unused in a window, its gradient is 0: momentum goes on and weight decay applies."""
        data = self.data()
        start = self.start()
        options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1}
        optimizer = SGD(learning_rate=0.1, **options)
        experiment = variant.experiment(data, optimizer=optimizer, **self.options)
        trainer = variant.trainer(experiment, start)
        result = trainer.fit(epochs=2)
        windows = cut(range(29), 3, [4, 4, 4]) * 2
        expected = train(start, data, windows, gated_gradient, **options)
        assert_matches_reference(trainer, result, expected)

    def test_decoupled_decay_of_an_unused_parameter(self, variant: Variant) -> None:
        """AdamW multiplies an unused parameter by 1 - lr * weight_decay at each update."""
        optimizer = AdamW(learning_rate=0.1, weight_decay=0.2)
        experiment = variant.experiment(self.data(), optimizer=optimizer, **self.options)
        start = self.start()
        trainer = variant.trainer(experiment, start)
        trainer.fit(updates=5)
        parameters = trainer.parameters()
        for name in ("spare.weight", "spare.bias"):
            expected = start[name] * (1 - 0.1 * 0.2) ** 5
            assert_arrays_match(parameters[name], expected, relative=ONE_WINDOW, what=name)


class StatisticsConformance:
    """State that is no parameter.

    Needs "batch_norm", called with "x": a batch normalisation of 3 features called `norm`, whose
    running mean gives the new value a weight of 0.1, then a linear layer 3 → 2.
    """

    options: Mapping[str, Any] = {"model": "batch_norm", "gradient_accumulation_steps": 4}

    def test_running_mean_of_each_micro_batch_in_order(self, variant: Variant) -> None:
        """Each micro-batch moves the running mean, ragged ones too; evaluation never does."""
        data = regression(29)
        trainer = variant.trainer(variant.experiment(data, eval_data=data, **self.options))
        trainer.fit(epochs=1)
        trainer.evaluate()
        mean = np.zeros(3)
        for start in range(0, 29, 3):
            mean = 0.9 * mean + 0.1 * data["x"][start : start + 3].mean(axis=0)
        running_mean = trainer.snapshot().model_state["norm.running_mean"]
        assert_arrays_match(running_mean, mean, relative=ONE_WINDOW, what="norm.running_mean")

    def test_dropped_window_leaves_no_statistics(self, variant: Variant) -> None:
        """Statistics after a skipped window have the bits of a run where it never existed."""
        data = regression(36)
        options = {**self.options, "on_nonfinite": "skip"}
        trainer = variant.trainer(variant.experiment(poisoned(data, 19), **options))
        clean = variant.trainer(variant.experiment(without(data, 12, 24), **options))
        start = clean.snapshot()
        trainer.fit(updates=3)
        clean.fit(updates=3)
        assert_snapshots_identical(trainer.snapshot(), clean.snapshot())
        name = "norm.running_mean"
        if np.array_equal(start.model_state[name], clean.snapshot().model_state[name]):
            raise MatchError("the running mean never moved, so nothing was shown")

    def test_frozen_statistics_stay(self, variant: Variant) -> None:
        """With batch_statistics="frozen" training leaves their bits and moves the parameters."""
        experiment = variant.experiment(regression(24), batch_statistics="frozen", **self.options)
        trainer = variant.trainer(experiment)
        before = trainer.snapshot()
        trainer.fit(updates=2)
        after = trainer.snapshot()
        assert_bit_identical(after.model_state, before.model_state, what="model state")
        if arrays_equal(after.parameters, before.parameters):
            raise MatchError("no parameter moved")

    def test_a_window_moves_the_mean_like_a_large_batch(self, variant: Variant) -> None:
        """With batch_statistics="window" each of k micro-batches weighs 1 - 0.9^(1/k)."""
        data = regression(12)
        experiment = variant.experiment(data, batch_statistics="window", **self.options)
        trainer = variant.trainer(experiment)
        trainer.fit(updates=1)
        mean = np.zeros(3)
        keep = 0.9**0.25  # four times over it is the 0.9 of one large batch
        for start in range(0, 12, 3):
            mean = keep * mean + (1 - keep) * data["x"][start : start + 3].mean(axis=0)
        running_mean = trainer.snapshot().model_state["norm.running_mean"]
        assert_arrays_match(running_mean, mean, relative=ONE_WINDOW, what="norm.running_mean")

    def test_statistics_must_fit(self, variant: Variant) -> None:
        """Statistics of a snapshot that lack a name or have another shape are an error."""
        trainer = variant.trainer(variant.experiment(regression(12), **self.options))
        snapshot = trainer.snapshot()
        name = "norm.running_mean"
        lacking = dict(snapshot.model_state)
        del lacking[name]
        misshapen = {**snapshot.model_state, name: np.zeros(1)}  # would broadcast to the 3 features
        for state in (lacking, misshapen):
            spoilt = replace(snapshot, model_state=state)
            assert_raises(ParameterMatchError, lambda spoilt=spoilt: trainer.restore(spoilt), name)

    def test_snapshot_holds_the_statistics(self, variant: Variant) -> None:
        """Another trainer goes on from a snapshot to the same bits."""
        experiment = variant.experiment(regression(36), **self.options)
        first = variant.trainer(experiment)
        second = variant.trainer(experiment)
        first.fit(updates=3)
        second.restore(first.snapshot())
        first.fit(updates=6)
        second.fit(updates=6)
        assert_snapshots_identical(second.snapshot(), first.snapshot())


class RandomConformance:
    """Random layers.

    Needs "dropout", called with "x": dropout of rate 0.5 called `drop`, then a linear layer 3 →
    2 called `head`.
    """

    options: Mapping[str, Any] = {"model": "dropout", "gradient_accumulation_steps": 4}

    def test_runs_are_bit_identical(self, variant: Variant) -> None:
        """The same seed draws the same masks, another seed others."""
        data = regression(24)
        histories = []
        for seed in (3, 3, 4):  # the same twice, then another
            trainer = variant.trainer(variant.experiment(data, seed=seed, **self.options))
            # the seed decides about initial values too, which would hide that the masks do
            # not differ
            load_constant(trainer)
            histories.append(columns(trainer.fit(epochs=2)))
        assert_bit_identical(histories[1], histories[0], what="history")
        if np.array_equal(histories[2]["loss"], histories[0]["loss"]):
            raise MatchError("another seed drew the same masks")

    def test_micro_batches_draw_different_masks(self, variant: Variant) -> None:
        """Equal micro-batches have unequal losses, within a window and from window to window."""
        data = {name: np.repeat(array[:1], 12, axis=0) for name, array in regression(3).items()}
        options: dict[str, Any] = {"model": "dropout", "optimizer": SGD(learning_rate=0.0)}
        losses = []
        for steps in (1, 2, 4):
            experiment = variant.experiment(data, gradient_accumulation_steps=steps, **options)
            losses.append(variant.trainer(experiment).fit(epochs=1).history["loss"])
        if len(set(losses[0].tolist())) < 2 or losses[1][0] == losses[0][0]:
            raise MatchError(f"the masks repeat: the losses are {losses}")

    def test_portable_masks_are_those_of_the_definition(self, variant: Variant) -> None:
        """With dropout="portable" the masks are those of `protocol.dropout_masks`."""
        data = regression(12)
        experiment = variant.experiment(data, dropout="portable", seed=9, **self.options)
        start = {"head.weight": START["weight"], "head.bias": START["bias"]}
        trainer = variant.trainer(experiment, start)
        trainer.fit(updates=1)
        masks = [keep_mask(9, 0, step, "drop", (3, 3), 0.5) for step in range(4)]
        dropped = data["x"] * np.concatenate(masks) / 0.5
        _, total, gradient = linear_gradient(START, {"x": dropped, "y": data["y"]})
        expected = {}
        for name, array in START.items():
            expected[f"head.{name}"] = array - 0.1 * gradient[name] / total
        assert_arrays_match(trainer.parameters(), expected, relative=ONE_WINDOW)

    def test_dropped_window_leaves_the_stream_where_it_was(self, variant: Variant) -> None:
        """Masks after a skipped window are those of a run where it never existed."""
        data = regression(36)
        options = {**self.options, "on_nonfinite": "skip"}
        spoilt = {**data, "y": poisoned_target(data, 19)}
        trainer = variant.trainer(variant.experiment(spoilt, **options))
        clean = variant.trainer(variant.experiment(without(data, 12, 24), **options))
        trainer.fit(updates=4)
        clean.fit(updates=4)
        assert_snapshots_identical(trainer.snapshot(), clean.snapshot())

    def test_windows_per_dispatch_does_not_show(self, variant: Variant) -> None:
        """The masks depend on the update and the micro-batch, not on how windows are dispatched."""
        experiment = variant.experiment(regression(60), **self.options)
        first = variant.trainer(experiment, windows_per_dispatch=1)
        second = variant.trainer(experiment, windows_per_dispatch=3)
        expected = columns(first.fit(epochs=1))
        result = columns(second.fit(epochs=1))
        assert_arrays_match(result, expected, relative=SAME_ARITHMETIC)

    def test_evaluation_draws_nothing(self, variant: Variant) -> None:
        """Evaluation is deterministic and leaves training as it was."""
        data = regression(24)
        experiment = variant.experiment(data, eval_data=data, **self.options)
        watched = variant.trainer(experiment)
        alone = variant.trainer(experiment)
        losses = {watched.evaluate()["loss"] for _ in range(3)}
        if len(losses) != 1:
            raise MatchError(f"evaluation is random: {losses}")
        watched.fit(epochs=1)
        alone.fit(epochs=1)
        assert_snapshots_identical(watched.snapshot(), alone.snapshot())


def poisoned_target(data: Mapping[str, np.ndarray], example: int) -> np.ndarray:
    """The target with NaN in one example, which no dropout can hide."""
    target = data["y"].copy()
    target[example] = np.nan
    return target
