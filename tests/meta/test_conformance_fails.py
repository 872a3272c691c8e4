"""Each test of the suite is shown to fail on a backend with a planted fault, so that passing it means something."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from multibackend_stub.backend import Linear, State, StubBackend, StubProgram

import multibackend.training.plan
from multibackend.errors import DataError, MatchError, NonFiniteError
from multibackend.optimizers import GroupedParameters, resolve_groups
from multibackend.protocol import Rates
from multibackend.protocol.values import inverse
from multibackend.schedules import learning_rate_at
from multibackend.testing import Variant
from multibackend.testing.conformance import (
    AverageConformance,
    GroupConformance,
    ResumeConformance,
    ScheduleConformance,
    SkipConformance,
    StateConformance,
    WindowConformance,
)

VARIANT = Variant("stub", {"linear": lambda: Linear(3, 2)}, windows_per_dispatch=2)
PARTS = (
    WindowConformance,
    SkipConformance,
    ScheduleConformance,
    StateConformance,
    GroupConformance,
    AverageConformance,
    ResumeConformance,
)
EVERY = {f"{part.__name__}.{test}" for part in PARTS for test in vars(part) if test.startswith("test_")}
Window = Callable[..., Any]


class TailDividedByK(StubProgram):
    """A partial window is divided as if it were full."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        k = self.experiment.accumulation.steps(state.update)
        batches = [(batch, factor * len(micro_batches) / k) for batch, factor in micro_batches]
        return super().window(state, batches, weight, rates)


class MeanOfMeans(StubProgram):
    """Each micro-batch is averaged by itself, its weights forgotten."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        batches = []
        for batch, _ in micro_batches:
            weight = float(self.loss.weight_sums(batch, 0))
            batches.append((batch, 1 / (weight * len(micro_batches)) if weight else 0.0))
        return super().accumulate(state, batches)


class ForgetsTheBeginning(StubProgram):
    """A window that was stopped inside makes its update from the micro-batches that came afterwards."""

    def run_part(self, state: State, placed: Any, opened: Any, start: int, stop: int) -> Any:
        return stop

    def run_rest(self, state: State, placed: Any, opened: Any, start: int, rates: Rates) -> Any:
        batches = [(batch, float(inverse(divisors[0]))) for batch, divisors in placed.micro_batches(0)][start:]
        state, row = self.window(state, batches, float(placed.weights[0, 0]), rates)
        return state, [row]

    def snapshot_window(self, state: State, opened: Any) -> Any:
        raise NotImplementedError

    def restore_window(self, state: State, placed: Any, half: Any) -> Any:
        raise NotImplementedError


class WindowMean(StubProgram):
    """The window's mean, whatever normalize= says."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        total = sum(float(self.loss.weight_sums(batch, 0)) for batch, _ in micro_batches)
        return super().accumulate(state, [(batch, 1 / total if total else 0.0) for batch, _ in micro_batches])


class Unnormalised(StubProgram):
    """The sum instead of the mean."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        return super().accumulate(state, [(batch, 1.0) for batch, _ in micro_batches])


class LosesTheRagged(StubProgram):
    """A ragged last micro-batch is dropped."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        size = int(self.experiment.micro_batch_size)
        return super().accumulate(state, [pair for pair in micro_batches if len(pair[0]["x"]) == size])


class ScheduleOfMicroBatches(StubProgram):
    """The schedule is fed micro-batches."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        rate = learning_rate_at(self.spec.learning_rate, state.update * len(micro_batches))
        return super().window(state, micro_batches, weight, Rates(state.update, np.array([rate])))


class ScheduleOfWindows(StubProgram):
    """The schedule moves on with a skipped window too."""

    seen = 0

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        rate = learning_rate_at(self.spec.learning_rate, self.seen)
        self.seen += 1
        return super().window(state, micro_batches, weight, Rates(state.update, np.array([rate])))


class StaleAccumulator(StubProgram):
    """The accumulator is cleared by multiplying with 0, which keeps a NaN for ever."""

    left: Any = None

    def accumulate(self, state: State, micro_batches: list) -> Any:
        loss, gradient = super().accumulate(state, micro_batches)
        if self.left is not None:
            with np.errstate(invalid="ignore"):
                gradient = {name: array + 0.0 * self.left[name] for name, array in gradient.items()}
        self.left = gradient
        return loss, gradient


class DropsOneMicroBatch(StubProgram):
    """Only the micro-batch with the NaN is dropped, not its window."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        return super().accumulate(state, [pair for pair in micro_batches if np.isfinite(pair[0]["x"]).all()])


