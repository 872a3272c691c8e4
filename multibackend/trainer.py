"""The loop, once for every backend: read windows, run them, read results, tell the listeners."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multibackend import events
from multibackend.arguments import check_arguments, check_ema, check_goal
from multibackend.autobatch import memory_errors, resolve
from multibackend.batch_statistics import SMALL_MICRO_BATCH, small_micro_batch_message
from multibackend.errors import BatchStatisticsWarning, CapabilityError, NonFiniteError
from multibackend.evaluation import (
    Evaluation,
    EvaluationPlan,
    evaluate,
    evaluation_size,
    evaluation_source,
    plan_evaluations,
)
from multibackend.experiment import Experiment
from multibackend.feed import Feed
from multibackend.history import History, SkippedWindow
from multibackend.ledger import MOST_UNREAD, Ledger
from multibackend.names import match_names, shapes_of
from multibackend.protocol import Program, Rates, Snapshot
from multibackend.recompute import batch_norm_layers, check_recomputable, cut
from multibackend.registry import load_backend
from multibackend.reporting.jsonl import JsonLog
from multibackend.stopping import BestValue, EarlyStopping
from multibackend.windows import Position

__all__ = ["FitResult", "Trainer"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` gives back.

    Attributes:
        history: a record per update, from the beginning of the run.
        skipped: the windows that made no update.
        updates: made since the beginning of the run.
        epochs: finished since the beginning of the run.
        seconds: spent in this call of `fit`.
        evaluations: that this call made, `fit(evaluate_every=...)`.
        best: of them.
        stopped: the reason where a listener, such as `EarlyStopping`, ended the run.
    """

    history: History
    skipped: tuple[SkippedWindow, ...]
    updates: int
    epochs: int
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    best: BestValue | None = None
    stopped: str | None = None


