"""The parts of the suite that need more than the stub, shown to fail on faults planted in the torch backend."""

from collections.abc import Callable
from typing import Any

import multibackend_torch.backend
import multibackend_torch.program
import multibackend_torch.step.window
import numpy as np
import pytest
import torch
from multibackend_torch.model.randomness import Randomness
from support.variants import TORCH

from multibackend.core.rng import stream_seed
from multibackend.errors import DataError, MatchError
from multibackend.losses import CrossEntropy
from multibackend.testing.conformance import (
    ClassifierConformance,
    PartialUseConformance,
    RandomConformance,
    StatisticsConformance,
)
from multibackend.training.input.epoch_reader import EpochReader

PARTS = (ClassifierConformance, PartialUseConformance, StatisticsConformance, RandomConformance)
EVERY = {f"{part.__name__}.{test}" for part in PARTS for test in vars(part) if test.startswith("test_")}
Plant = Callable[[pytest.MonkeyPatch], None]


def counts_ignored_labels(patch: pytest.MonkeyPatch) -> None:
    """Every label weighs 1, ignored or not."""
    patch.setattr(
        CrossEntropy,
        "weight_sums",
        lambda self, batch, leading: np.ones(np.shape(batch["label"])).sum(
            axis=tuple(range(leading, np.ndim(batch["label"])))
        ),
    )


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Each micro-batch by itself, whatever was asked for."""
    original = EpochReader.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "normalize": "microbatch"})

    patch.setattr(EpochReader, "__init__", init)


def mean_of_batches(patch: pytest.MonkeyPatch) -> None:
    """A metric is averaged over batches, not over labels."""
    original = multibackend_torch.program.metric_sum

    def metric_sum(*args: Any) -> Any:
        total, weight = original(*args)
        return total / weight, torch.ones_like(weight)

    patch.setattr(multibackend_torch.program, "metric_sum", metric_sum)


def no_label_check(patch: pytest.MonkeyPatch) -> None:
    """Labels are left to the framework."""
    patch.setattr(CrossEntropy, "validate", lambda self, batch, output_shape: None)


def unused_gradient_lost(patch: pytest.MonkeyPatch) -> None:
    """A parameter that no micro-batch used is skipped, as torch does by default."""
    original = multibackend_torch.step.window.WindowFunctions._update

    def update(self: Any, state: Any, *args: Any) -> None:
        for parameter in state.parameters.values():
            if not parameter.grad.any():
                parameter.grad = None
        original(self, state, *args)

    patch.setattr(multibackend_torch.step.window.WindowFunctions, "_update", update)


def last_gradient_only(patch: pytest.MonkeyPatch) -> None:
    """Gradients that did not come from every micro-batch are dropped."""
    original = multibackend_torch.step.window._gradients

    def gradients(parameters: Any) -> list[torch.Tensor]:
        found = original(parameters)
        for gradient in found[2:4]:
            gradient.zero_()
        return found

    patch.setattr(multibackend_torch.step.window, "_gradients", gradients)


def evaluates_in_training_mode(patch: pytest.MonkeyPatch) -> None:
    """Evaluation leaves the module in training mode."""
    patch.setattr(torch.nn.Module, "eval", lambda self: self.train())


def keeps_statistics(patch: pytest.MonkeyPatch) -> None:
    """A dropped window leaves a trace in the statistics."""
    original = multibackend_torch.step.window.WindowFunctions.finish

    def finish(self: Any, state: Any, *args: Any) -> Any:
        row = original(self, state, *args)
        if not row.applied:
            state.model_state["norm.running_mean"].mul_(0.9)
        return row

    patch.setattr(multibackend_torch.step.window.WindowFunctions, "finish", finish)


def takes_any_state(patch: pytest.MonkeyPatch) -> None:
    """State is loaded unchecked."""
    patch.setattr(multibackend_torch.program, "check_same_names", lambda wanted, given, what: None)


def snapshot_without_state(patch: pytest.MonkeyPatch) -> None:
    """What is restored has fresh statistics."""
    original = multibackend_torch.program.load_tensors

    def load(tensors: Any, arrays: Any) -> None:
        original(tensors, {name: array for name, array in arrays.items() if "running" not in name})

    patch.setattr(multibackend_torch.program, "load_tensors", load)


def one_mask(patch: pytest.MonkeyPatch) -> None:
    """The generator is seeded alike for every micro-batch."""
    patch.setattr(Randomness, "stamp", lambda self, update, micro_batch: self._generator.manual_seed(self._seed))


def free_running(patch: pytest.MonkeyPatch) -> None:
    """The generator runs on, seeded by nobody."""
    patch.setattr(Randomness, "stamp", lambda self, update, micro_batch: self._generator.seed())


def stamps_windows(patch: pytest.MonkeyPatch) -> None:
    """Masks depend on how often a window was begun, skipped ones included."""
    begun = {"windows": 0}

    def stamp(self: Any, update: int, micro_batch: int) -> None:
        begun["windows"] += micro_batch == 0
        self._generator.manual_seed(stream_seed(self._seed, begun["windows"], micro_batch))

    patch.setattr(Randomness, "stamp", stamp)


def statistics_as_always(patch: pytest.MonkeyPatch) -> None:
    """`batch_statistics` is not looked at."""
    original = multibackend_torch.backend.prepare_statistics
    patch.setattr(multibackend_torch.backend, "prepare_statistics", lambda module, mode: original(module, "microbatch"))


def native_masks(patch: pytest.MonkeyPatch) -> None:
    """`dropout` is not looked at."""
    original = multibackend_torch.backend.prepare_dropout

    def prepare(*args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "portable": False})

    patch.setattr(multibackend_torch.backend, "prepare_dropout", prepare)


C, P, S, R = (part.__name__ for part in PARTS)
FAULTS: dict[Plant, list[str]] = {
    counts_ignored_labels: [f"{C}.test_ignored_labels_spread_unevenly", f"{C}.test_micro_batches_without_labels"],
    mean_of_means: [f"{C}.test_ignored_labels_spread_unevenly"],
    mean_of_batches: [f"{C}.test_metrics_over_the_whole_set"],
    no_label_check: [f"{C}.test_label_out_of_range"],
    unused_gradient_lost: [
        f"{P}.test_unused_parameter_has_gradient_zero",
        f"{P}.test_decoupled_decay_of_an_unused_parameter",
    ],
    last_gradient_only: [f"{P}.test_gradient_of_some_micro_batches_is_kept"],
    evaluates_in_training_mode: [
        f"{S}.test_running_mean_of_each_micro_batch_in_order",
        f"{R}.test_evaluation_draws_nothing",
    ],
    keeps_statistics: [f"{S}.test_dropped_window_leaves_no_statistics"],
    takes_any_state: [f"{S}.test_statistics_must_fit"],
    snapshot_without_state: [f"{S}.test_snapshot_holds_the_statistics"],
    one_mask: [f"{R}.test_micro_batches_draw_different_masks"],
    free_running: [f"{R}.test_runs_are_bit_identical", f"{R}.test_windows_per_dispatch_does_not_show"],
    statistics_as_always: [
        f"{S}.test_frozen_statistics_stay",
        f"{S}.test_a_window_moves_the_mean_like_a_large_batch",
    ],
    native_masks: [f"{R}.test_portable_masks_are_those_of_the_definition"],
    stamps_windows: [f"{R}.test_dropped_window_leaves_the_stream_where_it_was"],
}


@pytest.mark.parametrize(
    ("plant", "test"),
    [(plant, test) for plant, tests in FAULTS.items() for test in tests],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_planted_fault_is_found(plant: Plant, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fault planted in torch, the test fails."""
    plant(monkeypatch)
    part, _, method = test.partition(".")
    suite = {p.__name__: p for p in PARTS}[part]()
    with pytest.raises((MatchError, DataError, IndexError)):
        getattr(suite, method)(TORCH)


def test_every_test_has_a_fault() -> None:
    """No test of these parts is without one."""
    assert EVERY - {test for tests in FAULTS.values() for test in tests} == set()
