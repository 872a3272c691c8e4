"""When a run is saved, and how a new one goes on from what is there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from multibackend.checkpoint import CheckpointStore, list_checkpoints, newest_checkpoint, verify
from multibackend.checkpoint.retention import Retention
from multibackend.core.validation import Problems
from multibackend.errors import CheckpointError, CheckpointWarning, ConfigurationError
from multibackend.training.saving.saved_run import SavedRun, to_contents
from multibackend.training.stop_condition import StopCondition

__all__ = ["DEFAULT_RULES", "RESUME", "Checkpointing", "Place", "Saver", "check_resuming", "choose_start"]

RESUME = ("never", "auto", "must")


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When a run with a directory is saved, besides the end of `fit`, and which checkpoints stay.

    Args:
        every: save after every so many updates of the run.
        every_micro_batches: save after every so many micro-batches, also in the middle of a window;
            for windows that take long.
        every_seconds: save where the last save is older than this; None for never.
            Between windows only.
        keep_last: the newest so many stay; None keeps all.
        keep_best: the best so many by `best_metric` stay too, of those saved right
            after an evaluation.
        best_metric, best_mode: "loss" or the name of a metric, and which end of it is best,
            "min" or "max".
        keep_every: those of updates that are multiples of it stay for good.
        background: write while training goes on; the state is copied at once. False waits
            for the device.

    Raises:
        ConfigurationError: an argument is wrong; every problem is listed.

    >>> Checkpointing(every=100, keep_last=2, keep_every=1000).every
    100
    """

    every: int | None = None
    every_micro_batches: int | None = None
    every_seconds: float | None = 600.0
    keep_last: int | None = 3
    keep_best: int = 0
    best_metric: str | None = None
    best_mode: str = "min"
    keep_every: int | None = None
    background: bool = True

    def __post_init__(self) -> None:
        problems = Problems("Checkpointing")
        for name in ("every", "every_micro_batches"):
            if getattr(self, name) is not None:
                problems.integer(name, getattr(self, name), minimum=1)
        if self.every_seconds is not None:
            problems.number("every_seconds", self.every_seconds, minimum=0.0)
        problems.boolean("background", self.background)
        try:
            self.retention()
        except ConfigurationError as error:  # its problems are listed with ours
            for sentence in error.problems:
                problems.add(sentence)
        problems.raise_if_any()

    def retention(self) -> Retention:
        """Which checkpoints stay."""
        metric = self.best_metric or None
        if self.keep_best and metric is None:
            metric = "loss"
        return Retention(
            keep_last=self.keep_last,
            keep_best=self.keep_best,
            best_metric=metric,
            best_mode=self.best_mode,
            keep_every=self.keep_every,
        )


DEFAULT_RULES = Checkpointing()


def check_resuming(run_dir: Path | None, checkpointing: object, resume: object) -> None:
    """What `Trainer` was given; raises `ConfigurationError` with every problem."""
    problems = Problems("Trainer")
    if checkpointing is not None and not isinstance(checkpointing, Checkpointing):
        problem = f"checkpointing must be a multibackend.Checkpointing(...), got {checkpointing!r}"
        problems.add(problem, wrong_type=True)
    is_word = not isinstance(resume, SavedRun) and problems.choice("resume", resume, RESUME)
    if is_word and resume != "never":
        if run_dir is None:
            needs = "run_dir=, the directory that holds the checkpoints"
            problems.add(f"resume={resume!r} needs {needs}")
        elif checkpointing is None:
            problems.add(f"resume={resume!r} needs checkpointing, got checkpointing=None")
    problems.raise_if_any()


class Place(NamedTuple):
    """How far a run is."""

    update: int
    micro_batches: int
    evaluations: int