class Trainer:
    """Trains an experiment on one backend.

    Args:
        experiment: what to train.
        backend: a name from `multibackend.list_backends()`.
        run_dir: a directory for the log, `log.jsonl`; created if need be. None writes no files.
        device: a name from the backend's devices; its first one unless given.
        callbacks: functions that are called with each event of `multibackend.events`; each may end the run.
        strategy: how a window executes, one of the backend's strategies; "auto" chooses. Never visible in the result.
        windows_per_dispatch: windows handed to the device at once; chosen by the backend unless given.
        read_ahead: read the next windows in another thread while the device is busy with these; the results are the
            same bits. None does where it can pay, see `multibackend.feed.Feed`; pass False for data that may be read
            by one thread only, or that draw from the framework's own random numbers. Only where every window has the
            same number of micro-batches.

    `trainer.micro_batch` tells how `micro_batch_size="auto"` was decided, None where a number was given;
    `trainer.experiment` has the number.

    Raises:
        BackendNotFoundError, BackendNotInstalledError: the backend cannot be used.
        ConfigurationError, DataError: an argument is wrong, or the data do not fit the model and the loss.

    >>> trainer = Trainer(experiment, backend="jax")    # doctest: +SKIP
    >>> trainer.fit(epochs=3).history[-1].loss          # doctest: +SKIP
    0.0675
    """

    def __init__(
        self,
        experiment: Experiment,
        backend: str,
        *,
        run_dir: str | Path | None = None,
        device: str | None = None,
        callbacks: Sequence[events.Listener] = (),
        strategy: str = "auto",
        windows_per_dispatch: int | None = None,
        read_ahead: bool | None = None,
    ) -> None:
        check_arguments(experiment, callbacks, device, windows_per_dispatch, read_ahead)
        native = self._native = load_backend(backend)
        how: dict[str, Any] = {
            "device": device,
            "strategy": strategy,
            "windows_per_dispatch": None if windows_per_dispatch is None else int(windows_per_dispatch),
        }
        experiment, self.micro_batch = resolve(experiment, native, **how)
        self.experiment, self.backend = experiment, backend
        self.device = native.devices()[0] if device is None else device
        self._feed = Feed(experiment, read_ahead=read_ahead)
        with memory_errors(native, experiment):
            self.program: Program = native.compile(experiment, example=self._feed.example(), **how)
            self._feed.check(self._feed.example(), self.program.output_shape)
            self._state = self.program.init()
        log = [JsonLog(Path(run_dir))] if run_dir is not None else []
        self._stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        self._emit = events.Broadcast([*callbacks, *log], experiment=experiment.name, backend=backend)
        self._ledger = Ledger(experiment, self.program, self._feed, self._emit)
        self._warned = False
        if self.micro_batch is not None:
            self._emit(events.MicroBatchChosen, **self.micro_batch.as_event())

    def fit(
        self,
        *,
        updates: int | None = None,
        epochs: int | None = None,
        evaluate_every: int | None = None,
        evaluate_ema: bool = False,
        best: str | None = None,
        keep_best: bool = False,
        early_stopping: EarlyStopping | None = None,
    ) -> FitResult:
        """Train until the run has made `updates` updates or `epochs` epochs, counted from its beginning.

        Args:
            updates, epochs: where the run ends; give one of them.
            evaluate_every: evaluate on `eval_data` after every so many updates of the run, and at its end.
            evaluate_ema: evaluate the moving average instead of the parameters.
            best: "loss" or the name of a metric, the best value of which is `FitResult.best`; what early stopping
                watches, or else "loss", unless given.
            keep_best: keep the parameters of the best evaluation, `FitResult.best.parameters`.
            early_stopping: a listener for this call, for example `EarlyStopping(metric="loss", patience=3)`.

        Raises:
            NonFiniteError: a gradient is not finite and `on_nonfinite="raise"`. The trainer stays usable, in the state
                before that window.
            OutOfMemoryError: the device has no memory left; the message lists the ways out. The run has ended.
            DataError: a label is out of range, or no window of a whole epoch made an update.
            ConfigurationError: an argument is wrong; every problem is listed.

        >>> result = trainer.fit(updates=500, evaluate_every=50, keep_best=True)   # doctest: +SKIP
        >>> result.best.update, result.best.value                                  # doctest: +SKIP
        (350, 0.0712)
        """
        goal = check_goal(updates, epochs, evaluate_ema, keep_best, early_stopping)
        plan = plan_evaluations(
            self.experiment,
            evaluate_every,
            best,
            self._stoppers if early_stopping is None else [early_stopping, *self._stoppers],
            ema=evaluate_ema,
            parameters=(self.ema_parameters if evaluate_ema else self.parameters) if keep_best else None,
        )
        per_epoch = self._feed.windows_per_epoch()
        planned = goal if epochs is None else None if per_epoch is None else goal * per_epoch
        with self._emit.joined_by(early_stopping):
            return self._fit(updates, epochs, planned, plan, ema=evaluate_ema)

    def _fit(
        self, updates: int | None, epochs: int | None, planned: int | None, plan: EvaluationPlan | None, *, ema: bool
    ) -> FitResult:
        """The loop, and what is told of it."""
        started, ledger, self._emit.stop = time.perf_counter(), self._ledger, None
        where = {"device": self.device, "strategy": self.program.strategy}
        try:
            ledger.read_all()
            if plan is not None:
                plan.go_on(ledger.update)
            self._emit(events.FitStarted, update=ledger.update, updates=planned, **where)
            self._warn_of_small_micro_batches()
            with memory_errors(self._native, self.experiment):
                self._loop(updates, epochs, plan, ema=ema)
            if plan is not None and not (plan.made and plan.made[-1].update == ledger.update):
                self._evaluate(ema=ema, plan=plan)
        except BaseException as error:
            self._settle(error)
            with contextlib.suppress(Exception):  # the first error is the one to be told
                self._emit(events.FitFailed, update=ledger.update, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._feed.rest()
        seconds, stop = time.perf_counter() - started, self._emit.stop
        stopped = None if stop is None else stop.reason
        self._emit(events.FitFinished, update=ledger.update, seconds=seconds, stopped=stopped)
        return FitResult(
            ledger.history,
            tuple(ledger.skipped),
            ledger.update,
            self._feed.settled(ledger.update).epoch,
            seconds,
            () if plan is None else tuple(plan.made),
            None if plan is None else plan.best,
            stopped,
        )

    def _loop(self, updates: int | None, epochs: int | None, plan: EvaluationPlan | None, *, ema: bool) -> None:
        ledger = self._ledger
        while self._emit.stop is None and not self._reached(updates, epochs):
            self._run_next(_nearest(updates, plan), epochs)
            ledger.read_if_due()
            if plan is not None and ledger.expected >= plan.due:
                ledger.read_all()  # some of the expected updates may have been skipped
                if ledger.update >= plan.due:
                    self._evaluate(ema=ema, plan=plan)
        ledger.read_all()

    def evaluate(self, data: Any = None, *, batch_size: int | None = None, ema: bool = False) -> dict[str, Any]:
        """Loss and metrics over `data`, the experiment's `eval_data` unless given; never changes training state.

        Each is the weighted mean over all of the data, so the batch size does not show in the result. With `ema` the
        moving average takes the place of the parameters; BatchNorm statistics are those of the training.

        Raises:
            ConfigurationError: there are no data, or no moving average.
            DataError: the data lack a field, or do not fit the loss or a metric.
        """
        return self._evaluate(data, batch_size, ema=ema)

    def _evaluate(
        self, data: Any = None, batch_size: int | None = None, *, ema: bool, plan: EvaluationPlan | None = None
    ) -> dict[str, Any]:
        source, size = evaluation_source(data, self.experiment), evaluation_size(batch_size, self.experiment)
        if ema:
            check_ema(self.experiment)
        self._ledger.read_all()
        with memory_errors(self._native, self.experiment, size):
            found = evaluate(self.program, self._state, self.experiment, source, size, check=self._feed.check, ema=ema)
        update, scheduled = self._ledger.update, plan is not None
        if plan is not None:
            plan.enter(update, found)
        self._emit(events.EvaluationFinished, update=update, metrics=found, ema=ema, scheduled=scheduled)
        return found

    def parameters(self) -> dict[str, np.ndarray]:
        """A copy of the parameters, by canonical name and in canonical layout."""
        return dict(self.snapshot().parameters)

    def ema_parameters(self) -> dict[str, np.ndarray]:
        """A copy of the moving average of the parameters, which `Experiment(ema_decay=...)` asks for.

        Raises:
            ConfigurationError: the experiment keeps none.
            CapabilityError: the backend keeps none.
        """
        check_ema(self.experiment)
        averaged = dict(self.snapshot().ema)
        if not averaged:
            raise CapabilityError(f"the backend {self.backend!r} keeps no moving average of the parameters")
        return averaged

    def load_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Replace the parameters by arrays in canonical layout, for example another backend's `parameters()`.

        Names pair up as in `compare`: `layers_0` and `layers.0` are one. A moving average begins anew at them.

        Raises:
            ParameterMatchError: a name is missing or unknown, or a shape differs.
        """
        arrays = {name: np.asarray(array) for name, array in parameters.items()}
        own = self.snapshot()
        pairs = match_names(shapes_of(arrays), shapes_of(own.parameters), self.experiment.model.rename)
        self.restore(replace(own, ema={}, parameters={name: arrays[partner] for name, partner in pairs.items()}))

    def recompute_statistics(self, data: Any = None) -> None:
        """Replace BatchNorm's running statistics by their mean over `data`, the training data unless given.

        The model sees the data in order, in training mode, in micro-batches; each statistic becomes the mean over them,
        weighted by examples, of what the layer would add to its running value. Parameters stay.

        Raises:
            ConfigurationError: the model has no layers with batch statistics, or they are frozen.
            CapabilityError: the backend cannot do this.

        Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.
        """
        source = check_recomputable(self.experiment, self.backend, self.program, data)
        self._ledger.read_all()
        batches = cut(source, int(self.experiment.micro_batch_size))
        self._state = self.program.recompute_statistics(self._state, batches)  # type: ignore[attr-defined]

    def gradient_shares(self) -> dict[str, float]:
        """For each parameter the largest share that its gradient's norm has had in the global norm so far."""
        self._ledger.read_all()
        return dict(zip(self.program.parameter_names, self._ledger.gradient_shares.tolist(), strict=True))

    def snapshot(self) -> Snapshot:
        """The training state on the host: parameters, model state, optimizer slots, updates made, moving average."""
        self._ledger.read_all()
        return self.program.snapshot(self._state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: its parameters, model state, optimizer slots and number of updates, which decides the
        learning rate. The place in the data stays.
        """
        self._ledger.read_all()
        self._state = self.program.restore(snapshot)
        self._ledger.update = snapshot.update

    def _reached(self, updates: int | None, epochs: int | None) -> bool:
        ledger = self._ledger
        if updates is None:
            if self._size_is_open():
                ledger.read_all()  # with drop_last the size of the next window decides whether the epoch has ended
            return self._feed.settled(ledger.expected).epoch >= (epochs or 0)
        if ledger.expected >= updates:
            ledger.read_all()  # some of the expected updates may have been skipped
        return ledger.update >= updates

    def _run_next(self, updates: int | None, epochs: int | None) -> None:
        """Hand the next windows to the device."""
        ledger, room = self._ledger, self.program.windows_per_dispatch
        if self._size_is_open():
            ledger.read_all()
        first = ledger.expected
        left = None if updates is None else updates - first
        stack = self._feed.next(first, room, self.program.output_shape, left=left, epochs=epochs)
        placed = self.program.place(stack)
        # the rates of all updates that these windows may turn out to make, in a table of constant length
        rates = ledger.rates.between(ledger.update, first + len(stack))
        table = np.full(max(2 * room + MOST_UNREAD, len(rates)), rates[-1])
        table[: len(rates)] = rates
        self._state, results = self.program.run(self._state, placed, Rates(ledger.update, table))
        ledger.add(stack, results)

    def _size_is_open(self) -> bool:
        """Whether the size of the next window depends on unread results: one of them may have been skipped."""
        accumulation, ledger = self._feed.accumulation, self._ledger
        if accumulation.constant:
            return False
        possible = range(ledger.update, ledger.expected + 1)
        return len({accumulation.steps(update) for update in possible}) > 1

    def _settle(self, error: BaseException) -> None:
        """After an error, a listener's perhaps: nothing is left unread, and the state is not frozen."""
        while True:  # each round reads something
            if isinstance(error, NonFiniteError):
                return self._go_back(error)
            try:
                return self._ledger.read_all()
            except Exception as another:
                error = another

    def _warn_of_small_micro_batches(self) -> None:
        """Once per run, where a model takes batch statistics from small micro-batches."""
        size, layers = int(self.experiment.micro_batch_size), batch_norm_layers(self.program)
        if self._warned or not layers or size >= SMALL_MICRO_BATCH or self.experiment.batch_statistics == "frozen":
            return
        self._warned, message = True, small_micro_batch_message(layers, size)
        self._emit(events.SmallMicroBatch, layers=layers, micro_batch_size=size, message=message)
        warnings.warn(message, BatchStatisticsWarning, stacklevel=3)

    def _go_back(self, error: NonFiniteError) -> None:
        """Stand where the failed window begins, with a state that is not frozen any more."""
        self._state = self.program.restore(self.program.snapshot(self._state))
        self._feed.position = Position(error.epoch, error.offset)


def _nearest(updates: int | None, plan: EvaluationPlan | None) -> int | None:
    """The update up to which windows may be handed to the device."""
    if plan is None:
        return updates
    return plan.due if updates is None else min(updates, plan.due)