class ClipsAlways(StubProgram):
    """Scaled to max_grad_norm, also where the norm is less."""

    def clip(self, gradient: dict, norm: float) -> dict:
        limit = self.experiment.max_grad_norm
        return gradient if limit is None else {name: array * limit / norm for name, array in gradient.items()}


class ClipsLikeTorch(StubProgram):
    """max_norm / (norm + 1e-6)."""

    def clip(self, gradient: dict, norm: float) -> dict:
        limit = self.experiment.max_grad_norm
        scale = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        return {name: array * scale for name, array in gradient.items()}


class WeightlessUpdates(StubProgram):
    """A window without weight still decays the momentum and counts as an update."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        after, row = super().window(state, micro_batches, weight, rates)
        if row.applied or not row.finite:
            return after, row
        zero = {name: np.zeros_like(array) for name, array in state.parameters.items()}
        return self.step(state, zero, self.rate(state, rates)), replace(row, applied=True)


class DampedMomentum(StubProgram):
    """The first step of the momentum is damped."""

    def step(self, state: State, gradient: dict, rate: float) -> State:
        damping = 1 - self.spec.momentum
        return super().step(state, {name: damping * array for name, array in gradient.items()}, rate)


class IgnoresRaise(StubProgram):
    """on_nonfinite="raise" is taken for "skip"."""

    def read(self, results: Any) -> Any:
        return replace(super().read(results), finite=np.ones(len(results), bool))


class LooksAtGradientsOnly(StubProgram):
    """A loss that is not finite passes where its gradient is."""

    def is_finite(self, loss: float, norm: float) -> bool:
        return bool(np.isfinite(norm))


class NamesAllParameters(StubProgram):
    """Blames nobody: the norms of single gradients are not told."""

    def read(self, results: Any) -> Any:
        read = super().read(results)
        return replace(read, gradient_norms=np.ones_like(read.gradient_norms))


class AppliesBeforeRaising(StubProgram):
    """The state is spoilt before the error."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        after, row = super().window(state, micro_batches, weight, rates)
        spoilt = {name: array + 1.0 for name, array in after.parameters.items()}
        return (after if row.finite else replace(after, parameters=spoilt)), row


class StaysFrozen(StubProgram):
    """After an error the state never moves on, nor can it be told from a fresh one."""

    def restore(self, snapshot: Any) -> State:
        raise NonFiniteError("frozen", update=0)


