"""The books of a run: which updates were made, what they measured, which windows were skipped.

The device runs ahead of the host. Results are read at intervals, in order, and only then does the host know for sure
how many updates were made.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend import events
from multibackend.core.history import History, SkippedWindow, records, term_name
from multibackend.errors import DataError, NonFiniteError
from multibackend.experiment import Experiment
from multibackend.protocol import Program, WindowResults, WindowStack
from multibackend.schedules import BatchScaled, LearningRate, RateTable
from multibackend.training.input.feed import Feed

__all__ = ["MOST_UNREAD", "ResultsLog"]

# results are read when they are this old or this many
SECONDS_BETWEEN_READS = 0.1
MOST_UNREAD = 256


def _learning_rate(experiment: Experiment) -> LearningRate:
    """The optimizer's learning rate, scaled with the effective batch where that is asked for."""
    rate, accumulation, size = experiment.optimizer.learning_rate, experiment.accumulation, experiment.micro_batch_size
    if experiment.lr_scaling is None or experiment.base_batch_size is None:
        return rate
    return BatchScaled(
        learning_rate=rate,
        scaling=experiment.lr_scaling,
        base=experiment.base_batch_size,
        examples=lambda update: accumulation.steps(update) * int(size),
    )


class ResultsLog:
    """Unread results, and what was learnt from those that were read.

    Attributes:
        update: updates that are known to have been made.
        micro_batches: of the windows that were read, whether they made an update or not.
        idle_examples: in windows skipped since the last update.
        history: a record for each.
        skipped: windows that made none.
        rates: the learning rate by update.
        gradient_shares: for each parameter the largest share that its gradient's norm has had in the global one.
        gradient_norms: of each parameter, an array for each update; None keeps none of them.
    """

    def __init__(self, experiment: Experiment, program: Program, feed: Feed, emit: events.Broadcast) -> None:
        self._experiment, self._program, self._feed, self._emit = experiment, program, feed, emit
        self._unread: deque[tuple[WindowStack, Any, np.ndarray]] = deque()
        self._last_read = time.perf_counter()
        self.idle_examples = 0
        self.update = 0
        self.micro_batches = 0
        terms = experiment.loss_terms
        self.history = History(term_name(name, len(terms)) for name in terms if len(terms) > 1)
        self.rates = RateTable(_learning_rate(experiment))
        self.skipped: list[SkippedWindow] = []
        self.gradient_shares = np.zeros(len(program.info.parameter_names))
        self.gradient_norms: list[np.ndarray] | None = None

    @property
    def expected(self) -> int:
        """Updates made if no unread window is skipped."""
        return self.update + self.unread_windows

    @property
    def unread_windows(self) -> int:
        return sum(len(stack) for stack, _, _ in self._unread)

    @property
    def expected_micro_batches(self) -> int:
        """Micro-batches handed to the device in whole windows."""
        return self.micro_batches + sum(int(sizes.sum()) for _, _, sizes in self._unread)

    def add(self, stack: WindowStack, results: Any) -> None:
        """Enter windows that were handed to the device; their data are not kept."""
        self._unread.append((replace(stack, fields={}, ragged=None), results, stack.sizes))

    def read_if_due(self) -> None:
        """At intervals read all but the newest results, with which the device may still be busy."""
        now = time.perf_counter()
        if now - self._last_read < SECONDS_BETWEEN_READS and self.unread_windows < MOST_UNREAD // 2:
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
        bad = ~results.finite & ~results.overflowed
        failed = np.flatnonzero(bad) if self._experiment.on_nonfinite == "raise" else []
        if len(failed):
            self._unread.clear()  # nothing from the failed window on was applied
            self.micro_batches += int(sizes[: failed[0]].sum())
            self._raise(stack, results, int(failed[0]))
        self.micro_batches += int(sizes.sum())
        skipped, columns = self._enter_skipped(stack, results, len(stack)), self._enter(stack, results)
        over = self._feed.settle(stack.stop, self.update).epoch > stack.start.epoch
        self._tell(skipped, columns, stack.start.epoch if over else None)
        self._check_progress(stack, results)

    def _tell(self, skipped: list[SkippedWindow], columns: dict[str, np.ndarray], epoch: int | None = None) -> None:
        """Tell the listeners, once the books are closed: one of them may raise, or look at the trainer."""
        # a window that was skipped on the way to an update comes before it
        windows = heapq.merge(skipped, records(columns, self.history.terms), key=lambda window: window.update)
        self._emit.tell(
            itertools.chain(
                (
                    (events.WindowSkipped, {"skipped": window})
                    if isinstance(window, SkippedWindow)
                    else (events.UpdateFinished, {"record": window})
                    for window in windows
                ),
                () if epoch is None else ((events.EpochFinished, {"epoch": epoch, "update": self.update}),),
            )
        )

    def _enter(self, stack: WindowStack, results: WindowResults) -> dict[str, np.ndarray]:
        """Append the windows that made an update to the history; returns what was appended."""
        applied = np.flatnonzero(results.applied)
        first, stop = self.update, self.update + len(applied)
        columns = {
            "update": np.arange(first + 1, stop + 1),
            "loss": results.loss[applied],
            "grad_norm": results.grad_norm[applied],
            "learning_rate": self.rates.between(first, stop),
            "weight": results.weights[applied, 0],
            "examples": stack.examples[applied],
            "epoch": np.full(len(applied), stack.start.epoch),
            **{name: results.terms[applied, index] for index, name in enumerate(self.history.terms)},
        }
        self.history.extend(**columns)
        whole = np.maximum(results.grad_norm[applied, None], np.finfo(np.float64).tiny)
        shares = results.gradient_norms[applied] / whole
        self.gradient_shares = np.maximum(self.gradient_shares, shares.max(axis=0, initial=0.0))
        if self.gradient_norms is not None:
            self.gradient_norms += list(results.gradient_norms[applied])
        self.update = stop
        return columns

    def _enter_skipped(self, stack: WindowStack, results: WindowResults, stop: int) -> list[SkippedWindow]:
        """Enter those of the first `stop` windows that made no update; returns them."""
        skipped = []
        for window in np.flatnonzero(~results.applied[:stop]):
            update, offset = self._place(stack, results, int(window))
            reason = "weightless" if results.finite[window] else "nonfinite"
            reason = "overflow" if results.overflowed[window] else reason
            skipped.append(SkippedWindow(update, stack.start.epoch, offset, reason))
        self.skipped += skipped
        return skipped

    def _check_progress(self, stack: WindowStack, results: WindowResults) -> None:
        # each overflow halves the loss scale, so some of them are progress too
        progress = results.applied.any() or results.overflowed.any()
        self.idle_examples = 0 if progress else self.idle_examples + int(stack.examples.sum())
        epoch = self._feed.examples  # of a stream unknown until its end
        if epoch is not None and self.idle_examples >= epoch:
            raise DataError(
                f"no window of a whole epoch made an update, so the run would never end; the last {len(self.skipped)} "
                f"windows were skipped, the last because it was {self.skipped[-1].reason} (nonfinite: its gradient is "
                "NaN or infinite; weightless: its weights sum to 0). Look at the data and the learning rate"
            )

    def _place(self, stack: WindowStack, results: WindowResults, window: int) -> tuple[int, int]:
        """(number of the update that a window would make, where its examples begin in the epoch)."""
        update = self.update + int(results.applied[:window].sum()) + 1
        return update, stack.start.offset + int(stack.examples[:window].sum())

    def _raise(self, stack: WindowStack, results: WindowResults, window: int) -> None:
        update, offset = self._place(stack, results, window)
        skipped, columns = self._enter_skipped(stack, results, window), self._enter(stack, results)
        finite = np.isfinite(results.gradient_norms[window])
        parameters = [name for name, good in zip(self._program.info.parameter_names, finite, strict=True) if not good]
        names = ", ".join(parameters) or "none, but their common norm overflowed"
        failure = NonFiniteError(
            f"the gradient of update {update} is not finite, in epoch {stack.start.epoch} at example {offset} of its "
            f"order; parameters: {names}. The training state is what it was before that window. Lower the learning "
            'rate, set max_grad_norm, look at those examples, or drop such windows with on_nonfinite="skip"',
            update=update,
            parameters=parameters,
            epoch=stack.start.epoch,
            offset=offset,
        )
        try:
            self._tell(skipped, columns)
        except Exception as trouble:
            raise failure from trouble  # the trainer must learn of the failed window, whatever a listener does
        raise failure
