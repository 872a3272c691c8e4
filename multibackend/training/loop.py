"""Hands windows to the device: whole ones, several at a time, or a part of one where a run must stop inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.errors import CapabilityError, NonFiniteError
from multibackend.protocol import Interruptible, PartialWindow, Position, Program, Rates, Snapshot, WindowStack
from multibackend.training.input.feed import Feed
from multibackend.training.results import MOST_UNREAD, ResultsLog
from multibackend.training.stop_condition import StopCondition

__all__ = ["Loop"]


@dataclass
class _Open:
    """A window that has begun: its data, on the host and on the device, and what the backend has of it."""

    stack: WindowStack
    placed: Any
    done: int
    native: Any

    @property
    def size(self) -> int:
        return int(self.stack.sizes[0])


class Loop:
    """The state on the device and the place in the data.

    Attributes:
        state: the program's own; after the last whole window that was handed to the device.
    """

    def __init__(self, program: Program, feed: Feed, ledger: ResultsLog) -> None:
        self._program, self._feed, self._results = program, feed, ledger
        self.state: Any = program.init()
        self._open: _Open | None = None

    @property
    def micro_batches(self) -> int:
        """Handed to the device since the beginning of the run."""
        return self._results.expected_micro_batches + (self._open.done if self._open is not None else 0)

    @property
    def position(self) -> Position:
        """Where the window begins that is open, or that comes next."""
        return self._feed.position if self._open is None else self._open.stack.start

    @property
    def partial(self) -> PartialWindow | None:
        """The open window on the host; None between windows."""
        if self._open is None:
            return None
        return self._program.snapshot_window(self.state, self._open.native)  # type: ignore[attr-defined]

    def epochs(self) -> int:
        """How many have ended, all that was handed to the device having been read."""
        return self._feed.settle(self.position, self._results.update).epoch

    def reached(self, goal: StopCondition) -> bool:
        """Whether the run has come to a goal."""
        ledger = self._results
        if goal.micro_batches is not None and self.micro_batches >= goal.micro_batches:
            return True
        if goal.updates is not None:
            if ledger.expected >= goal.updates:
                ledger.read_all()  # some of the expected updates may have been skipped
            return ledger.update >= goal.updates
        if goal.epochs is None or self._open is not None:
            return goal.epochs is not None and self.position.epoch >= goal.epochs
        if self._size_is_open():
            ledger.read_all()  # with drop_last the size of the next window decides whether the epoch has ended
        return self._feed.settled(ledger.expected).epoch >= goal.epochs

    def run_next(self, goal: StopCondition) -> None:
        """Hand the next windows to the device, or the rest of the open one, or as much of it as the goal leaves."""
        if self._open is not None:
            return self._continue(goal)
        if self._size_is_open():
            self._results.read_all()
        first = self._results.expected
        left = None if goal.updates is None else goal.updates - first
        if goal.micro_batches is not None:
            whole = (goal.micro_batches - self.micro_batches) // self._feed.accumulation.steps(first)
            if whole == 0:
                return self._begin(goal)
            left = whole if left is None else min(left, whole)
        stack = self._next(left, goal)
        placed = self._program.place(stack)
        self.state, results = self._program.run(self.state, placed, self._rates(len(stack)))
        self._results.add(stack, results)
        return None

    def restore(self, snapshot: Snapshot) -> None:
        """Put a state in place of this one. An open window begins anew, the place in the data stays."""
        self._results.read_all()
        self.abandon()
        self.state = self._program.restore(snapshot)
        self._results.update = snapshot.update

    def go_on(self, position: Position, partial: PartialWindow | None) -> None:
        """Stand at a place in the data, perhaps in the middle of the window that begins there."""
        self._open, self._feed.position = None, position
        if partial is not None:
            self._check_interruptible()
            stack = self._next(1, StopCondition())
            placed = self._program.place(stack)
            native = self._program.restore_window(self.state, placed, partial)  # type: ignore[attr-defined]
            self._open = _Open(stack, placed, partial.done, native)

    def recompute_statistics(self, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Replace BatchNorm's running statistics by their mean over batches. An open window begins anew."""
        self.abandon()
        self.state = self._program.recompute_statistics(self.state, batches)  # type: ignore[attr-defined]

    def abandon(self) -> None:
        """Forget the part of a window that has run; it begins anew."""
        if self._open is not None:
            self._feed.position, self._open = self._open.stack.start, None

    def settle(self, error: BaseException) -> None:
        """After an error, a listener's perhaps: nothing is left unread, and the state is not frozen."""
        while True:  # each round reads something
            if isinstance(error, NonFiniteError):  # stand where the failed window begins
                self.state = self._program.restore(self._program.snapshot(self.state))
                self._feed.position = Position(error.epoch, error.offset)
                return None
            try:
                return self._results.read_all()
            except Exception as another:
                error = another

    def _next(self, left: int | None, goal: StopCondition) -> WindowStack:
        program, first = self._program, self._results.expected
        room = program.windows_per_dispatch
        return self._feed.next(first, room, program.info.output_shape, left=left, epochs=goal.epochs)

    def _begin(self, goal: StopCondition) -> None:
        """The next window, or a part of it where the goal lies inside."""
        self._results.read_all()  # also the failure of the window before
        stack = self._next(1, goal)
        self._open = _Open(stack, self._program.place(stack), 0, None)
        self._continue(goal)

    def _continue(self, goal: StopCondition) -> None:
        """More of the open window. Should that fail, the window begins anew."""
        window, program, state = self._open, self._program, self.state
        assert window is not None
        left = window.size if goal.micro_batches is None else goal.micro_batches - self.micro_batches
        stop = min(window.size, window.done + left)
        self.abandon()
        if stop < window.size:
            self._check_interruptible()
            native = program.run_part(state, window.placed, window.native, window.done, stop)  # type: ignore[attr-defined]
            self._open = _Open(window.stack, window.placed, stop, native)
        else:
            rates = self._rates(1)
            if window.done:
                done = program.run_rest(state, window.placed, window.native, window.done, rates)  # type: ignore[attr-defined]
            else:
                done = program.run(state, window.placed, rates)
            self.state, results = done
            self._results.add(window.stack, results)
        self._feed.position = window.stack.stop

    def _rates(self, windows: int) -> Rates:
        """The rates of all updates that these windows may turn out to make, in a table of constant length."""
        ledger, room = self._results, self._program.windows_per_dispatch
        rates = ledger.rates.between(ledger.update, ledger.expected + windows)
        table = np.full(max(2 * room + MOST_UNREAD, len(rates)), rates[-1])
        table[: len(rates)] = rates
        return Rates(ledger.update, table)

    def _size_is_open(self) -> bool:
        """Whether the size of the next window depends on unread results: one of them may have been skipped."""
        accumulation, ledger = self._feed.accumulation, self._results
        if accumulation.constant:
            return False
        possible = range(ledger.update, ledger.expected + 1)
        return len({accumulation.steps(update) for update in possible}) > 1

    def _check_interruptible(self) -> None:
        if not isinstance(self._program, Interruptible):
            raise CapabilityError(
                "the backend cannot stop in the middle of a window; end the run and save it between windows"
            )
