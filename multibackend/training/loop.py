"""Hands windows to the device: whole ones, several at a time, or a part of one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import CapabilityError, NonFiniteError, ResumeError
from multibackend.protocol import (
    Interruptible,
    PartialWindow,
    Position,
    Program,
    Rates,
    RecomputesStatistics,
    Snapshot,
    WindowStack,
)
from multibackend.training.input.feed import Feed
from multibackend.training.results import ResultsLog
from multibackend.training.run_state import BegunWindow, RunState
from multibackend.training.stop_condition import StopCondition

__all__ = ["Loop"]


class Loop:
    """Moves a run's state forward, window by window, and puts other states in its place.

    Args:
        program: runs the windows.
        feed: reads them.
        results: learns what they measured.
        state: is moved.
    """

    def __init__(self, program: Program, feed: Feed, results: ResultsLog, state: RunState) -> None:
        self._program = program
        self._feed = feed
        self._results = results
        self._state = state

    @property
    def micro_batches(self) -> int:
        """Micro-batches handed to the device since the beginning of the run."""
        whole = self._results.expected_micro_batches
        if self._state.begun is None:
            return whole
        return whole + self._state.begun.done

    def epochs(self) -> int:
        """How many epochs have ended, all that was handed to the device having been read."""
        return self._feed.settle(self._state.position, self._state.update).epoch

    def reached(self, stop: StopCondition) -> bool:
        """Whether the run has come to where it ends."""
        state = self._state
        if stop.micro_batches is not None and self.micro_batches >= stop.micro_batches:
            return True
        if stop.updates is not None:
            if self._results.expected_updates >= stop.updates:
                self._results.read_all()  # some of the expected updates may have been skipped
            return state.update >= stop.updates
        if stop.epochs is None:
            return False
        if state.begun is not None:
            return state.position.epoch >= stop.epochs
        if self._size_is_open():
            # with drop_last the size of the next window decides whether the epoch has ended
            self._results.read_all()
        settled = self._feed.settle(state.position, self._results.expected_updates)
        return settled.epoch >= stop.epochs

    def run_next(self, stop: StopCondition) -> None:
        """Hand the next windows to the device, or more of one that has begun."""
        if self._state.begun is not None:
            self._continue(stop)
            return
        if self._size_is_open():
            self._results.read_all()
        first = self._results.expected_updates
        most = None
        if stop.updates is not None:
            most = stop.updates - first
        if stop.micro_batches is not None:
            left = stop.micro_batches - self.micro_batches
            whole = left // self._feed.accumulation.steps(first)
            if whole == 0:
                self._begin(stop)
                return
            if most is None or whole < most:
                most = whole
        stack = self._next(most, stop.epochs)
        placed = self._program.place(stack)
        rates = self._rates(len(stack))
        state = self._state
        state.program_state, results = self._program.run(state.program_state, placed, rates)
        self._results.add(stack, results)
        state.position = stack.stop

    def restore(self, snapshot: Snapshot) -> None:
        """Replace the state. A begun window begins anew, the place in the data stays."""
        self._results.read_all()
        self._state.begun = None
        self._state.program_state = self._program.restore(snapshot)
        self._state.update = snapshot.update

    def resume_at(self, position: Position, partial: PartialWindow | None) -> None:
        """Stand at a place in the data, perhaps in the middle of the window that begins there.

        Raises:
            ResumeError: that window has no more micro-batches than are done.
        """
        state = self._state
        state.begun = None
        state.position = position
        if partial is not None:
            program = self._interruptible()
            stack = self._next(1, None)
            size = int(stack.sizes[0])
            if partial.done >= size:
                problem = f"window: {partial.done} of its micro-batches are done in the checkpoint, and it has {size}"
                raise ResumeError(f"the checkpoint does not fit the data: {problem}", [problem])
            placed = self._program.place(stack)
            native = program.restore_window(state.program_state, placed, partial)
            state.begun = BegunWindow(stack, placed, partial.done, native)
            state.position = stack.start

    def partial_window(self) -> PartialWindow | None:
        """A copy of the window that has begun on the host; None between windows."""
        begun = self._state.begun
        if begun is None:
            return None
        return self._interruptible().snapshot_window(self._state.program_state, begun.native)

    def recompute_statistics(self, program: RecomputesStatistics, batches: Iterable[Arrays]) -> None:
        """Replace BatchNorm's statistics by their mean over batches. A begun window begins anew."""
        state = self._state
        state.begun = None
        state.program_state = program.recompute_statistics(state.program_state, batches)

    def recover(self, error: BaseException) -> None:
        """Leave nothing unread after an error, a listener's perhaps, and the state fit to go on."""
        state = self._state
        while True:  # each round reads something, which may fail as well
            if isinstance(error, NonFiniteError):
                # stand where the failed window begins; a state that went through the host is
                # not frozen
                snapshot = self._program.snapshot(state.program_state)
                state.program_state = self._program.restore(snapshot)
                state.position = Position(error.epoch, error.offset)
                return
            try:
                self._results.read_all()
                return
            except Exception as another:
                error = another

    def _next(self, most: int | None, epochs: int | None) -> WindowStack:
        return self._feed.next(
            self._state.position,
            self._results.expected_updates,
            self._program.windows_per_dispatch,
            self._program.info,
            most=most,
            epochs=epochs,
        )

    def _begin(self, stop: StopCondition) -> None:
        """Run the next window, or a part of it where the end lies inside."""
        self._results.read_all()  # also the failure of the window before
        stack = self._next(1, stop.epochs)
        self._state.begun = BegunWindow(stack, self._program.place(stack), done=0, native=None)
        self._state.position = stack.start
        self._continue(stop)

    def _continue(self, stop: StopCondition) -> None:
        """Run more of the begun window. Should that fail, the window begins anew."""
        state = self._state
        begun = state.begun
        assert begun is not None
        end = begun.size
        if stop.micro_batches is not None:
            end = min(end, begun.done + stop.micro_batches - self.micro_batches)
        # until the backend has it: what it was given is used up, also where it fails
        state.begun = None
        if end < begun.size:
            run_part = self._interruptible().run_part
            native = run_part(state.program_state, begun.placed, begun.native, begun.done, end)
            state.begun = BegunWindow(begun.stack, begun.placed, end, native)
            return
        rates = self._rates(1)
        if begun.done:
            run_rest = self._interruptible().run_rest
            ended = run_rest(state.program_state, begun.placed, begun.native, begun.done, rates)
        else:
            ended = self._program.run(state.program_state, begun.placed, rates)
        state.program_state, results = ended
        self._results.add(begun.stack, results)
        state.position = begun.stack.stop

    def _rates(self, windows: int) -> Rates:
        """Tabulate the rates of all updates that these windows may turn out to make.

        The table's length is constant, for it is part of what JAX compiles for.
        """
        first = self._state.update
        rates = self._results.rates.between(first, self._results.expected_updates + windows)
        length = Rates.room(self._program.windows_per_dispatch)
        # what lies past the known rates is never used, but must be a number
        table = np.full(max(length, len(rates)), rates[-1])
        table[: len(rates)] = rates
        return Rates(first, table)

    def _size_is_open(self) -> bool:
        """Whether unread results decide the next window's size, for one may have been skipped."""
        accumulation = self._feed.accumulation
        if accumulation.constant:
            return False
        possible = range(self._state.update, self._results.expected_updates + 1)
        return len({accumulation.steps(update) for update in possible}) > 1

    def _interruptible(self) -> Interruptible:
        if not isinstance(self._program, Interruptible):
            problem = "the backend cannot stop in the middle of a window"
            raise CapabilityError(f"{problem}; end the run and save it between windows")
        return self._program
