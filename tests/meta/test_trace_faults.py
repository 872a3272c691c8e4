"""The suite for traced micro-batches, shown to fail on faults planted in the torch backend."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from multibackend_torch.program import TorchProgram
from support.variants import TORCH

from multibackend.errors import DataError, MatchError
from multibackend.protocol.tracing import Forced, Trace
from multibackend.testing.conformance import TraceConformance

EVERY = {test for test in vars(TraceConformance) if test.startswith("test_")}


class Told(TorchProgram):
    """A torch program, what it is asked and what it tells changed by `ask` and `tell`."""

    def ask(self, options: dict[str, Any]) -> None: ...

    def tell(self, trace: Trace) -> Trace:
        return trace

    def trace(self, state: Any, batch: Any, divisors: np.ndarray, **options: Any) -> Trace:  # pyright: ignore
        options["divisors"] = divisors
        self.ask(options)
        return self.tell(super().trace(state, batch, **options))


class IgnoresDivisors(Told):
    def ask(self, options: dict[str, Any]) -> None:
        options["divisors"] = np.ones_like(options["divisors"])


class OneMask(Told):
    def ask(self, options: dict[str, Any]) -> None:
        options["stamp"] = (0, 0, 1)


class AlwaysTrains(Told):
    def ask(self, options: dict[str, Any]) -> None:
        options["train"] = True


class NeverForces(Told):
    def ask(self, options: dict[str, Any]) -> None:
        options["forced"] = None


class ForcesInputsOnly(Told):
    def ask(self, options: dict[str, Any]) -> None:
        forced: Mapping[Any, Forced] = options.get("forced") or {}
        options["forced"] = {name: replace(values, outputs=None) for name, values in forced.items()}


class HalvesGradients(Told):
    def tell(self, trace: Trace) -> Trace:
        return replace(trace, gradients={name: array / 2 for name, array in trace.gradients.items()})


class TellsWhatWasForced(Told):
    def trace(self, state: Any, batch: Any, divisors: np.ndarray, **options: Any) -> Trace:  # pyright: ignore
        trace, forced = super().trace(state, batch, divisors, **options), options.get("forced") or {}
        layers = [
            replace(call, inputs=forced[call.name, call.call].inputs) if (call.name, call.call) in forced else call
            for call in trace.layers
        ]
        return replace(trace, layers=tuple(layers))


class NamesTheModel(Told):
    def tell(self, trace: Trace) -> Trace:
        return replace(trace, layers=tuple(replace(call, name=call.name or "model") for call in trace.layers))


class OwnsNothing(Told):
    def tell(self, trace: Trace) -> Trace:
        return replace(trace, layers=tuple(replace(call, parameters=()) for call in trace.layers))


class StatisticsOfBefore(Told):
    def tell(self, trace: Trace) -> Trace:
        return replace(trace, model_state={name: 0 * array for name, array in trace.model_state.items()})


class LeavesStatistics(Told):
    """The pass leaves its mark on the buffers."""

    def trace(self, state: Any, batch: Any, divisors: np.ndarray, **options: Any) -> Trace:  # pyright: ignore
        trace = super().trace(state, batch, divisors, **options)
        for buffer in state.buffers:
            buffer.add_(1)
        return trace


FAULTS: dict[type[Told], set[str]] = {
    IgnoresDivisors: {"test_a_window_is_the_sum_of_its_micro_batches", "test_masks_are_those_of_training"},
    OneMask: {"test_masks_are_those_of_training"},
    AlwaysTrains: {"test_evaluation_mode"},
    NeverForces: {"test_forced_inputs_and_outputs"},
    ForcesInputsOnly: {"test_forced_inputs_and_outputs"},
    HalvesGradients: {"test_a_window_is_the_sum_of_its_micro_batches", "test_masks_are_those_of_training"},
    TellsWhatWasForced: {"test_forced_inputs_and_outputs"},
    NamesTheModel: {"test_the_call_of_a_layer"},
    OwnsNothing: {"test_the_call_of_a_layer"},
    StatisticsOfBefore: {"test_batch_statistics_after_the_pass"},
    LeavesStatistics: {"test_the_state_stays"},
}


def fails(test: str) -> bool:
    suite = TraceConformance()
    run: Callable[..., None] = getattr(suite, test)
    try:
        run(TORCH)
    except (MatchError, DataError):
        return True
    return False


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_found(fault: type[Told], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault fails the tests that are about it."""
    monkeypatch.setattr("multibackend_torch.backend.TorchProgram", fault)
    assert {test for test in FAULTS[fault] if fails(test)} == FAULTS[fault]


def test_every_test_can_fail() -> None:
    """Each test is failed by some fault, and passes without one."""
    assert set().union(*FAULTS.values()) == EVERY
    assert not any(fails(test) for test in EVERY)
