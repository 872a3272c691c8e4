"""The loop, once for every backend: read windows, run them, read results, tell the listeners."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multibackend import events
from multibackend.data import Source, Stream, as_source
from multibackend.errors import ConfigurationError, DataError, NonFiniteError
from multibackend.experiment import Experiment
from multibackend.feed import Feed
from multibackend.history import History, SkippedWindow
from multibackend.ledger import MOST_UNREAD, Ledger
from multibackend.names import match_names, shapes_of
from multibackend.order import batches
from multibackend.protocol import Program, Rates, Snapshot
from multibackend.registry import load_backend
from multibackend.reporting.jsonl import JsonLog
from multibackend.validation import Problems
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
    """

    history: History
    skipped: tuple[SkippedWindow, ...]
    updates: int
    epochs: int
    seconds: float


class Trainer:
    """Trains an experiment on one backend.

    Args:
        experiment: what to train.
        backend: a name from `multibackend.list_backends()`.
        run_dir: a directory for the log, `log.jsonl`; created if need be. None writes no files.
        device: a name from the backend's devices; its first one unless given.
        callbacks: functions that are called with each event of `multibackend.events`.
        strategy: how a window executes, one of the backend's strategies; "auto" chooses. Never visible in the result.
        windows_per_dispatch: windows handed to the device at once; chosen by the backend unless given.
        read_ahead: read the next windows in another thread while the device is busy with these; the results are the
            same bits. None does where it can pay, see `multibackend.feed.Feed`; pass False for data that may be read
            by one thread only, or that draw from the framework's own random numbers. Only where every window has the
            same number of micro-batches.

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
        _check_arguments(experiment, callbacks, device, windows_per_dispatch, read_ahead)
        native = load_backend(backend)
        self.experiment, self.backend = experiment, backend
        self.device = native.devices()[0] if device is None else device
        self._feed = Feed(experiment, read_ahead=read_ahead)
        self.program: Program = native.compile(
            experiment,
            example=self._feed.example(),
            device=device,
            strategy=strategy,
            windows_per_dispatch=None if windows_per_dispatch is None else int(windows_per_dispatch),
        )
        self._feed.check(self._feed.example(), self.program.output_shape)
        self._state = self.program.init()
        log = [JsonLog(Path(run_dir))] if run_dir is not None else []
        self._emit = events.Broadcast([*callbacks, *log], experiment=experiment.name, backend=backend)
        self._ledger = Ledger(experiment, self.program, self._feed, self._emit)

    def fit(self, *, updates: int | None = None, epochs: int | None = None) -> FitResult:
        """Train until the run has made `updates` updates or `epochs` epochs, counted from its beginning.

        Raises:
            NonFiniteError: a gradient is not finite and `on_nonfinite="raise"`. The trainer stays usable, in the state
                before that window.
            DataError: a label is out of range, or no window of a whole epoch made an update.
        """
        goal = _check_goal(updates, epochs)
        started, ledger = time.perf_counter(), self._ledger
        per_epoch = self._feed.windows_per_epoch()
        planned = goal if epochs is None else None if per_epoch is None else goal * per_epoch
        where = {"device": self.device, "strategy": self.program.strategy}
        self._emit(events.FitStarted, update=ledger.update, updates=planned, **where)
        try:
            while not self._reached(updates, epochs):
                self._run_next(updates, epochs)
                ledger.read_if_due()
            ledger.read_all()
        except NonFiniteError as error:
            self._go_back(error)
            raise
        finally:
            self._feed.rest()
        seconds = time.perf_counter() - started
        self._emit(events.FitFinished, update=ledger.update, seconds=seconds)
        epoch = self._feed.settled(ledger.update).epoch
        return FitResult(ledger.history, tuple(ledger.skipped), ledger.update, epoch, seconds)

    def evaluate(self, data: Any = None, *, batch_size: int | None = None) -> dict[str, float]:
        """Loss and metrics over `data`, the experiment's `eval_data` unless given; never changes training state.

        Each is the weighted mean over all of the data, so the batch size does not show in the result.
        """
        source, size = _evaluation_source(data, self.experiment), _evaluation_size(batch_size, self.experiment)
        self._ledger.read_all()
        sums = []
        for batch in batches(source, size):
            self._feed.check(batch, self.program.output_shape, source)
            sums.append(self.program.evaluate(self._state, batch))
        total = self.program.read_sums(sums)
        means = {name: _mean(value, total.weights[name]) for name, value in total.values.items()}
        for metric in self.experiment.metrics:
            means[metric.name] = metric.finish(means[metric.name])
        self._emit(events.EvaluationFinished, update=self._ledger.update, metrics=means)
        return means

    def parameters(self) -> dict[str, np.ndarray]:
        """A copy of the parameters, by canonical name and in canonical layout."""
        return dict(self.snapshot().parameters)

    def load_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Replace the parameters by arrays in canonical layout, for example another backend's `parameters()`.

        Names pair up as in `compare`: `layers_0` and `layers.0` are one.

        Raises:
            ParameterMatchError: a name is missing or unknown, or a shape differs.
        """
        arrays = {name: np.asarray(array) for name, array in parameters.items()}
        own = self.snapshot()
        pairs = match_names(shapes_of(arrays), shapes_of(own.parameters), self.experiment.model.rename)
        self.restore(replace(own, parameters={name: arrays[partner] for name, partner in pairs.items()}))

    def gradient_shares(self) -> dict[str, float]:
        """For each parameter the largest share that its gradient's norm has had in the global norm so far."""
        self._ledger.read_all()
        return dict(zip(self.program.parameter_names, self._ledger.gradient_shares.tolist(), strict=True))

    def snapshot(self) -> Snapshot:
        """The training state on the host: parameters, model state, optimizer slots, updates made."""
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

    def _go_back(self, error: NonFiniteError) -> None:
        """Stand where the failed window begins, with a state that is not frozen any more."""
        self._state = self.program.restore(self.program.snapshot(self._state))
        self._feed.position = Position(error.epoch, error.offset)


