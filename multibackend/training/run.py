"""What a trainer has of a run: its plan and program, its state, and what moves, saves and tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend import events
from multibackend.protocol import Program, Snapshot
from multibackend.training.auto_batch_size import memory_errors
from multibackend.training.evaluation import (
    EvaluationPlan,
    check_ema,
    evaluate,
    evaluation_size,
    evaluation_source,
)
from multibackend.training.gradients import window_gradients
from multibackend.training.loop import Loop
from multibackend.training.plan import Plan
from multibackend.training.prediction import (
    as_native_model,
    as_predicting,
    predict,
    prediction_size,
    prediction_source,
)
from multibackend.training.results import ResultsLog
from multibackend.training.run_state import RunState
from multibackend.training.saving.restore import capture
from multibackend.training.saving.saved_run import SavedRun
from multibackend.training.saving.saver import Saver
from multibackend.training.start import remark_of_start, starting_snapshot

__all__ = ["Run"]


@dataclass
class Run:
    """One run, from its first call of `fit` to its last.

    Attributes:
        plan: the experiment with every choice made, and its data.
        program: what the backend made of it.
        device: on which it trains.
        state: is moved by the loop.
        emit: tells the listeners.
        results: what windows measured, entered into the state.
        loop: hands windows to the device.
        saver: of the run's directory; None where the run is not saved.
        goes_on: whether the next `fit` takes up the evaluations of a saved run.
        has_warned: whether small micro-batches were spoken of.
        has_seen_outputs: whether the model's outputs were held against what the loss takes.
        remark: what is to be said of its start, at its first `fit`; None once it was.
        is_described: whether listeners were told its settings.
    """

    plan: Plan
    program: Program
    device: str
    state: RunState
    emit: events.Broadcast
    results: ResultsLog
    loop: Loop
    saver: Saver | None
    goes_on: bool
    has_warned: bool = False
    has_seen_outputs: bool = False
    remark: str | None = None
    is_described: bool = False

    @classmethod
    def begin(
        cls,
        plan: Plan,
        program: Program,
        device: str,
        listeners: Sequence[events.Listener],
        saver: Saver | None,
        *,
        record_gradient_norms: bool,
    ) -> Run:
        """A run at update 0."""
        experiment = plan.experiment
        emit = events.Broadcast(listeners, experiment=experiment.name, backend=plan.backend.name)
        # the state is the first thing that may not fit on the device
        with memory_errors(plan.backend, experiment):
            state = RunState.initial(experiment, program, record_gradient_norms=record_gradient_norms)
        results = ResultsLog(experiment, program, plan.feed, emit, state)
        loop = Loop(program, plan.feed, results, state)
        start = starting_snapshot(plan, program)
        if start is not None:
            loop.restore(start)
        goes_on = plan.saved is not None
        return cls(plan, program, device, state, emit, results, loop, saver, goes_on, remark=remark_of_start(plan))

    def evaluate(
        self, data: Any = None, batch_size: int | None = None, *, ema: bool, plan: EvaluationPlan | None = None
    ) -> dict[str, Any]:
        """Loss and metrics over data, entered into a plan of `fit` where it asked for them."""
        experiment = self.plan.experiment
        source = evaluation_source(data, experiment)
        size = evaluation_size(batch_size, experiment)
        if ema:
            check_ema(experiment)
        self.results.read_all()
        check = self.plan.feed.check
        state = self.state.program_state
        with memory_errors(self.plan.backend, experiment, size):
            metrics = evaluate(self.program, state, experiment, source, size, check=check, ema=ema)
        measured = {"update": self.state.update, "metrics": metrics}
        if plan is not None:
            plan.enter(**measured)
        self.emit(events.EvaluationFinished, **measured, ema=ema, scheduled=plan is not None)
        return metrics

    def predict(self, data: Any, output: str | None, batch_size: int | None, *, ema: bool) -> Any:
        """The model's outputs over data, put one below the other."""
        experiment = self.plan.experiment
        backend = self.plan.backend.name
        program = as_predicting(self.program, backend)
        size = prediction_size(batch_size, output, experiment)
        source = prediction_source(data, experiment)
        if ema:
            check_ema(experiment)
        self.results.read_all()
        state = self.state.program_state
        with memory_errors(self.plan.backend, experiment, size):
            return predict(program, state, experiment, source, size, backend=backend, output=output, ema=ema)

    def native_model(self) -> Any:
        """A copy of the framework's own module with what was trained."""
        program = as_native_model(self.program, self.plan.backend.name)
        self.results.read_all()
        return program.native_model(self.state.program_state)

    def gradients(self, data: Any) -> dict[str, np.ndarray]:
        """The normalised gradient of a window."""
        experiment = self.plan.experiment
        self.results.read_all()
        with memory_errors(self.plan.backend, experiment):
            return window_gradients(experiment, self.plan.backend.name, self.program, self.state, data)

    def snapshot(self) -> Snapshot:
        """The state on the host; everything handed to the device is waited for."""
        self.results.read_all()
        return self.program.snapshot(self.state.program_state)

    def capture(self) -> SavedRun:
        """What is saved of the run; everything handed to the device is waited for."""
        self.results.read_all()
        return capture(self.plan, self.program, self.loop, self.state)
