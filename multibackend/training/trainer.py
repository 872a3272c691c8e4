"""The loop, once for every backend: read windows, run them, read results, tell the listeners."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multibackend import events
from multibackend.checkpoint import write_checkpoint
from multibackend.errors import BatchStatisticsWarning, CapabilityError
from multibackend.experiment import Experiment
from multibackend.experiment.batch_norm import SMALL_MICRO_BATCH, small_micro_batch_message
from multibackend.loggers.jsonl import JsonLog
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Execution, Snapshot
from multibackend.protocol.registry import load_backend
from multibackend.training.arguments import check_arguments, check_ema, check_stop_condition
from multibackend.training.auto_batch_size import memory_errors, resolve
from multibackend.training.early_stopping import EarlyStopping
from multibackend.training.evaluation import (
    EvaluationPlan,
    evaluate,
    evaluation_size,
    evaluation_source,
    plan_evaluations,
)
from multibackend.training.input.feed import Feed
from multibackend.training.loop import Loop
from multibackend.training.recompute_statistics import check_recomputable, cut
from multibackend.training.result import FitResult
from multibackend.training.results import ResultsLog
from multibackend.training.saving.evaluation_state import EvaluationState
from multibackend.training.saving.interrupts import SignalHandler
from multibackend.training.saving.restore import (
    RunParts,
    adapted,
    compile_alike,
    open_run,
    put_back,
    starting_state,
    take,
)
from multibackend.training.saving.run_state import RunState, to_contents
from multibackend.training.saving.saver import DEFAULT_RULES, Checkpointing, Place, Saver, check_resuming
from multibackend.training.stop_condition import StopCondition

__all__ = ["FitResult", "Trainer"]

Stoppers = Sequence[EarlyStopping]


class Trainer:
    """Trains an experiment on one backend.

    Args:
        experiment: what to train.
        backend: a name from `multibackend.list_backends()`.
        run_dir: a directory for the log, `log.jsonl`, and the checkpoints; created if need be. None writes no files.
        device: a name from the backend's devices; its first one unless given.
        callbacks: functions that are called with each event of `multibackend.events`; each may end the run.
        execution: how a window executes, one of the backend's execution modes; "auto" chooses. Never visible in the
            result.
        windows_per_dispatch: windows handed to the device at once; chosen by the backend unless given.
        read_ahead: read the next windows in another thread while the device is busy with these; the results are the
            same bits. None does where it can pay, see `multibackend.training.input.feed.Feed`; pass False for data that may be read
            by one thread only, or that draw from the framework's own random numbers. Only where every window has the
            same number of micro-batches.
        checkpointing: when the run is saved in `run_dir`, and which checkpoints stay; None for never. While it is
            saved, SIGTERM and Ctrl-C during `fit` finish the window, save, and raise `Interrupted`.
        resume: what to do about the checkpoints in `run_dir`. "never": there must be none; "auto": go on from the
            newest valid one, if there is one; "must": there has to be one. Damaged ones are passed over with a warning.
        may_differ: what may be another than in the checkpoint, by the names that a refusal lists, such as
            "learning_rate" or "data length".

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
        execution: str = "auto",
        record_gradient_norms: bool = False,
        windows_per_dispatch: int | None = None,
        read_ahead: bool | None = None,
        checkpointing: Checkpointing | None = DEFAULT_RULES,
        resume: str | RunState = "never",
        may_differ: Sequence[str] = (),
    ) -> None:
        check_arguments(experiment, callbacks, device, windows_per_dispatch, read_ahead)
        directory = None if run_dir is None else Path(run_dir)
        check_resuming(directory, checkpointing, resume)
        run = starting_state(None if checkpointing is None else directory, resume)
        experiment = experiment if run is None else adapted(experiment, run)
        native = self._native = load_backend(backend)
        windows = None if windows_per_dispatch is None else int(windows_per_dispatch)
        chosen_execution = Execution(device, execution, windows)
        experiment, self.micro_batch = resolve(experiment, native, chosen_execution)
        self.backend = backend
        self.device = native.devices()[0] if device is None else device
        self._feed = Feed(experiment, read_ahead=read_ahead)
        with memory_errors(native, experiment):
            experiment, self.program = compile_alike(native, experiment, run, self._feed.example(), chosen_execution)
            self._feed.check(self._feed.example(), self.program.info.output_shape)
        self.experiment: Experiment = experiment
        log = [JsonLog(directory)] if directory is not None else []
        self._stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        self._emit = events.Broadcast([*callbacks, *log], experiment=experiment.name, backend=backend)
        self._results = ResultsLog(experiment, self.program, self._feed, self._emit)
        with memory_errors(native, experiment):
            self._loop = Loop(self.program, self._feed, self._results)
        self._warned, self._books, self._resumed = False, EvaluationState(), run is not None
        self._saver: Saver | None = None
        if directory is not None and checkpointing is not None:
            start, chosen = None if run is None else run.path, isinstance(resume, RunState)
            self._saver = Saver(directory, checkpointing, start, chosen=chosen)
        if run is not None:
            self._books = put_back(self._parts, run, may_differ)
        if self.micro_batch is not None:
            self._emit(events.MicroBatchChosen, **self.micro_batch.as_event())

    def fit(
        self,
        *,
        updates: int | None = None,
        epochs: int | None = None,
        micro_batches: int | None = None,
        evaluate_every: int | None = None,
        evaluate_ema: bool = False,
        best: str | None = None,
        keep_best: bool = False,
        early_stopping: EarlyStopping | None = None,
    ) -> FitResult:
        """Train until the run has made `updates` updates or `epochs` epochs, counted from its beginning.

        Args:
            updates, epochs, micro_batches: where the run ends; give one of them. Micro-batches may end inside a window,
                where the next `fit` goes on.
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
        goal = check_stop_condition(updates, epochs, micro_batches, evaluate_ema, keep_best, early_stopping)
        stoppers = self._stoppers if early_stopping is None else [early_stopping, *self._stoppers]
        plan = plan_evaluations(
            self.experiment,
            evaluate_every,
            best,
            stoppers,
            ema=evaluate_ema,
            parameters=(self.ema_parameters if evaluate_ema else self.parameters) if keep_best else None,
        )
        self._emit.stop = None
        with (
            self._emit.joined_by(early_stopping),
            SignalHandler(self._ask_to_stop, active=self._saver is not None) as watch,
        ):
            result = self._fit(goal, plan, stoppers, watch, ema=evaluate_ema)
        if self._saver is not None:
            watch.end(self._saver.run_dir, result.updates, self.backend)
        return result

    def _fit(
        self, goal: StopCondition, plan: EvaluationPlan | None, stoppers: Stoppers, watch: SignalHandler, *, ema: bool
    ) -> FitResult:
        """The loop, and what is told of it."""
        started, ledger = time.perf_counter(), self._results
        try:
            ledger.read_all()
            if self._saver is not None:
                self._saver.open(ledger.update, self._loop.micro_batches)
            if plan is not None:
                plan.go_on(ledger.update)
            planned = goal.planned(self._feed.windows_per_epoch(), self._feed.accumulation.steps(0))
            how = {"device": self.device, "execution": self.program.execution.mode}
            self._emit(events.FitStarted, update=ledger.update, updates=planned, **how)
            if self._resumed:
                self._books.hand_over(plan, stoppers)
            self._resumed, self._books = False, EvaluationState()
            self._warn_of_small_micro_batches()
            with memory_errors(self._native, self.experiment):
                self._run_until(goal, plan, stoppers, ema=ema)
            if watch.caught is None and plan is not None and not plan.made_at(ledger.update):
                self._evaluate(ema=ema, plan=plan)
            self._save(plan, stoppers, last=True)
        except BaseException as error:
            self._loop.settle(error)
            with contextlib.suppress(Exception):  # the first error is the one to be told
                self._close()
            with contextlib.suppress(Exception):
                self._emit(events.FitFailed, update=ledger.update, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._feed.rest()
        self._close()
        seconds, stop = time.perf_counter() - started, self._emit.stop
        stopped = None if stop is None else stop.reason
        self._emit(events.FitFinished, update=ledger.update, seconds=seconds, stopped=stopped)
        return FitResult(
            ledger.history,
            tuple(ledger.skipped),
            ledger.update,
            self._loop.epochs(),
            seconds,
            () if plan is None else tuple(plan.made),
            None if plan is None else plan.best,
            stopped,
        )

    def _run_until(self, goal: StopCondition, plan: EvaluationPlan | None, stoppers: Stoppers, *, ema: bool) -> None:
        ledger, driver, saver = self._results, self._loop, self._saver
        while self._emit.stop is None and not driver.reached(goal):
            nearest = goal if plan is None else goal.before(updates=plan.due)
            driver.run_next(nearest if saver is None else saver.ahead(nearest))
            ledger.read_if_due()
            if plan is not None and ledger.expected >= plan.due:
                ledger.read_all()  # some of the expected updates may have been skipped
                if ledger.update >= plan.due:
                    self._evaluate(ema=ema, plan=plan)
            if saver is not None and saver.may_be_due(ledger.expected, driver.micro_batches):
                ledger.read_all()
                if saver.may_be_due(ledger.update, driver.micro_batches):
                    self._save(plan, stoppers)
        ledger.read_all()

    def _close(self) -> None:
        if self._saver is not None:
            self._saver.close()

    def _save(self, plan: EvaluationPlan | None, stoppers: Stoppers, *, last: bool = False) -> None:
        """Save into the run's directory, if there is one."""
        self._books = EvaluationState.of(plan, stoppers)
        if self._saver is not None:
            update = self._results.update
            place = Place(update, self._loop.micro_batches, len(self._books.made))
            metric = None if plan is None or not plan.made_at(update) else self._saver.metric_of(plan.made[-1].metrics)
            self._saver.save(place, lambda: take(self._parts, self._books), metric, last=last)

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint of the run as it stands, also inside a window, to a directory that is not there.

        Raises:
            CheckpointError: it cannot be written; the message says why.

        >>> trainer.save("best")                                                    # doctest: +SKIP
        PosixPath('best')
        """
        return write_checkpoint(Path(path), to_contents(take(self._parts, self._books)))

    @classmethod
    def resume(cls, path: str | Path, experiment: Experiment, backend: str | None = None, **options: Any) -> Trainer:
        """A trainer that goes on from a checkpoint, on the backend that wrote it or on another.

        On the same backend, device and library versions the finished run is bit-identical to one that never stopped,
        also from the middle of an epoch or of a window; on another backend it agrees as closely as two backends do.

        Args:
            path: a checkpoint, or a run's directory, whose newest valid checkpoint is taken.
            experiment: the same again; what it is decides, not where it comes from.
            backend: the one that wrote the checkpoint unless given.
            options: of `Trainer`: `may_differ`, `device`, `callbacks`, ...; `run_dir` to go on saving.

        Raises:
            CheckpointError: there is no valid checkpoint.
            ResumeError: the experiment does not fit it; every difference is listed.

        >>> mb.Trainer.resume("runs/digits", experiment, backend="jax").fit(epochs=3)  # doctest: +SKIP
        """
        run = open_run(path)
        return cls(experiment, run.backend if backend is None else backend, resume=run, **options)

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
        self._results.read_all()
        with memory_errors(self._native, self.experiment, size):
            found = evaluate(
                self.program, self._loop.state, self.experiment, source, size, check=self._feed.check, ema=ema
            )
        update, scheduled = self._results.update, plan is not None
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

        Names pair up as in `compare`, by `Model(matching=...)` or by what they, shapes and layers say; model state that
        is among the arrays is taken over as well. A moving average begins anew at them.

        Raises:
            ParameterMatchError: a name is missing or unknown, a shape differs, or only the models could tell which
                parameter is which.
        """
        arrays = {name: np.asarray(array) for name, array in parameters.items()}
        self.restore(with_arrays(self.snapshot(), arrays, self.experiment.model, self.program))

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
        self._results.read_all()
        self._loop.recompute_statistics(cut(source, int(self.experiment.micro_batch_size)))

    def gradient_shares(self) -> dict[str, float]:
        """For each parameter the largest share that its gradient's norm has had in the global norm so far."""
        self._results.read_all()
        return dict(zip(self.program.info.parameter_names, self._results.gradient_shares.tolist(), strict=True))

    def snapshot(self) -> Snapshot:
        """The training state on the host: parameters, model state, optimizer slots, updates made, moving average."""
        self._results.read_all()
        return self.program.snapshot(self._loop.state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: its parameters, model state, optimizer slots and number of updates, which decides the
        learning rate. The place in the data stays.
        """
        self._loop.restore(snapshot)

    @property
    def _parts(self) -> RunParts:
        example = self._feed.example()
        return RunParts(self.experiment, self.backend, self.program, self._loop, self._results, example)

    def _ask_to_stop(self, signal: str) -> None:
        self._emit.stop = self._emit.stop or events.Stop(signal)

    def _warn_of_small_micro_batches(self) -> None:
        """Once per run, where a model takes batch statistics from small micro-batches."""
        size, layers = int(self.experiment.micro_batch_size), self.program.info.batch_norm_layers
        if self._warned or not layers or size >= SMALL_MICRO_BATCH or self.experiment.batch_statistics == "frozen":
            return
        self._warned, message = True, small_micro_batch_message(layers, size)
        self._emit(events.SmallMicroBatch, layers=layers, micro_batch_size=size, message=message)
        warnings.warn(message, BatchStatisticsWarning, stacklevel=3)
