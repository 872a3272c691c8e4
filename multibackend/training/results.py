"""What windows measured: read at intervals, entered into the run's state, told to listeners.

The device runs ahead of the host. Results are read in order, and only then does the host know for
sure how many updates were made.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from multibackend import events
from multibackend.core.history import SkippedWindow, records
from multibackend.errors import DataError, NonFiniteError
from multibackend.experiment import Experiment
from multibackend.protocol import Program, WindowResults, WindowStack
from multibackend.protocol.values import MOST_UNREAD_WINDOWS
from multibackend.schedules import BatchScaled, LearningRate, RateTable
from multibackend.training.input.feed import Feed
from multibackend.training.run_state import RunState

__all__ = ["ResultsLog", "learning_rate_of"]

# results are read when they are this old, or half as many as may be unread
_SECONDS_BETWEEN_READS = 0.1
# of data whose end is not known, so many windows without an update end the run
_MOST_IDLE_WINDOWS = 1000

# a listener is told of an event as its class and its fields
_Happening = tuple[type[events.Event], dict[str, Any]]


def learning_rate_of(experiment: Experiment) -> LearningRate:
    """The optimizer's learning rate, scaled with the effective batch where that is asked for."""
    learning_rate = experiment.optimizer.learning_rate
    if experiment.lr_scaling is None or experiment.base_batch_size is None:
        return learning_rate
    size = int(experiment.micro_batch_size)
    return BatchScaled(
        learning_rate=learning_rate,
        scaling=experiment.lr_scaling,
        base=experiment.base_batch_size,
        examples=lambda update: experiment.accumulation.steps(update) * size,
    )


class _Unread(NamedTuple):
    """Windows whose results are still on the device, their stack without its data."""

    stack: WindowStack
    results: Any
    sizes: np.ndarray


