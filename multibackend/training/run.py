"""What a trainer has of a run: its plan and program, its state, and what moves, saves and tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from multibackend.training.loop import Loop
from multibackend.training.plan import Plan
from multibackend.training.results import ResultsLog
from multibackend.training.run_state import RunState
from multibackend.training.saving.restore import capture
from multibackend.training.saving.saved_run import SavedRun
from multibackend.training.saving.saver import Saver

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
        goes_on = plan.saved is not None
        return cls(plan, program, device, state, emit, results, loop, saver, goes_on)

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

    def snapshot(self) -> Snapshot:
        """The state on the host; everything handed to the device is waited for."""
        self.results.read_all()
        return self.program.snapshot(self.state.program_state)

    def capture(self) -> SavedRun:
        """What is saved of the run; everything handed to the device is waited for."""
        self.results.read_all()
        return capture(self.plan, self.program, self.loop, self.state)
