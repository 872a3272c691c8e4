"""Two runs of one experiment, window by window with the states between, and a third."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.experiment import Experiment
from multibackend.protocol import Position, Program, Rates, Snapshot, Traceable, WindowResults, WindowStack
from multibackend.protocol.tracing import Trace
from multibackend.schedules import RateTable
from multibackend.training.input.feed import Feed
from multibackend.training.results import learning_rate_of
from multibackend.training.trainer import Trainer

__all__ = ["Runner", "Step", "perturbed"]


@dataclass(frozen=True)
class Step:
    """One window of one side.

    Attributes:
        stack: its data.
        results: what it measured.
        rate: the learning rate.
        before, after: the states, by the side's own names.
    """

    stack: WindowStack
    results: WindowResults
    rate: float
    before: Snapshot
    after: Snapshot

    def micro_batches(self) -> Iterator[tuple[Fields, np.ndarray]]:
        """Yield its micro-batches with their divisors."""
        return self.stack.micro_batches(0)


class Runner:
    """Runs an experiment window by window from a state, on a program that was compiled for it."""

    def __init__(self, trainer: Trainer, start: Snapshot) -> None:
        self.experiment: Experiment = trainer.experiment
        self.backend = trainer.backend
        self.program: Program = trainer.program
        self._rates = RateTable(learning_rate_of(trainer.experiment))
        self._room = trainer.program.windows_per_dispatch
        self._feed = Feed(trainer.experiment, read_ahead=False)
        self._position = Position()
        self._state = self.program.restore(start)
        self.snapshot = start
        self.update = start.update

    def step(self) -> Step:
        """Run the next window."""
        # Room and rates are shaped as a trainer shapes them, so that its compiled program serves.
        stack = self._feed.next(self._position, self.update, self._room, self.program.info, most=1, epochs=None)
        self._position = stack.stop
        rate = float(self._rates.between(self.update, self.update + 1)[0])
        before = self.snapshot
        self._state, results = self._run(self._state, stack, self.update, rate)
        self.snapshot = self.program.snapshot(self._state)
        self.update += int(results.applied.sum())
        return Step(stack, results, rate, before, self.snapshot)

    def rerun(self, step: Step, start: Snapshot) -> Step:
        """Run the window of a step from another state."""
        state, results = self._run(self.program.restore(start), step.stack, start.update, step.rate)
        return Step(step.stack, results, step.rate, start, self.program.snapshot(state))

    def _run(self, state: Any, stack: WindowStack, update: int, rate: float) -> tuple[Any, WindowResults]:
        rates = Rates(update, np.full(Rates.room(self._room), rate))
        state, unread = self.program.run(state, self.program.place(stack), rates)
        return state, self.program.read(unread)

    @property
    def traceable(self) -> bool:
        """Whether the program tells what its layers do."""
        return isinstance(self.program, Traceable)

    def trace(self, start: Snapshot, step: Step, micro_batch: int, **options: Any) -> Trace:
        """Trace one of a step's micro-batches from a state; only for a traceable program."""
        assert isinstance(self.program, Traceable)
        micro_batches = list(step.micro_batches())
        batch, divisors = micro_batches[micro_batch]
        stamp = (start.update, micro_batch, len(micro_batches))
        return self.program.trace(self.program.restore(start), batch, divisors, stamp=stamp, **options)


def perturbed(snapshot: Snapshot, seed: int = 0) -> Snapshot:
    """Return the state with every parameter one rounding error larger or smaller, by chance."""
    random = np.random.default_rng(seed)
    parameters = {}
    for name, array in snapshot.parameters.items():
        parameters[name] = array
        if array.dtype.kind == "f":
            # larger and smaller ones, so that the errors of a sum do not all point one way
            sign = random.integers(0, 2, array.shape) * 2 - 1
            parameters[name] = (array * (1 + sign * np.finfo(array.dtype).eps)).astype(array.dtype)
    return replace(snapshot, parameters=parameters)
