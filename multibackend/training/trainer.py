"""Training an experiment: what a user asks of a run, and how `fit` goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multibackend import events
from multibackend.checkpoint import write_checkpoint
from multibackend.core.text import Block, Readable
from multibackend.core.validation import as_path, by_keyword
from multibackend.errors import CapabilityError, ConfigurationError
from multibackend.experiment import Experiment
from multibackend.loggers.jsonl import JsonLog
from multibackend.loggers.progress import ProgressBar
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Execution, Snapshot
from multibackend.training.early_stopping import EarlyStopping
from multibackend.training.evaluation import (
    check_ema,
    plan_evaluations,
)
from multibackend.training.fit import Fit
from multibackend.training.in_use import InUse, by_one_thread
from multibackend.training.plan import Plan, as_parameters, check_arguments, check_fit, check_snapshot
from multibackend.training.printing import run_blocks, run_sentence
from multibackend.training.recompute_statistics import as_recomputable, batches_of
from multibackend.training.result import FitResult
from multibackend.training.run import Run
from multibackend.training.saving.restore import open_run, restore, starting_run
from multibackend.training.saving.saved_run import SavedRun, to_contents
from multibackend.training.saving.saver import DEFAULT_RULES, Checkpointing, Saver, check_resuming

__all__ = ["FitResult", "Trainer"]


class Trainer(Readable):
    """Trains an experiment on one backend; `print(trainer)` says what it trains, how, and where it stands.

    Args:
        experiment: what to train.
        backend: a name from `multibackend.list_backends()`.
        run_dir: a directory for the log, `log.jsonl`, and the checkpoints; created if need be. None
            writes no files.
        device: a name from the backend's devices; its first one unless given.
        callbacks: functions that are called with each event of `multibackend.events`; each may
            end the run.
        execution: how a window executes, one of the backend's execution modes; "auto" chooses.
            Never visible in the result.
        windows_per_dispatch: windows handed to the device at once; chosen by the
            backend unless given.
        read_ahead: read the next windows in another thread while the device is busy with these; the
            results are the same bits. None does where it can pay, see
            `multibackend.training.input.feed.Feed`; pass False for data that may be read by one
            thread only, or that draw from the framework's own random numbers. Only where every
            window has the same number of micro-batches.
        record_gradient_norms: keep each parameter's gradient norm of every update, for
            `gradient_norms()`.
        checkpointing: when the run is saved in `run_dir`, and which checkpoints stay; None for
            never. While it is saved, SIGTERM and Ctrl-C during `fit` finish the window, save,
            and raise `Interrupted`.
        resume: what to do about the checkpoints in `run_dir`. "never": there must be none; "auto":
            go on from the newest valid one, if there is one; "must": there has to be one. Damaged
            ones are passed over with a warning.
        may_differ: what may be another than in the checkpoint, by the names that a refusal lists,
            such as "learning_rate" or "data length".

    `trainer.micro_batch` tells how `micro_batch_size="auto"` was decided, None where a number was
    given; `trainer.experiment` has the number. `trainer.initial` is where the run's first parameters
    came from, see `Experiment`. `trainer.state` is the run's state
    (`multibackend.training.run_state`), `trainer.program` what the backend made of the experiment.

    One thread at a time uses a trainer: what another one asks of it meanwhile is refused with
    `TrainerInUseError`. A listener runs in the thread of `fit`, and may read parameters, evaluate
    and save; it may not call `fit`.

    Raises:
        BackendNotFoundError, BackendNotInstalledError: the backend cannot be used.
        ConfigurationError, DataError: an argument is wrong, or the data do not fit the model
            and the loss.

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
        windows_per_dispatch: int | None = None,
        read_ahead: bool | None = None,
        record_gradient_norms: bool = False,
        checkpointing: Checkpointing | None = DEFAULT_RULES,
        resume: str | SavedRun = "never",
        may_differ: Sequence[str] = (),
    ) -> None:
        # everything that can be known to be wrong is found here, before a model is built
        check_arguments(
            experiment,
            callbacks,
            device,
            windows_per_dispatch,
            read_ahead,
            record_gradient_norms,
            may_differ,
        )
        directory = None if run_dir is None else as_path("Trainer", "run_dir", run_dir)
        check_resuming(directory, checkpointing, resume)
        # read before anything is compiled: the saved run decides the batch size that was left open
        # and the names by which dropout masks are drawn
        saved = starting_run(directory, resume, is_saved=checkpointing is not None)
        if windows_per_dispatch is not None:
            windows_per_dispatch = int(windows_per_dispatch)
        choices = Execution(device, execution, windows_per_dispatch)

        plan, program = Plan.of(experiment, backend, choices, saved, read_ahead=read_ahead).compile()
        if device is None:
            device = plan.backend.devices()[0]
        saver = Saver.of(directory, checkpointing, saved, chosen=isinstance(resume, SavedRun))
        # behind the listeners of the user, who hear an event first
        listeners = [*callbacks]
        if directory is not None:
            listeners.append(JsonLog(directory, is_locked=lambda: saver is not None and saver.holds_directory))
        self._run = Run.begin(plan, program, device, listeners, saver, record_gradient_norms=record_gradient_norms)
        self.in_use = InUse()
        self._stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]

        self.backend = backend
        self.device = device
        self.experiment: Experiment = plan.experiment
        self.micro_batch = plan.micro_batch
        self.initial = plan.initial
        self.program = program
        self.state = self._run.state
        # last, because it needs the model's own names and the loop that reads the begun window
        if saved is not None:
            restore(plan, program, self._run.loop, self.state, saved, may_differ)
        if self.micro_batch is not None:
            self._run.emit(events.MicroBatchChosen, **self.micro_batch.as_event())

    @by_keyword("fit(updates=5) or fit(epochs=5)")
    @by_one_thread
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
        progress: bool | None = None,
    ) -> FitResult:
        """Train until the run has made so many updates or epochs, counted from its beginning.

        Args:
            updates, epochs, micro_batches: where the run ends; give one of them. Micro-batches may
                end inside a window, where the next `fit` goes on.
            evaluate_every: evaluate on `eval_data` after every so many updates of the run, and
                at its end.
            evaluate_ema: evaluate the moving average instead of the parameters.
            best: "loss" or the name of a metric, the best value of which is `FitResult.best`; what
                early stopping watches, or else "loss", unless given.
            keep_best: keep the parameters of the best evaluation, `FitResult.best.parameters`.
            early_stopping: a listener for this call, for example `EarlyStopping(metric="loss",
                patience=3)`.
            progress: show how far the run is, and at its end updates, loss, time and where it was
                saved, on the standard error: a bar in a terminal and in a notebook, plain lines
                elsewhere. None shows it unless one of `callbacks` is a `ProgressBar` already; True
                shows it all the same, False shows nothing.

        Raises:
            NonFiniteError: a loss or a gradient is not finite and `on_nonfinite="raise"`. The
                trainer stays usable, in the state before that window.
            OutOfMemoryError: the device has no memory left; the message lists the ways out. The
                run has ended.
            DataError: a label or an id is out of range, or no window of a whole epoch, or of 1000 where
                the data have no end, made an update.
            FileError: the log in `run_dir` cannot be written; told at the beginning, or else at the
                end, once the run is saved.
            ConfigurationError: an argument is wrong; every problem is listed.
            TrainerInUseError: `fit` has not returned that was called before, in this thread or in
                another one.

        >>> result = trainer.fit(updates=500, evaluate_every=50, keep_best=True)   # doctest: +SKIP
        >>> result.best.update, result.best.value                                  # doctest: +SKIP
        (350, 0.0712)
        """
        limits = {"updates": updates, "epochs": epochs, "micro_batches": micro_batches}
        stop = check_fit(limits, evaluate_ema, keep_best, early_stopping, progress)
        stoppers = [*self._stoppers]
        if early_stopping is not None:
            stoppers.insert(0, early_stopping)
        kept_parameters = None
        if keep_best:
            kept_parameters = self.ema_parameters if evaluate_ema else self.parameters
        evaluations = plan_evaluations(
            self.experiment, evaluate_every, best, stoppers, ema=evaluate_ema, parameters=kept_parameters
        )
        bar = None
        if progress or (progress is None and not self._run.emit.reaches(ProgressBar)):
            bar = ProgressBar()
        with self._run.emit.joined_by(early_stopping), self._run.emit.joined_by(bar):
            return Fit(self._run, stop, evaluations, stoppers, ema=evaluate_ema).to_end()

    def blocks(self) -> Sequence[Block]:
        """What is printed: what is trained and how, and where the run stands."""
        return run_blocks(self._run)

    def __repr__(self) -> str:
        return f"<Trainer: {run_sentence(self._run)}>"

    @by_one_thread
    def save(self, path: str | Path) -> Path:
        """Write a checkpoint of the run as it stands, also inside a window, to a new directory.

        Raises:
            CheckpointError: it cannot be written; the message says why.

        >>> trainer.save("best")                                                    # doctest: +SKIP
        PosixPath('best')
        """
        return write_checkpoint(as_path("Trainer.save", "path", path), to_contents(self._run.capture()))

    @classmethod
    def resume(cls, path: str | Path, experiment: Experiment, backend: str | None = None, **options: Any) -> Trainer:
        """A trainer that goes on from a checkpoint, on the backend that wrote it or on another.

        On the same backend, device and library versions the finished run is bit-identical to one
        that never stopped, also from the middle of an epoch or of a window; on another backend it
        agrees as closely as two backends do.

        Args:
            path: a checkpoint, or a run's directory, whose newest valid checkpoint is taken.
            experiment: the same again; what it is decides, not where it comes from.
            backend: the one that wrote the checkpoint unless given.
            options: of `Trainer`: `may_differ`, `device`, `callbacks`, ...; `run_dir`
                to go on saving.

        Raises:
            CheckpointError: there is no valid checkpoint.
            ResumeError: the experiment does not fit it; every difference is listed.

        >>> mb.Trainer.resume("runs/digits", experiment, backend="jax").fit(epochs=3)  # doctest: +SKIP
        """
        saved = open_run(as_path("Trainer.resume", "path", path))
        if backend is None:
            backend = saved.backend
        return cls(experiment, backend, resume=saved, **options)

    @by_one_thread
    def evaluate(self, data: Any = None, *, batch_size: int | None = None, ema: bool = False) -> dict[str, Any]:
        """Loss and metrics over `data`, the experiment's `eval_data` unless given.

        Each is the weighted mean over all of the data, so the batch size does not show in the
        result. With `ema` the moving average takes the place of the parameters; BatchNorm
        statistics are those of the training, whose state is never changed.

        Raises:
            ConfigurationError: there are no data, or no moving average.
            DataError: the data lack a field, or do not fit the loss or a metric.
        """
        return self._run.evaluate(data, batch_size, ema=ema)

    @property
    @by_one_thread
    def model(self) -> Any:
        """The framework's own model with what was trained, in evaluation mode.

        torch: the `nn.Module`. Flax: the nnx module; the linen module bound to its variables, which
        is told `train=False` or the like by whoever calls it. A copy each time: training on does not
        change it, nor it the training. BatchNorm has its running statistics, and no layer drops.

        Of a float64 run it computes in float64, in JAX inside `with jax.enable_x64(True)`; of a bf16
        run it computes in float32 unless told otherwise, where `predict` computes as the run does.

        Raises:
            CapabilityError: the backend does not hand it out.

        >>> torch.save(trainer.model.state_dict(), "model.pt")          # doctest: +SKIP
        """
        return self._run.native_model()

    @by_one_thread
    def predict(
        self, data: Any = None, output: str | None = None, batch_size: int | None = None, *, ema: bool = False
    ) -> Any:
        """What the model returns for data, in evaluation mode; the training is not touched.

        Args:
            data: as for `evaluate`, of which only the fields that the model reads are needed; or one
                array for a model with one input. The experiment's `eval_data` unless given.
            output: the path of a part of what the model returns, such as "cls" or "heads.0"; all of
                it unless given.
            batch_size: examples at once; `eval_batch_size` or the micro-batch size unless given.
            ema: let the moving average take the place of the parameters.

        Returns:
            The outputs as the model returns them (one array, a dict, a tuple, a dataclass), each
            array a numpy array [examples, ...] in the order of the data; floats in float32, in a
            float64 run in float64. What is no array is that of the first batch.

        Raises:
            CapabilityError: the backend does not hand outputs out.
            ConfigurationError: an argument is wrong, or there is nothing at `output`.
            DataError: the data lack a field, or an output's first axis is not the batch.

        >>> logits = trainer.predict({"image": images})                 # doctest: +SKIP
        >>> logits.argmax(axis=1)                                       # doctest: +SKIP
        array([7, 2, 1])
        """
        return self._run.predict(data, output, batch_size, ema=ema)

    @by_one_thread
    def gradients(self, data: Any = None) -> dict[str, np.ndarray]:
        """The gradient that the next update would be made with, by canonical name, in canonical layout.

        That of the window's loss sum(w * l) / sum(w) by each parameter, over every micro-batch of
        the next window of the training data (of one that has begun, what has run of it included),
        in training mode and with the dropout masks of that update. It is normalised as the update's
        is, and not yet clipped: the root of its sum of squares is the `grad_norm` that the update
        reports. Zeros for a frozen parameter, and for one that no micro-batch uses. Weight decay is
        no part of it. Nothing of the run changes; the micro-batches are run once more by `fit`.

        Args:
            data: with them, the gradient of one window that holds all of these examples, in their
                order, in micro-batches of the experiment's size.

        Raises:
            CapabilityError: the backend cannot stop inside a window.
            DataError: the data lack a field, or do not fit the loss.

        >>> norms = {name: np.linalg.norm(g) for name, g in trainer.gradients().items()}  # doctest: +SKIP
        """
        return self._run.gradients(data)

    @by_one_thread
    def parameters(self) -> dict[str, np.ndarray]:
        """A copy of the parameters, by canonical name and in canonical layout."""
        return dict(self.snapshot().parameters)

    @by_one_thread
    def ema_parameters(self) -> dict[str, np.ndarray]:
        """A copy of the moving average of the parameters, which `Experiment(ema_decay=...)` asks for.

        Raises:
            ConfigurationError: the experiment keeps none.
            CapabilityError: the backend keeps none.
        """
        check_ema(self.experiment)
        averaged = dict(self.snapshot().ema)
        if not averaged:
            problem = f"the backend {self.backend!r} keeps no moving average of the parameters"
            raise CapabilityError(problem)
        return averaged

    @by_one_thread
    def load_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Replace the parameters by arrays in canonical layout, as of another backend.

        Names pair up as in `compare`, by `Model(matching=...)` or by what they, shapes and layers
        say; model state that is among the arrays is taken over as well. A moving average begins
        anew at them.

        Raises:
            ParameterMatchError: a name is missing or unknown, a shape differs, or only the models
                could tell which parameter is which.
        """
        arrays = as_parameters(parameters)
        self.restore(with_arrays(self.snapshot(), arrays, self.experiment.model, self.program))

    @by_one_thread
    def recompute_statistics(self, data: Any = None) -> None:
        """Replace BatchNorm's running statistics by their mean over data.

        They are the training data unless given. The model sees them in order, in training mode, in
        micro-batches; each statistic becomes the mean over them, weighted by examples, of what the
        layer would add to its running value. Parameters stay.

        Raises:
            ConfigurationError: the model has no layers with batch statistics, or they are frozen.
            CapabilityError: the backend cannot do this.

        Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.
        """
        source, program = as_recomputable(self.experiment, self.backend, self.program, data)
        self._run.results.read_all()
        batches = batches_of(source, int(self.experiment.micro_batch_size))
        self._run.loop.recompute_statistics(program, batches)

    @by_one_thread
    def gradient_shares(self) -> dict[str, float]:
        """For each parameter the largest share that its gradient has had in the global norm."""
        self._run.results.read_all()
        names = self.program.info.parameter_names
        return dict(zip(names, self.state.gradient_shares.tolist(), strict=True))

    @by_one_thread
    def gradient_norms(self) -> np.ndarray:
        """The norm of each parameter's gradient at each update: float64 [updates, parameters].

        Normalised, before clipping; in the order of `program.info.parameter_names`.

        Raises:
            ConfigurationError: the trainer was made without `record_gradient_norms=True`.
        """
        self._run.results.read_all()
        norms = self.state.gradient_norms
        if norms is None:
            problem = "there are no gradient norms; pass record_gradient_norms=True"
            raise ConfigurationError("Trainer", [problem])
        return norms.rows.copy()

    @by_one_thread
    def snapshot(self) -> Snapshot:
        """The state on the host: parameters, model and optimizer state, update, moving average."""
        return self._run.snapshot()

    @by_one_thread
    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot and its number of updates; the place in the data stays.

        Raises:
            ConfigurationError: it is no snapshot.
            ParameterMatchError: it is one of another model.
        """
        check_snapshot(snapshot)
        self._run.loop.restore(snapshot)