def _evaluation_source(data: Any, experiment: Experiment) -> Source | Stream:
    if data is not None:
        source, problems = as_source(data), Problems("evaluate")
        experiment.check_fields("the data", source, problems, evaluated=True)
        if problems.found:
            raise DataError(problems.sentences[0])
        return source
    if experiment.eval_data is None:
        raise ConfigurationError(
            "evaluate", ["there is no evaluation data; pass eval_data= to the Experiment or data to evaluate()"]
        )
    return experiment.eval_data


def _evaluation_size(batch_size: int | None, experiment: Experiment) -> int:
    problems = Problems("evaluate")
    if batch_size is not None:
        problems.integer("batch_size", batch_size, minimum=1)
    problems.raise_if_any()
    return int(batch_size or experiment.eval_batch_size or experiment.micro_batch_size)


def _mean(total: float, weight: float) -> float:
    return float(total / weight) if weight > 0 else float("nan")


def _check_arguments(
    experiment: object, callbacks: object, device: object, windows_per_dispatch: object, read_ahead: object
) -> None:
    problems = Problems("Trainer")
    if not isinstance(experiment, Experiment):
        problems.add(f"experiment must be a multibackend.Experiment, got {experiment!r}", wrong_type=True)
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        problems.add(f"callbacks must be a sequence of functions, got {callbacks!r}", wrong_type=True)
    if device is not None and not isinstance(device, str):
        problems.add(f"device must be the name of one of the backend's devices, got {device!r}", wrong_type=True)
    if windows_per_dispatch is not None:
        problems.integer("windows_per_dispatch", windows_per_dispatch, minimum=1)
    if read_ahead is not None:
        problems.boolean("read_ahead", read_ahead)
    problems.raise_if_any()


def _check_goal(updates: Any, epochs: Any) -> int:
    problems = Problems("fit")
    if (updates is None) == (epochs is None):
        problems.add(f"give either updates= or epochs=, got updates={updates!r} and epochs={epochs!r}")
    for name, value in (("updates", updates), ("epochs", epochs)):
        if value is not None:
            problems.integer(name, value, minimum=0)
    problems.raise_if_any()
    return int(updates if updates is not None else epochs)
