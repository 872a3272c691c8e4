"""One call of `fit`: windows until the end, with the evaluations and the saves on the way."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Sequence

from multibackend import events
from multibackend.errors import BatchStatisticsWarning, OutputsWarning
from multibackend.experiment.batch_norm import SMALL_MICRO_BATCH, small_micro_batch_message
from multibackend.training.auto_batch_size import memory_errors
from multibackend.training.doubts import doubts_about_outputs
from multibackend.training.early_stopping import EarlyStopping
from multibackend.training.evaluation import EvaluationPlan
from multibackend.training.evaluation_state import EvaluationState
from multibackend.training.remarks import nothing_to_do, schedule_cut_off
from multibackend.training.result import FitResult
from multibackend.training.results import learning_rate_of
from multibackend.training.run import Run
from multibackend.training.saving.interrupts import SignalHandler
from multibackend.training.saving.saver import Place
from multibackend.training.settings import settings_of
from multibackend.training.stop_condition import StopCondition

__all__ = ["Fit"]

# how far above a method that warns the line is that called `fit`, whose decorators are two frames
_CALLER = 8


class Fit:
    """One call of `fit`.

    Args:
        run: what is trained.
        stop: where it ends.
        evaluations: when it evaluates, and what came of it; None where it does not.
        ema: whether the moving average is what is evaluated.
        stoppers: may end it earlier, and remember evaluations.
    """

    def __init__(
        self,
        run: Run,
        stop: StopCondition,
        evaluations: EvaluationPlan | None,
        stoppers: Sequence[EarlyStopping],
        *,
        ema: bool,
    ) -> None:
        self._run = run
        self._stop = stop
        self._evaluations = evaluations
        self._stoppers = stoppers
        self._ema = ema
        self._signals = SignalHandler(self._ask_to_stop, active=run.saver is not None)
        self._begun_at = 0
        self._remarks: list[str] = []

    def to_end(self) -> FitResult:
        """Train, and tell of it. Raises `Interrupted` where a signal ended it."""
        run = self._run
        # a listener that stopped the call of `fit` before does not stop this one
        run.emit.stop = None
        with self._signals:
            result = self._train()
        # only a run that was saved can tell how it goes on
        if run.saver is not None:
            self._signals.end(run.saver.run_dir, result.updates, run.plan.backend.name)
        return result

    def _train(self) -> FitResult:
        run = self._run
        started = time.perf_counter()
        try:
            self._open()
            with memory_errors(run.plan.backend, run.plan.experiment):
                self._run_windows()
            self._evaluate_at_end()
            self._save(last=True)
        except BaseException as error:
            # first of all the state: whatever a listener does next, the trainer stays usable
            run.loop.recover(error)
            with contextlib.suppress(Exception):  # the first error is the one to be told
                self._close()
            with contextlib.suppress(Exception):
                description = f"{type(error).__name__}: {error}"
                run.emit(events.FitFailed, update=run.state.update, error=description)
            raise
        finally:
            # no thread outlives the call; what it has read waits for the next one
            run.plan.feed.end_thread()
        self._close()
        seconds = time.perf_counter() - started
        stopped = run.emit.stop and run.emit.stop.reason
        saved = None if run.saver is None else run.saver.run_dir
        run.emit(
            events.FitFinished,
            update=run.state.update,
            seconds=seconds,
            stopped=stopped,
            saved=None if saved is None else str(saved),
        )
        evaluations = EvaluationState.of(self._evaluations, self._stoppers)
        return FitResult(
            history=run.state.history,
            skipped=tuple(run.state.skipped),
            updates=run.state.update,
            epochs=run.loop.epochs(),
            seconds=seconds,
            evaluations=tuple(evaluations.made),
            best=evaluations.best,
            stopped=stopped,
            experiment=run.plan.experiment.name,
            backend=run.plan.backend.name,
            begun_at=self._begun_at,
            saved=saved,
            remarks=tuple(self._remarks),
        )

    def _open(self) -> None:
        """Take the run's directory, plan what comes first, and tell that `fit` begins."""
        run = self._run
        run.results.read_all()
        update = run.state.update
        self._begun_at = update
        if run.saver is not None:
            run.saver.open(update, run.loop.micro_batches)
        if self._evaluations is not None:
            self._evaluations.go_on(update)
        feed = run.plan.feed
        planned = self._stop.planned_updates(feed.windows_per_epoch(), feed.accumulation.steps(0))
        execution = {"device": run.device, "execution": run.program.execution.mode}
        run.emit(events.FitStarted, update=update, updates=planned, **execution, initial=run.plan.initial)
        self._describe()
        self._remark(planned)
        if run.goes_on:  # after the event, at which early stopping forgets what it remembers
            run.state.evaluations.hand_over(self._evaluations, self._stoppers)
        run.goes_on = False
        run.state.evaluations = EvaluationState()
        self._warn_of_small_micro_batches()
        self._warn_of_outputs()

    def _describe(self) -> None:
        """Once for each trainer, tell its settings."""
        run = self._run
        if run.is_described or not run.emit.is_heard:
            return
        run.is_described = True
        experiment = run.plan.experiment
        settings = {"precision": str(experiment.precision), **settings_of(experiment, [run.plan.backend.name])}
        run.emit(events.RunDescribed, settings=settings | {"start": run.plan.initial})

    def _remark(self, planned: int | None) -> None:
        """Tell what whoever called may not expect."""
        run = self._run
        remarks = [run.remark]  # of its start, which is told once
        run.remark = None
        micro_batches = run.loop.micro_batches
        if micro_batches and run.loop.reached(self._stop):
            place = {"updates": run.state.update, "epochs": run.loop.epochs(), "micro_batches": micro_batches}
            remarks.append(nothing_to_do(self._stop, **place))
        else:
            remarks.append(schedule_cut_off(learning_rate_of(run.plan.experiment), planned))
        for remark in filter(None, remarks):
            self._remarks.append(remark)
            run.emit(events.Remark, message=remark)

    def _run_windows(self) -> None:
        """Hand windows to the device until the end, evaluating and saving on the way."""
        state = self._run.state
        results = self._run.results
        loop = self._run.loop
        saver = self._run.saver
        plan = self._evaluations
        while self._run.emit.stop is None and not loop.reached(self._stop):
            # a dispatch never runs past an evaluation or a save
            nearest = self._stop
            if plan is not None:
                nearest = nearest.before(updates=plan.due)
            if saver is not None:
                nearest = saver.before(nearest)
            loop.run_next(nearest)
            results.read_if_due()
            if plan is not None and results.expected_updates >= plan.due:
                results.read_all()  # some of the expected updates may have been skipped
                if state.update >= plan.due:
                    self._run.evaluate(ema=self._ema, plan=plan)
            # asked twice: expected updates are an upper bound, and reading results costs a wait
            if saver is not None and saver.may_be_due(results.expected_updates, loop.micro_batches):
                results.read_all()
                if saver.may_be_due(state.update, loop.micro_batches):
                    self._save()
        results.read_all()

    def _evaluate_at_end(self) -> None:
        # whoever ends a run by a signal waits for a save, not for an evaluation besides
        plan = self._evaluations
        is_whole = self._signals.caught is None
        if is_whole and plan is not None and not plan.made_at(self._run.state.update):
            self._run.evaluate(ema=self._ema, plan=plan)

    def _save(self, *, last: bool = False) -> None:
        """Save into the run's directory, if there is one."""
        run = self._run
        plan = self._evaluations
        run.state.evaluations = EvaluationState.of(plan, self._stoppers)
        if run.saver is None:
            return
        update = run.state.update
        # a checkpoint ranks by an evaluation of these very parameters, not of earlier ones
        metric = None
        if plan is not None and plan.made_at(update):
            metric = run.saver.metric_of(plan.made[-1].metrics)
        place = Place(update, run.loop.micro_batches, len(run.state.evaluations.made))
        run.saver.save(place, run.capture, metric, last=last)

    def _close(self) -> None:
        if self._run.saver is not None:
            self._run.saver.close()

    def _ask_to_stop(self, signal: str) -> None:
        self._run.emit.stop = self._run.emit.stop or events.Stop(signal)

    def _warn_of_small_micro_batches(self) -> None:
        """Once per run, where a model takes batch statistics from small micro-batches."""
        run = self._run
        experiment = run.plan.experiment
        size = int(experiment.micro_batch_size)
        layers = run.program.info.batch_norm_layers
        is_frozen = experiment.batch_statistics == "frozen"
        if run.has_warned or not layers or size >= SMALL_MICRO_BATCH or is_frozen:
            return
        run.has_warned = True
        message = small_micro_batch_message(layers, size)
        run.emit(events.SmallMicroBatch, layers=layers, micro_batch_size=size, message=message)
        warnings.warn(message, BatchStatisticsWarning, stacklevel=_CALLER)

    def _warn_of_outputs(self) -> None:
        """Once per run, where a loss of logits gets probabilities."""
        run = self._run
        if run.has_seen_outputs:
            return
        run.has_seen_outputs = True
        plan = run.plan
        for doubt in doubts_about_outputs(plan.experiment, run.program, run.state.program_state, plan.feed.example()):
            run.emit(events.Remark, message=doubt)
            warnings.warn(doubt, OutputsWarning, stacklevel=_CALLER)
