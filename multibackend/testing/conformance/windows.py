"""What a window is: its loss, its gradient, its examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibackend.core.rng import epoch_order
from multibackend.losses import MeanSquaredError
from multibackend.optimizers import SGD
from multibackend.testing.assertions import assert_arrays_match, assert_bit_identical
from multibackend.testing.conformance.problems import START, assert_matches_reference, linear_trainer, regression
from multibackend.testing.reference import cut, train
from multibackend.testing.variant import Variant

__all__ = ["WindowConformance"]

WEIGHTED = MeanSquaredError(target="y", weights="w")


class WindowConformance:
    """k micro-batches are one large batch; weights, clipping, data order. Needs "linear"."""

    def test_window_equals_one_large_batch(self, variant: Variant) -> None:
        """Four micro-batches of three make the update that one batch of twelve makes."""
        data = regression(24)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4)
        result = trainer.fit(updates=4)
        windows = cut(range(24), 12, [1, 1])  # of one micro-batch each
        assert_matches_reference(trainer, result, train(START, data, [*windows, *windows]))

    def test_partial_window_and_ragged_micro_batch(self, variant: Variant) -> None:
        """An epoch's last window updates with what it has: a micro-batch and two more examples."""
        data = regression(29)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=2)
        windows = cut(range(29), 3, [4, 4, 4])  # 12, 12 and 5 examples
        assert_matches_reference(trainer, result, train(START, data, [*windows, *windows]))
        sizes = np.array([12, 12, 5] * 2)
        assert_arrays_match(result.history["examples"], sizes, relative=0.0, what="examples")

    def test_data_smaller_than_a_micro_batch(self, variant: Variant) -> None:
        """Two examples are one window of one ragged micro-batch."""
        data = regression(2)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4)
        result = trainer.fit(updates=3)
        expected = train(START, data, cut(range(2), 2, [1]) * 3)  # three epochs
        assert_matches_reference(trainer, result, expected)

    def test_weights_spread_unevenly(self, variant: Variant) -> None:
        """The divisor is the window's sum of weights, however they fall into micro-batches."""
        data = {**regression(29), "w": np.random.default_rng(0).uniform(0, 3, 29)}
        data["w"][3:8] = 0.0  # one whole micro-batch and part of another
        data["w"][27:] = 0.0  # all of the ragged micro-batch
        trainer = linear_trainer(variant, data, loss=WEIGHTED, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=1)
        assert_matches_reference(trainer, result, train(START, data, cut(range(29), 3, [4, 4, 4])))

    def test_mean_of_means_by_name(self, variant: Variant) -> None:
        """normalize="microbatch" divides by the number of micro-batches in the window."""
        data = {**regression(29), "w": np.random.default_rng(1).uniform(0, 3, 29)}
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "normalize": "microbatch"}
        trainer = linear_trainer(variant, data, loss=WEIGHTED, **options)
        result = trainer.fit(epochs=1)
        windows = cut(range(29), 3, [4, 4, 4])
        assert_matches_reference(trainer, result, train(START, data, windows, by_micro_batch=True))

    def test_drop_last(self, variant: Variant) -> None:
        """drop_last drops a window that is not full; the next epoch begins at its beginning."""
        data = regression(29)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4, drop_last=True)
        result = trainer.fit(epochs=2)
        windows = cut(range(29), 3, [4, 4, 4], drop_last=True)
        assert_matches_reference(trainer, result, train(START, data, [*windows, *windows]))

    def test_data_of_unknown_length(self, variant: Variant) -> None:
        """An iterable's epochs end where it ends: the windows of arrays, bit for bit.

        With and without reading ahead, going on after a stop, and with drop_last, too.
        """
        data = regression(29)
        rows = [{"x": x, "y": y} for x, y in zip(data["x"], data["y"], strict=True)]
        sources = ((data, False), (rows.__iter__, False), (rows.__iter__, True))
        for drop_last in (False, True):
            options: dict[str, Any] = {"gradient_accumulation_steps": 4, "drop_last": drop_last}
            windows = cut(range(29), 3, [4, 4, 4], drop_last=drop_last) * 3
            expected = train(START, data, windows)
            runs = []
            for source, read_ahead in sources:
                execution = {"windows_per_dispatch": 2, "read_ahead": read_ahead}
                trainer = variant.trainer(variant.experiment(source, **options), START, **execution)
                trainer.fit(updates=1)
                result = trainer.fit(epochs=3)
                assert_matches_reference(trainer, result, expected)
                run = trainer.parameters()
                for name in ("loss", "examples", "epoch"):
                    run[name] = result.history[name]
                runs.append(run)
            for run in runs[1:]:
                assert_bit_identical(run, runs[0])

    def test_clipping(self, variant: Variant) -> None:
        """A gradient longer than max_grad_norm is scaled by max_grad_norm / norm, others are not.

        The norm that is reported is the one before clipping.
        """
        data = regression(29)
        windows = cut(range(29), 3, [4, 4, 4])
        norms = train(START, data, windows).norms
        limit = float(np.median(norms))  # clips some of the windows and not others
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4, max_grad_norm=limit)
        result = trainer.fit(epochs=2)
        expected = train(START, data, [*windows, *windows], max_grad_norm=limit)
        assert_matches_reference(trainer, result, expected)

    def test_momentum_and_decay(self, variant: Variant) -> None:
        """Nesterov momentum and weight decay as the docstring of SGD writes them, per window."""
        data = regression(29)
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}
        optimizer = SGD(learning_rate=0.05, **options)
        trainer = linear_trainer(variant, data, optimizer=optimizer, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=3)
        windows = cut(range(29), 3, [4, 4, 4]) * 3
        assert_matches_reference(trainer, result, train(START, data, windows, rate=0.05, **options))

    def test_data_order(self, variant: Variant) -> None:
        """Shuffled, each epoch visits the examples in the order that (seed, epoch, length) give."""
        data = regression(29)
        trainer = linear_trainer(variant, data, gradient_accumulation_steps=4, shuffle=True, seed=5)
        result = trainer.fit(epochs=2)
        windows = []
        for epoch in (0, 1):  # whose orders differ
            windows += cut(epoch_order(5, epoch, 29, shuffle=True), 3, [4, 4, 4])
        assert_matches_reference(trainer, result, train(START, data, windows))
