"""What changes while a run trains, as one value, which the loop moves and a checkpoint captures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.growing import GrowingArray
from multibackend.core.history import History, SkippedWindow, term_name
from multibackend.experiment import Experiment
from multibackend.protocol import Position, Program, WindowStack
from multibackend.training.evaluation_state import EvaluationState

__all__ = ["BegunWindow", "RunState"]


@dataclass(frozen=True)
class BegunWindow:
    """A window inside which the run stands.

    Attributes:
        stack: its data on the host.
        placed: its data on the device.
        done: micro-batches that have run.
        native: what the backend has of it; None where none has run.
    """

    stack: WindowStack
    placed: Any
    done: int
    native: Any

    @property
    def size(self) -> int:
        """How many micro-batches the whole window has."""
        return int(self.stack.sizes[0])


@dataclass
class RunState:
    """The state of a run.

    The device runs ahead of the host: `program_state` and `position` are those after everything
    that was handed to the device, the others speak of what was read from it. They agree once all
    results are read, which every save, every evaluation and every look from outside waits for.

    Attributes:
        program_state: the program's own: parameters, model state, optimizer.
        position: where the next window begins in the data; the end of what has run of a window
            that has begun.
        begun: the window inside which the run stands; None between windows.
        update: updates that are known to have been made.
        micro_batches: in the windows that were read, whether they made an update or not.
        idle_examples: in windows skipped since the last update.
        history: a record for each update.
        skipped: the windows that made none.
        gradient_shares: [parameters], the largest share that each gradient's norm has had in
            the global one.
        gradient_norms: [updates, parameters]; None keeps none of them.
        evaluations: those made so far, and what early stopping remembers of them.
    """

    # what the device has
    program_state: Any
    history: History
    gradient_shares: np.ndarray
    gradient_norms: GrowingArray | None = None
    # where the run stands in the data
    position: Position = field(default_factory=Position)
    begun: BegunWindow | None = None
    # what was read from the device
    update: int = 0
    micro_batches: int = 0
    idle_examples: int = 0
    skipped: list[SkippedWindow] = field(default_factory=list)
    evaluations: EvaluationState = field(default_factory=EvaluationState)

    @classmethod
    def initial(cls, experiment: Experiment, program: Program, *, record_gradient_norms: bool = False) -> RunState:
        """The state at update 0, with the parameters that the model's builder chose."""
        terms = experiment.loss_terms
        columns: list[str] = []
        if len(terms) > 1:  # a single one is the loss itself and needs no column of its own
            columns = [term_name(name, len(terms)) for name in terms]
        state = cls(
            program_state=program.init(),
            history=History(columns),
            gradient_shares=np.zeros(len(program.info.parameter_names)),
        )
        if record_gradient_norms:
            state.gradient_norms = GrowingArray("float64", state.gradient_shares.shape)
        return state
