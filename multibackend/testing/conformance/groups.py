"""Groups of parameters: other rates, other decays, frozen ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibackend.errors import ConfigurationError
from multibackend.optimizers import SGD, Group, is_vector
from multibackend.schedules import Cosine
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
)
from multibackend.testing.conformance.skipping import poisoned
from multibackend.testing.reference import cut, train
from multibackend.testing.tolerances import SAME_ARITHMETIC
from multibackend.testing.variant import Variant

__all__ = ["GroupConformance"]

COSINE = Cosine(peak=0.2, total=10)
OPTIONS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.2}
WINDOWS = cut(range(29), 3, [4, 4, 4]) * 3  # three epochs, the last window of each 3 + 2 examples
FROZEN = Group("bias", frozen=True)


class GroupConformance:
    """`Group` by canonical name and shape, with every other rule of an update. Needs "linear"."""

    def test_rate_and_decay_of_a_group(self, variant: Variant) -> None:
        """A group's factor multiplies the rate, its weight decay replaces the optimizer's."""
        data = regression(29)
        groups = [Group(is_vector, learning_rate_factor=0.25, weight_decay=0.0)]
        optimizer = SGD(learning_rate=COSINE, groups=groups, **OPTIONS)
        limit = 0.4  # some of the windows are clipped
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_grad_norm": limit}
        trainer = linear_trainer(variant, data, optimizer=optimizer, **options)
        result = trainer.fit(epochs=3)
        expected = train(
            START,
            data,
            WINDOWS,
            rate=COSINE,
            max_grad_norm=limit,
            factors={"bias": 0.25},
            decays={"bias": 0.0},
            **OPTIONS,
        )
        assert_matches_reference(trainer, result, expected)

    def test_the_first_group_that_matches_wins(self, variant: Variant) -> None:
        """A parameter that two groups match belongs to the first."""
        data = regression(29)
        everything = Group("*", learning_rate_factor=2.0, weight_decay=0.1)
        groups = [Group("b*s", learning_rate_factor=0.5), everything]
        optimizer = SGD(learning_rate=0.05, groups=groups, **OPTIONS)
        trainer = linear_trainer(variant, data, optimizer=optimizer, gradient_accumulation_steps=4)
        result = trainer.fit(epochs=3)
        options = {**OPTIONS, "factors": {"bias": 0.5, "weight": 2.0}, "decays": {"weight": 0.1}}
        expected = train(START, data, WINDOWS, rate=0.05, **options)
        assert_matches_reference(trainer, result, expected)

    def test_frozen_parameters_stay(self, variant: Variant) -> None:
        """No bit of them changes; their gradient is no part of the norm."""
        data = regression(29)
        optimizer = SGD(learning_rate=COSINE, groups=[FROZEN], **OPTIONS)
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.4}
        trainer = linear_trainer(variant, data, optimizer=optimizer, **options)
        result = trainer.fit(epochs=3)
        assert_bit_identical(trainer.parameters()["bias"], START["bias"], what="the frozen bias")
        options = {**OPTIONS, "max_grad_norm": 0.4, "frozen": ("bias",)}
        expected = train(START, data, WINDOWS, rate=COSINE, **options)
        assert_matches_reference(trainer, result, expected)
        slots = {slot: arrays["bias"] for slot, arrays in trainer.snapshot().optimizer.items()}
        assert_bit_identical(slots, {"momentum_buffer": np.zeros(2)}, what="the frozen slots")

    def test_groups_and_a_skipped_window(self, variant: Variant) -> None:
        """A window that is not finite is dropped whole, for every group."""
        data = regression(36)
        optimizer = SGD(learning_rate=COSINE, groups=[FROZEN], **OPTIONS)
        options: dict[str, Any] = {"gradient_accumulation_steps": 4, "on_nonfinite": "skip"}
        trainer = linear_trainer(variant, poisoned(data, 13), optimizer=optimizer, **options)
        result = trainer.fit(updates=6)
        windows = cut([*range(12), *range(24, 36)], 3, [4, 4]) * 3
        expected = train(START, data, windows, rate=COSINE, frozen=("bias",), **OPTIONS)
        assert_matches_reference(trainer, result, expected)

    def test_snapshot_and_restore(self, variant: Variant) -> None:
        """A run with groups goes on from its snapshot as if nothing had happened."""
        groups = [Group("weight", learning_rate_factor=0.5), FROZEN]
        optimizer = SGD(learning_rate=COSINE, groups=groups, **OPTIONS)
        data = regression(24)
        experiment = variant.experiment(data, optimizer=optimizer, gradient_accumulation_steps=4)
        first = variant.trainer(experiment, START)
        second = variant.trainer(experiment)
        first.fit(epochs=1)
        second.restore(first.snapshot())
        assert_snapshots_identical(second.snapshot(), first.snapshot())
        expected = first.fit(epochs=2)
        result = second.fit(updates=4)  # its history begins with the third update
        assert_bit_identical(columns(result)["loss"], columns(expected)["loss"][2:], what="losses")
        assert_snapshots_identical(second.snapshot(), first.snapshot())

    def test_a_group_must_match(self, variant: Variant) -> None:
        """A group without parameters is an error, and so is a model without trained ones."""
        for groups, words in (
            ([Group("wieght")], ("'wieght'", "matches no parameter", "weight")),
            ([Group("*"), Group("bias")], ("'bias'", "an earlier group")),
            ([Group(lambda name, shape: True, frozen=True)], ("every parameter is frozen",)),
        ):
            optimizer = SGD(learning_rate=0.1, groups=groups)
            experiment = variant.experiment(regression(6), optimizer=optimizer)
            assert_raises(ConfigurationError, lambda e=experiment: variant.trainer(e), *words)

    def test_without_effect(self, variant: Variant) -> None:
        """A group that changes nothing changes nothing."""
        data = regression(29)
        runs = []
        for groups in ((), (Group("weight", weight_decay=0.2),)):
            optimizer = SGD(learning_rate=COSINE, groups=groups, **OPTIONS)
            trainer = linear_trainer(variant, data, optimizer=optimizer)
            runs.append({**columns(trainer.fit(epochs=2)), **trainer.parameters()})
        assert_arrays_match(runs[1], runs[0], relative=SAME_ARITHMETIC)