class ResultsLog:
    """Enters results into a run's state, in order.

    Attributes:
        rates: the learning rate by update.
    """

    def __init__(
        self, experiment: Experiment, program: Program, feed: Feed, emit: events.Broadcast, state: RunState
    ) -> None:
        self.rates = RateTable(learning_rate_of(experiment))
        self._experiment = experiment
        self._program = program
        self._feed = feed
        self._emit = emit
        self._state = state
        self._unread: deque[_Unread] = deque()
        self._last_read = time.perf_counter()

    @property
    def expected_updates(self) -> int:
        """Updates made if no unread window is skipped."""
        return self._state.update + self.unread_windows

    @property
    def unread_windows(self) -> int:
        """Windows that were handed to the device and not read."""
        return sum(len(unread.stack) for unread in self._unread)

    @property
    def expected_micro_batches(self) -> int:
        """Micro-batches handed to the device in whole windows."""
        return self._state.micro_batches + sum(int(unread.sizes.sum()) for unread in self._unread)

    def add(self, stack: WindowStack, results: Any) -> None:
        """Take note of windows that were handed to the device."""
        # a window's data would stay in memory until its results are read
        without_data = replace(stack, fields={}, ragged=None)
        self._unread.append(_Unread(without_data, results, stack.sizes))

    def read_if_due(self) -> None:
        """Read at intervals all but the newest results, with which the device may still be busy."""
        now = time.perf_counter()
        is_recent = now - self._last_read < _SECONDS_BETWEEN_READS
        if is_recent and self.unread_windows < MOST_UNREAD_WINDOWS // 2:
            return
        while len(self._unread) > 1:
            self._read()
        self._last_read = now

    def read_all(self) -> None:
        """Wait for everything that was handed to the device."""
        while self._unread:
            self._read()

    def _read(self) -> None:
        stack, unread, sizes = self._unread.popleft()
        results = self._program.read(unread)
        if self._experiment.on_nonfinite == "raise":
            # an overflow of the loss scale is no failure: the window is dropped and the
            # scale lowered
            failed = np.flatnonzero(~results.finite & ~results.overflowed)
            if len(failed):
                self._unread.clear()  # nothing from the failed window on was applied
                self._state.micro_batches += int(sizes[: failed[0]].sum())
                self._fail(stack, results, int(failed[0]))
        self._state.micro_batches += int(sizes.sum())
        skipped = self._enter_skipped(stack, results, len(stack))
        columns = self._enter_updates(stack, results)
        # the listeners are told once the state is whole, because one may raise, or look at
        # the trainer
        end = self._end_of_epoch(stack)
        in_order = itertools.chain(self._in_order(skipped, columns), end)
        self._emit.tell(in_order, itertools.chain(self._in_bulk(skipped, columns), end))
        self._check_progress(stack, results)

    def _enter_updates(self, stack: WindowStack, results: WindowResults) -> dict[str, np.ndarray]:
        """Append the windows that made an update to the history; return what was appended."""
        state = self._state
        applied = np.flatnonzero(results.applied)
        first = state.update
        stop = first + len(applied)
        columns = {
            "update": np.arange(first + 1, stop + 1),
            "loss": results.loss[applied],
            "grad_norm": results.grad_norm[applied],
            "learning_rate": self.rates.between(first, stop),
            "weight": results.weights[applied, 0],
            "examples": stack.examples[applied],
            "epoch": np.full(len(applied), stack.start.epoch),
        }
        for index, name in enumerate(state.history.terms):
            columns[name] = results.terms[applied, index]
        # by columns: a record for each update would cost more than a small model's update
        state.history.extend(**columns)
        global_norms = np.maximum(results.grad_norm[applied, None], np.finfo(np.float64).tiny)
        shares = results.gradient_norms[applied] / global_norms
        state.gradient_shares = np.maximum(state.gradient_shares, shares.max(axis=0, initial=0.0))
        if state.gradient_norms is not None:
            state.gradient_norms.extend(results.gradient_norms[applied])
        state.update = stop
        return columns

    def _enter_skipped(self, stack: WindowStack, results: WindowResults, stop: int) -> list[SkippedWindow]:
        """Enter those of the first `stop` windows that made no update; returns them."""
        skipped = []
        for window in np.flatnonzero(~results.applied[:stop]):
            update, offset = self._place(stack, results, int(window))
            if results.overflowed[window]:
                reason = "overflow"
            elif results.finite[window]:
                reason = "weightless"
            else:
                reason = "nonfinite"
            skipped.append(SkippedWindow(update, stack.start.epoch, offset, reason))
        self._state.skipped += skipped
        return skipped

    def _check_progress(self, stack: WindowStack, results: WindowResults) -> None:
        state = self._state
        # each overflow halves the loss scale, so some of them are progress too
        if results.applied.any() or results.overflowed.any():
            state.idle_examples = 0
            return
        state.idle_examples += int(stack.examples.sum())
        epoch = self._feed.examples
        span = "no window of a whole epoch"
        if epoch is None:  # of a stream unknown until its end, which may never come
            epoch = _MOST_IDLE_WINDOWS * self._experiment.effective_examples
            span = f"none of {_MOST_IDLE_WINDOWS} windows one after the other"
        if state.idle_examples >= epoch:
            raise DataError(
                f"{span} made an update, so the run would never end; "
                f"{len(state.skipped)} windows were skipped in all, the last because it was "
                f"{state.skipped[-1].reason} (nonfinite: its loss or gradient is NaN or infinite; "
                "weightless: its weights sum to 0). Look at the data and the learning rate"
            )

    def _place(self, stack: WindowStack, results: WindowResults, window: int) -> tuple[int, int]:
        """Return (the update that a window would make, where its examples begin in the epoch)."""
        update = self._state.update + int(results.applied[:window].sum()) + 1
        offset = stack.start.offset + int(stack.examples[:window].sum())
        return update, offset

    def _fail(self, stack: WindowStack, results: WindowResults, window: int) -> None:
        """Enter what came before the window whose gradient is not finite, and raise."""
        update, offset = self._place(stack, results, window)
        skipped = self._enter_skipped(stack, results, window)
        columns = self._enter_updates(stack, results)
        losses = results.terms[window]
        terms = list(itertools.compress(self._experiment.loss_terms, ~np.isfinite(losses)))
        gradients = np.isfinite(results.gradient_norms[window])
        parameters = list(itertools.compress(self._program.info.parameter_names, ~gradients))
        if np.isnan(results.weights[window]).any():  # which only a loss's own function can give
            what = f"the weights that the loss returned for update {update} are not all numbers >= 0: nan or negative"
        elif terms:
            values = dict(zip(self._experiment.loss_terms, losses.tolist(), strict=True))
            what = _nonfinite_loss({name: values[name] for name in terms}, parameters, update)
        else:
            listed = ", ".join(parameters) or "none, but their common norm overflowed"
            what = f"the gradient of update {update} is not finite (the loss is), parameters: {listed}"
        failure = NonFiniteError(
            f"{what}; in epoch {stack.start.epoch}, in the window that begins at example {offset} of its "
            "order. The training state is what it was before that window. Look at those examples, "
            "lower the learning rate, set max_grad_norm, or drop such windows with "
            'on_nonfinite="skip"',
            update=update,
            terms=terms,
            parameters=parameters,
            epoch=stack.start.epoch,
            offset=offset,
        )
        try:
            self._emit.tell(self._in_order(skipped, columns), self._in_bulk(skipped, columns))
        except Exception as error:
            # the trainer must learn of the failed window, whatever a listener does
            raise failure from error
        raise failure

    def _in_order(self, skipped: list[SkippedWindow], columns: dict[str, np.ndarray]) -> Iterator[_Happening]:
        """What windows became; one that was skipped on the way to an update comes before it.

        Records are made as they are asked for: where nobody listens, nobody asks.
        """
        updates = records(columns, self._state.history.terms)
        for window in heapq.merge(skipped, updates, key=lambda window: window.update):
            if isinstance(window, SkippedWindow):
                yield events.WindowSkipped, {"skipped": window}
            else:
                yield events.UpdateFinished, {"record": window}

    def _in_bulk(self, skipped: list[SkippedWindow], columns: dict[str, np.ndarray]) -> Iterator[_Happening]:
        """The same for watchers: all updates as one event, then the windows that were skipped."""
        if len(columns["update"]):
            ends = {name: column[[0, -1]] for name, column in columns.items()}
            first, last = records(ends, self._state.history.terms)
            yield events.UpdatesFinished, {"first": first, "last": last, "examples": int(columns["examples"].sum())}
        for window in skipped:
            yield events.WindowSkipped, {"skipped": window}

    def _end_of_epoch(self, stack: WindowStack) -> list[_Happening]:
        """The end of the epoch, where these windows were its last."""
        update = self._state.update
        if self._feed.settle(stack.stop, update).epoch == stack.start.epoch:
            return []
        return [(events.EpochFinished, {"epoch": stack.start.epoch, "update": update})]


def _nonfinite_loss(terms: Mapping[str, float], parameters: Sequence[str], update: int) -> str:
    """Say which terms of the loss are not finite, and whether the gradient is."""
    listed = ", ".join(f"{name} = {value}" for name, value in terms.items())
    gradient = "its gradient is finite"
    if parameters:
        gradient = f"nor is its gradient, parameters: {', '.join(parameters)}"
    return f"the loss of update {update} is not finite ({listed}), {gradient}"
