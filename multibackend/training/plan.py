"""What a trainer is about to run: the experiment with every open choice made, on a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multibackend.core.validation import Problems, shown
from multibackend.data.fields import as_array
from multibackend.errors import ConfigurationTypeError, DataError, ParameterMatchError
from multibackend.experiment import AUTO, NATIVE, Experiment
from multibackend.protocol import Backend, Execution, Program, Snapshot
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.protocol.registry import load_backend
from multibackend.training.auto_batch_size import MicroBatchChoice, memory_errors, resolve
from multibackend.training.early_stopping import EarlyStopping
from multibackend.training.input.feed import Feed
from multibackend.training.saving.saved_run import SavedRun
from multibackend.training.stop_condition import StopCondition

__all__ = ["Plan", "as_parameters", "check_arguments", "check_fit", "check_snapshot", "mask_names"]


def check_arguments(
    experiment: object,
    callbacks: object,
    device: object,
    windows_per_dispatch: object,
    read_ahead: object,
    record_gradient_norms: object,
    may_differ: Any,
) -> None:
    """Check what `Trainer` is made of; raises `ConfigurationError` with every problem."""
    problems = Problems("Trainer")
    problems.instance("experiment", experiment, Experiment, "a multibackend.Experiment")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        problem = f"callbacks must be a sequence of functions, got {callbacks!r}"
        problems.add(problem, wrong_type=True)
    if device is not None and (not isinstance(device, str) or not device):
        problem = f"device must be the name of one of the backend's devices, got {device!r}"
        problems.add(problem, wrong_type=True)
    if windows_per_dispatch is not None:
        problems.integer("windows_per_dispatch", windows_per_dispatch, minimum=1)
    if read_ahead is not None:
        problems.boolean("read_ahead", read_ahead)
    problems.boolean("record_gradient_norms", record_gradient_norms)
    is_names = isinstance(may_differ, Sequence) and not isinstance(may_differ, str)
    if not is_names or not all(isinstance(name, str) for name in may_differ):
        what = "may_differ must be a sequence of names, such as ['seed']"
        problems.add(f"{what}, got {shown(may_differ)}", wrong_type=True)
    problems.raise_if_any()


def check_fit(
    limits: Mapping[str, object],
    evaluate_ema: object,
    keep_best: object,
    early_stopping: object,
    progress: object = None,
) -> StopCondition:
    """Check what `Trainer.fit` is given; raises `ConfigurationError` with every problem."""
    problems = Problems("fit")
    stop = StopCondition.checked(problems, **limits)
    problems.boolean("evaluate_ema", evaluate_ema)
    problems.boolean("keep_best", keep_best)
    if progress is not None:
        problems.boolean("progress", progress)
    if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
        problem = f"early_stopping must be an EarlyStopping(...), got {early_stopping!r}"
        problems.add(problem, wrong_type=True)
    problems.raise_if_any()
    return stop


def check_snapshot(snapshot: Any) -> None:
    """Raise `ConfigurationError` unless this can be what `Trainer.restore` goes on from."""
    problems = Problems("Trainer.restore")
    if problems.instance("snapshot", snapshot, Snapshot, "a snapshot, of Trainer.snapshot()"):
        problems.integer("snapshot.update", snapshot.update, minimum=0)
    problems.raise_if_any()


def as_parameters(parameters: object) -> dict[str, np.ndarray]:
    """Return what `Trainer.load_parameters` was given as arrays.

    Raises:
        ConfigurationError: it is no mapping.
        ParameterMatchError: a value in it is no array of real numbers.
    """
    if not isinstance(parameters, Mapping):
        what = "parameters must be a mapping from names to arrays, of Trainer.parameters()"
        raise ConfigurationTypeError("Trainer.load_parameters", [f"{what}, got {shown(parameters)}"])
    arrays = {}
    for name, value in parameters.items():
        try:
            arrays[name] = as_array(str(name), value)
        except DataError as error:
            raise ParameterMatchError(
                f"the parameter {name!r} cannot be loaded from {shown(value)}: {error}"
            ) from error
    return arrays


@dataclass(frozen=True)
class Plan:
    """An experiment ready to be compiled.

    Attributes:
        experiment: with a micro-batch size that is a number.
        backend: runs it.
        execution: how windows are executed.
        feed: reads its training data.
        saved: the run that it goes on from; None to begin anew.
        micro_batch: how `micro_batch_size="auto"` was decided; None where a number was given.
    """

    experiment: Experiment
    backend: Backend
    execution: Execution
    feed: Feed
    saved: SavedRun | None
    micro_batch: MicroBatchChoice | None

    @property
    def initial(self) -> str:
        """Where the run's first parameters came from, as `Experiment(initial=...)` says it; of a saved run then."""
        if self.saved is not None:
            return str(self.saved.experiment.get("initial", NATIVE))
        return str(self.experiment.initial)

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        backend: str,
        execution: Execution,
        saved: SavedRun | None,
        *,
        read_ahead: bool | None,
    ) -> Plan:
        """Make every choice that an experiment leaves open."""
        native = load_backend(backend)
        # before the search for a size, which would cost trials and might find another one
        if saved is not None:
            experiment = _with_saved_batch_size(experiment, saved)
        experiment, micro_batch = resolve(experiment, native, execution)
        feed = Feed(experiment, read_ahead=read_ahead)
        return cls(experiment, native, execution, feed, saved, micro_batch)

    def compile(self) -> tuple[Plan, Program]:
        """Make the experiment executable and check that its data fit the model.

        The plan that comes back differs where dropout layers were renamed so that they draw the
        masks of a saved run.
        """
        example = self.feed.example()
        with memory_errors(self.backend, self.experiment):
            backend = self.backend
            program = backend.compile(self.experiment, example=example, execution=self.execution)
            plan = self._with_saved_masks(program)
            # compiled again, because masks are part of the program
            if plan is not self:
                program = backend.compile(plan.experiment, example=example, execution=self.execution)
            # labels and targets are held against the model's outputs before the first update
            self.feed.check(example, program.info)
        return plan, program

    def _with_saved_masks(self, program: Program) -> Plan:
        """This plan, or one whose dropout layers are named as the saved run's are."""
        layers = mask_names(self.experiment, program)
        if self.saved is None or not layers or not self.saved.dropout_layers:
            return self
        # the same names in another order draw the same masks: a mask depends on the name alone
        rename = self.experiment.model.rename
        if {layer_name(path, rename) for path in layers} == set(self.saved.dropout_layers):
            return self
        pairs = pair_layers(self.saved.dropout_layers, layers, rename).items()
        renamed = {path: partner for path, partner in pairs if layer_name(path, rename) != partner}
        if not renamed:
            return self
        model = self.experiment.model.renamed(renamed)
        return replace(self, experiment=self.experiment.replace(model=model))


def mask_names(experiment: Experiment, program: Program) -> tuple[str, ...]:
    """The dropout layers that draw portable masks; none where dropout is native."""
    if experiment.dropout != "portable":
        return ()
    return program.info.dropout_layers


def _with_saved_batch_size(experiment: Experiment, saved: SavedRun) -> Experiment:
    """Take the micro-batch size that the saved run had found: another one is another run."""
    size = saved.experiment.get("micro_batch_size")
    if experiment.micro_batch_size != AUTO or not isinstance(size, int):
        return experiment
    return experiment.replace(micro_batch_size=size, memory_budget=None)