class Random(StubProgram):
    """Another number in every run."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        loss, gradient = super().accumulate(state, micro_batches)
        return loss, {name: array + 1e-13 * np.random.normal() for name, array in gradient.items()}


class EvaluationTrains(StubProgram):
    """Evaluation moves a parameter."""

    def evaluate(self, state: State, batch: Any) -> Any:
        state.parameters["bias"] += 1e-9
        return super().evaluate(state, batch)


class MeanOfBatches(StubProgram):
    """Evaluation averages the means of its batches."""

    def evaluate(self, state: State, batch: Any) -> Any:
        total, weight, collected = super().evaluate(state, batch)
        return total / weight, 1.0, collected


class ForgetsSlots(StubProgram):
    """A snapshot without momentum."""

    def snapshot(self, state: State) -> Any:
        return replace(super().snapshot(state), optimizer={})


class SharesMemory(StubProgram):
    """A snapshot is a view."""

    def snapshot(self, state: State) -> Any:
        return replace(super().snapshot(state), parameters=dict(state.parameters))

    def step(self, state: State, gradient: dict, rate: float) -> State:
        after = super().step(state, gradient, rate)
        for name, array in after.parameters.items():
            state.parameters[name][...] = array
        return replace(after, parameters=state.parameters)


class LoadsAnything(StubProgram):
    """Shapes broadcast silently, and what is loaded is rounded."""

    def restore(self, snapshot: Any) -> State:
        rounded = {n: np.asarray(a, np.float32).astype(float) for n, a in snapshot.parameters.items()}
        return super().restore(replace(snapshot, parameters=rounded))


class OnePrecision(StubProgram):
    """A process-wide precision: every run is float64."""

    def init(self) -> State:
        state = super().init()
        return replace(state, parameters={n: a.astype(np.float64) for n, a in state.parameters.items()})

    def restore(self, snapshot: Any) -> State:
        return State(
            {n: np.array(a, np.float64) for n, a in snapshot.parameters.items()},
            {n: np.zeros_like(a) for n, a in snapshot.parameters.items()},
            snapshot.update,
        )


class CompilesAgain(StubProgram):
    """Every window is compiled anew."""

    count = 0

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        self.count += 1
        return super().window(state, micro_batches, weight, rates)

    def compilations(self) -> int:
        return self.count


class RateOfTheDispatch(StubProgram):
    """All windows of a dispatch have the rate of the first."""

    def run(self, state: State, placed: Any, rates: Rates) -> Any:
        first = self.rate(state, rates)
        return super().run(state, placed, Rates(rates.first, np.full(len(rates.values), first)))


class FirstRateOfTheTable(StubProgram):
    """The table of rates is taken for the rate of this update."""

    def rate(self, state: State, rates: Rates) -> float:
        return float(rates.values[0])


class FirstMicroBatchTwice(StubProgram):
    """A micro-batch is counted twice."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        return super().accumulate(state, [*micro_batches, *micro_batches[:1]])


class UnscaledRate(StubProgram):
    """The optimizer's own rate, whatever lr_scaling says."""

    def rate(self, state: State, rates: Rates) -> float:
        return learning_rate_at(self.spec.learning_rate, state.update)


class NoGroups(StubProgram):
    """Groups are forgotten, and nobody looks whether they match."""

    def grouped(self, shapes: Any) -> dict:
        return {name: GroupedParameters((name,), self.spec) for name in shapes}


class LastGroupWins(StubProgram):
    """Of two groups that match, the later one is taken."""

    def grouped(self, shapes: Any) -> dict:
        found = {}
        for group in self.spec.groups:
            alone = replace(self.spec, groups=(group,))
            parts = resolve_groups(alone, shapes)
            found |= {name: part for part in parts for name in part.names if group.matches(name, shapes[name])}
        return found


class FrozenGradientsCount(StubProgram):
    """Frozen parameters do not move, but their gradient is in the norm."""

    def accumulate(self, state: State, micro_batches: list) -> Any:
        groups, self.groups = self.groups, {name: GroupedParameters((name,), self.spec) for name in self.groups}
        result = super().accumulate(state, micro_batches)
        self.groups = groups
        return result


class DecaysEveryGroup(StubProgram):
    """A group without a decay of its own has none."""

    def grouped(self, shapes: Any) -> dict:
        groups = super().grouped(shapes)
        factors = {name: group for name, group in groups.items() if group.learning_rate_factor == 1.0}
        bare = {n: replace(g, spec=replace(g.spec, weight_decay=0.0)) for n, g in factors.items()}
        return groups | (bare if self.spec.groups else {})