def choose_start(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint from which a run in this directory goes on; None to begin anew.

    Raises:
        CheckpointError: "must", and there is no valid one; or "never", and there are some.
    """
    checkpoints = list_checkpoints(run_dir)
    newest = None
    if checkpoints:
        if resume == "never":
            raise CheckpointError(
                f"{run_dir} holds checkpoints of an earlier run, the newest {checkpoints[-1].name}; "
                'go on from it with resume="auto" (on the command line --resume auto), '
                "or choose another directory",
                path=run_dir,
            )
        newest = newest_checkpoint(run_dir)
    if newest is None and resume == "must":
        raise CheckpointError(
            f'resume="must", and there is no valid checkpoint in {run_dir}{_fault_of_newest(checkpoints)}; '
            'resume="auto" begins anew where there is none',
            path=run_dir,
        )
    if newest is None and checkpoints:
        message = f"no checkpoint in {run_dir} is valid: the run begins anew"
        warnings.warn(message, CheckpointWarning, stacklevel=5)
    return newest


def _fault_of_newest(checkpoints: Sequence[Path]) -> str:
    """What is wrong with the newest of some checkpoints, all of which are damaged; "" where there are none."""
    if not checkpoints:
        return ""
    try:
        verify(checkpoints[-1])
    except CheckpointError as error:
        return f" (the newest, {checkpoints[-1].name}: {error})"
    return ""


class Saver:
    """Saves one run into its directory, which it holds while `fit` runs.

    Args:
        run_dir: the directory.
        rules: when, and what stays.
        start: the checkpoint that the run went on from.
        chosen: whether somebody chose it, who may go back behind newer ones on purpose.
    """

    def __init__(self, run_dir: Path, rules: Checkpointing, start: Path | None, *, chosen: bool = False) -> None:
        self.run_dir = run_dir
        self._rules = rules
        self._known: set[str] = set()  # checkpoints that this run may stand beside
        if start is not None:
            self._known.add(start.name)
            if chosen and start.resolve().parent.parent == run_dir.resolve():
                self._known.update(path.name for path in list_checkpoints(run_dir))
        self._store: CheckpointStore | None = None
        self._saved_place: Place | None = None
        self._saved_at = 0.0
        self._due_update = math.inf
        self._due_micro_batch = math.inf

    @classmethod
    def of(
        cls, run_dir: Path | None, rules: Checkpointing | None, saved: SavedRun | None, *, chosen: bool
    ) -> Saver | None:
        """The saver of a run; None where it has no directory, or is not to be saved."""
        if run_dir is None or rules is None:
            return None
        start = None
        if saved is not None:
            start = saved.path
        return cls(run_dir, rules, start, chosen=chosen)

    @property
    def holds_directory(self) -> bool:
        """Whether no other run may write there."""
        return self._store is not None and self._store.is_locked

    def open(self, update: int, micro_batches: int) -> None:
        """Take the directory, and plan the first save after this point.

        Raises:
            CheckpointError: another run writes there, or has written since.
        """
        rules = self._rules.retention()
        self._store = CheckpointStore(
            self.run_dir,
            keep_last=rules.keep_last,
            keep_best=rules.keep_best,
            best_metric=rules.best_metric,
            best_mode=rules.best_mode,
            keep_every=rules.keep_every,
        )
        self._saved_at = time.monotonic()
        self._plan(update, micro_batches)
        checkpoints = self._store.list()
        if not checkpoints or checkpoints[-1].name in self._known:
            return
        newest = self._store.newest()  # what is damaged may lie above ours
        if newest is not None and newest.name not in self._known:
            self.close()
            raise CheckpointError(
                f"{newest} was written by another run since this one began; "
                'go on from it with a new trainer, resume="auto"',
                path=self.run_dir,
            )

    def before(self, stop: StopCondition) -> StopCondition:
        """Where a run ends, or the next save on the way to it."""
        return stop.before(updates=self._due_update, micro_batches=self._due_micro_batch)

    def may_be_due(self, updates: int, micro_batches: int) -> bool:
        """Whether a save may be due after so many updates and micro-batches.

        Raises:
            CheckpointError: a save in the background has failed.
        """
        self._check()
        seconds = self._rules.every_seconds
        late = seconds is not None and time.monotonic() - self._saved_at >= seconds
        return late or updates >= self._due_update or micro_batches >= self._due_micro_batch

    def save(
        self, place: Place, capture: Callable[[], SavedRun], metric: float | None = None, *, last: bool = False
    ) -> None:
        """Save the run at a place, unless that was done; the last time wait for the disk."""
        assert self._store is not None
        self._saved_at = time.monotonic()
        self._plan(place.update, place.micro_batches)
        if place == self._saved_place:
            self._check(wait=last)
            return
        contents = to_contents(capture())
        self._saved_place = None  # until the store has taken it
        background = self._rules.background and not last
        handle = self._store.save(contents, metric=metric, background=background)
        self._saved_place = place
        self._known.add(handle.path.name)

    def metric_of(self, metrics: Mapping[str, Any]) -> float | None:
        """What `keep_best` goes by, of an evaluation."""
        name = self._rules.retention().best_metric
        if name is None or name not in metrics:
            return None
        return float(metrics[name])

    def close(self) -> None:
        """Wait for the save that is under way, and let go of the directory.

        Raises:
            CheckpointError: that save has failed.
        """
        store = self._store
        self._store = None
        if store is not None:
            store.close()

    def _check(self, *, wait: bool = False) -> None:
        assert self._store is not None
        try:
            self._store.check(wait=wait)
        except CheckpointError:
            self._saved_place = None
            raise

    def _plan(self, update: int, micro_batches: int) -> None:
        self._due_update = _next_multiple(update, self._rules.every)
        self._due_micro_batch = _next_multiple(micro_batches, self._rules.every_micro_batches)


def _next_multiple(number: int, step: int | None) -> float:
    """The smallest multiple of `step` above a number; infinite without a step."""
    if step is None:
        return math.inf
    return number - number % step + step