class AveragesMicroBatches(StubProgram):
    """The average moves on with each micro-batch."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        state, row = super().window(state, micro_batches, weight, rates)
        for _ in micro_batches[1:]:
            state = replace(state, ema=self.average(state, state.parameters))
        return state, row


class AveragesSkippedWindows(StubProgram):
    """The average moves on with a skipped window too."""

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> Any:
        after, row = super().window(state, micro_batches, weight, rates)
        return (after if row.applied else replace(after, ema=self.average(state, state.parameters))), row


class WarmsUpLate(StubProgram):
    """The warm-up counts updates from 1."""

    def average(self, state: State, parameters: dict) -> Any:
        return super().average(replace(state, update=state.update + 1), parameters)


class TrainsTheAverage(StubProgram):
    """The average takes the place of the parameters."""

    def step(self, state: State, gradient: dict, rate: float) -> State:
        after = super().step(state, gradient, rate)
        return replace(after, parameters=after.ema or after.parameters)


class EvaluatingMovesTheAverage(StubProgram):
    """An evaluation of the average leaves its mark on it."""

    def evaluate(self, state: State, batch: Any, *, ema: bool = False) -> Any:
        if ema:
            state.ema["weight"][...] *= 1.001
        return super().evaluate(state, batch, ema=ema)


class EvaluatesTheParameters(StubProgram):
    """The average is not what is evaluated."""

    def evaluate(self, state: State, batch: Any, *, ema: bool = False) -> Any:
        return super().evaluate(state, batch)


class ForgetsTheAverage(StubProgram):
    """What is restored begins the average anew."""

    def restore(self, snapshot: Any) -> State:
        return super().restore(replace(snapshot, ema={}))


W, K, C, T, G, A, R = (part.__name__ for part in PARTS)
FAULTS: dict[type[StubProgram], list[str]] = {
    UnscaledRate: [f"{C}.test_learning_rate_scales_with_the_effective_batch"],
    NoGroups: [
        f"{G}.test_rate_and_decay_of_a_group",
        f"{G}.test_frozen_parameters_stay",
        f"{G}.test_groups_and_a_skipped_window",
        f"{G}.test_a_group_must_match",
    ],
    LastGroupWins: [f"{G}.test_the_first_group_that_matches_wins"],
    FrozenGradientsCount: [f"{G}.test_frozen_parameters_stay"],
    DecaysEveryGroup: [f"{G}.test_without_effect"],
    TailDividedByK: [
        f"{W}.test_partial_window_and_ragged_micro_batch",
        f"{W}.test_data_smaller_than_a_micro_batch",
        f"{W}.test_data_order",
    ],
    MeanOfMeans: [f"{W}.test_weights_spread_unevenly", f"{W}.test_partial_window_and_ragged_micro_batch"],
    WindowMean: [f"{W}.test_mean_of_means_by_name"],
    Unnormalised: [
        f"{W}.test_window_equals_one_large_batch",
        f"{W}.test_drop_last",
        f"{C}.test_effective_batch",
        f"{C}.test_accumulation_schedule",
        f"{C}.test_accumulation_as_a_function",
    ],
    LosesTheRagged: [
        f"{W}.test_partial_window_and_ragged_micro_batch",
        f"{W}.test_data_order",
        f"{W}.test_data_of_unknown_length",
    ],
    FirstMicroBatchTwice: [f"{W}.test_window_equals_one_large_batch", f"{C}.test_effective_batch"],
    ScheduleOfMicroBatches: [f"{C}.test_learning_rate_counts_updates"],
    ScheduleOfWindows: [
        f"{C}.test_learning_rate_waits_for_a_skipped_window",
        f"{K}.test_window_without_weight_changes_nothing_and_is_counted",
        f"{K}.test_several_windows_per_dispatch_across_a_skip",
    ],
    StaleAccumulator: [
        f"{K}.test_nonfinite_window_is_dropped_whole",
        f"{K}.test_several_windows_per_dispatch_across_a_skip",
        f"{C}.test_accumulation_schedule_waits_for_a_skipped_window",
    ],
    DropsOneMicroBatch: [
        f"{K}.test_nonfinite_window_is_dropped_whole",
        f"{K}.test_nonfinite_ragged_window_is_dropped_whole",
        f"{K}.test_nonfinite_raises_with_update_and_parameters",
    ],
    ClipsAlways: [f"{W}.test_clipping"],
    ClipsLikeTorch: [f"{W}.test_clipping"],
    WeightlessUpdates: [
        f"{K}.test_window_without_weight_changes_nothing_and_is_counted",
        f"{K}.test_window_without_weight_before_the_error_is_counted",
    ],
    DampedMomentum: [f"{W}.test_momentum_and_decay"],
    IgnoresRaise: [
        f"{K}.test_nonfinite_raises_with_update_and_parameters",
        f"{K}.test_the_trainer_stays_usable_after_the_error",
    ],
    LooksAtGradientsOnly: [
        f"{K}.test_infinite_loss_with_a_finite_gradient_is_dropped",
        f"{K}.test_infinite_loss_with_a_finite_gradient_raises",
    ],
    NamesAllParameters: [f"{K}.test_nonfinite_raises_with_update_and_parameters"],
    AppliesBeforeRaising: [
        f"{K}.test_nonfinite_raises_with_update_and_parameters",
        f"{K}.test_the_trainer_stays_usable_after_the_error",
    ],
    StaysFrozen: [f"{K}.test_the_trainer_stays_usable_after_the_error"],
    Random: [
        f"{T}.test_runs_are_bit_identical",
        f"{T}.test_evaluation_never_changes_training",
        f"{T}.test_snapshot_and_restore_go_on_bit_identically",
    ],
    EvaluationTrains: [
        f"{T}.test_evaluation_never_changes_training",
        f"{T}.test_evaluation_does_not_depend_on_the_batch_size",
    ],
    MeanOfBatches: [f"{T}.test_evaluation_does_not_depend_on_the_batch_size"],
    ForgetsTheBeginning: [f"{R}.test_stopping_inside_windows"],
    ForgetsSlots: [
        f"{R}.test_saved_run_goes_on",
        f"{G}.test_snapshot_and_restore",
        f"{T}.test_snapshot_and_restore_go_on_bit_identically",
    ],
    SharesMemory: [f"{T}.test_a_snapshot_is_a_copy"],
    LoadsAnything: [f"{T}.test_load_parameters"],
    OnePrecision: [f"{T}.test_precisions_live_side_by_side"],
    CompilesAgain: [f"{C}.test_one_compilation_serves_a_run"],
    FirstRateOfTheTable: [f"{T}.test_fit_in_pieces", f"{C}.test_learning_rate_counts_updates"],
    RateOfTheDispatch: [
        f"{T}.test_windows_per_dispatch_does_not_show",
        f"{C}.test_learning_rate_counts_updates",
    ],
    AveragesMicroBatches: [f"{A}.test_average_of_each_update"],
    AveragesSkippedWindows: [f"{A}.test_average_of_each_update", f"{A}.test_skipped_window_leaves_the_average"],
    WarmsUpLate: [f"{A}.test_warmup_of_the_average"],
    TrainsTheAverage: [f"{A}.test_average_does_not_show_in_training"],
    EvaluatingMovesTheAverage: [f"{A}.test_evaluating_the_average_changes_nothing"],
    EvaluatesTheParameters: [f"{A}.test_average_of_each_update"],
    ForgetsTheAverage: [f"{A}.test_snapshot_holds_the_average"],
}


@pytest.mark.parametrize(
    ("fault", "test"),
    [(fault, test) for fault, tests in FAULTS.items() for test in tests],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_planted_fault_is_found(fault: type[StubProgram], test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fault planted in a backend that passes, the test fails."""
    backend = StubBackend()
    backend.program = fault
    monkeypatch.setattr(multibackend.training.plan, "load_backend", lambda name: backend)
    part, _, method = test.partition(".")
    suite = {p.__name__: p for p in PARTS}[part]()
    with pytest.raises((MatchError, NonFiniteError, DataError)), np.errstate(all="ignore"):
        getattr(suite, method)(VARIANT)


def test_every_test_has_a_fault() -> None:
    """No test of these parts is without one."""
    assert EVERY - {test for tests in FAULTS.values() for test in tests} == set()
