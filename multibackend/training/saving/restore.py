"""From a trainer's parts to a run's state and back, with the check that the experiment fits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multibackend.checkpoint import newest_checkpoint, read_checkpoint
from multibackend.checkpoint.contents import parse_name
from multibackend.checkpoint.manifest import MANIFEST
from multibackend.errors import CheckpointError, CheckpointWarning, ParameterMatchError, ResumeError
from multibackend.experiment import AUTO, Experiment
from multibackend.matching.arrays import matching_from
from multibackend.protocol import Backend, Execution, Program
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.training.loop import Loop
from multibackend.training.results import ResultsLog
from multibackend.training.saving.evaluation_state import EvaluationState
from multibackend.training.saving.experiment_description import check_allowed, describe, differences
from multibackend.training.saving.run_state import RunState, from_contents, matched
from multibackend.training.saving.saver import choose_start

__all__ = ["RunParts", "adapted", "compile_alike", "find_checkpoint", "open_run", "put_back", "starting_state", "take"]

# where one of these differs, a window that was begun cannot be finished: it would not be one window
_OF_A_WINDOW = (
    "micro_batch_size",
    "gradient_accumulation_steps",
    "normalize",
    "precision",
    "loss",
    "seed",
    "shuffle",
    "drop_last",
    "data length",
    "data fields",
    "data",
    "dropout",
    "batch_statistics",
)


@dataclass(frozen=True)
class RunParts:
    """What a trainer is made of, as far as its state is concerned."""

    experiment: Experiment
    backend: str
    program: Program
    loop: Loop
    ledger: ResultsLog
    example: Mapping[str, Any]


def take(parts: RunParts, books: EvaluationState) -> RunState:
    """The state of a run, copied to the host; everything handed to the device is waited for."""
    ledger, loop, program = parts.ledger, parts.loop, parts.program
    ledger.read_all()
    rename = parts.experiment.model.rename
    shares = zip(program.info.parameter_names, ledger.gradient_shares.tolist(), strict=True)
    return RunState(
        snapshot=program.snapshot(loop.state),
        position=loop.position,
        partial=loop.partial,
        micro_batches=ledger.micro_batches,
        history=ledger.history,
        skipped=tuple(ledger.skipped),
        idle_examples=ledger.idle_examples,
        gradient_shares=dict(shares),
        backend=parts.backend,
        dropout_layers=tuple(layer_name(path, rename) for path in _layers(program, parts.experiment)),
        experiment=describe(parts.experiment, parts.example),
        books=books,
        kinds=program.info.kinds,
    )


def put_back(parts: RunParts, run: RunState, may_differ: Sequence[str] = ()) -> EvaluationState:
    """Let a run go on from a state; returns its evaluations.

    Raises:
        ResumeError: the experiment does not fit; every difference is listed with both values.
        ConfigurationError: `may_differ` has a name that means nothing.
    """
    here, own = describe(parts.experiment, parts.example), parts.program.snapshot(parts.program.init())
    allowed = check_allowed(may_differ, here)
    found = list(differences(run.experiment, here, allowed).values())
    try:
        run = matched(run, own, matching_from(run.snapshot, run.kinds, own, parts.experiment.model, parts.program))
    except ParameterMatchError as error:
        found.append(f"model: {error}")
    else:
        run = _with_fitting_slots(run, own.optimizer, found, allowed=allowed)
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        raise ResumeError(
            f"the experiment does not fit the checkpoint:{lines}\nGive it the values of the checkpoint, or name what "
            'may differ, for example may_differ=("learning_rate",)',
            found,
        )
    if run.partial is not None:
        changed = [name for name in _OF_A_WINDOW if name in differences(run.experiment, here)]
        if changed:
            warnings.warn(
                f"the window that was open begins anew, because of another {', '.join(changed)}",
                CheckpointWarning,
                stacklevel=4,
            )
            run = replace(run, partial=None)
    _put(parts, run)
    return run.books


def _put(parts: RunParts, run: RunState) -> None:
    ledger, loop, snapshot = parts.ledger, parts.loop, run.snapshot
    loop.restore(snapshot)
    ledger.micro_batches, ledger.idle_examples = run.micro_batches, run.idle_examples
    ledger.skipped = list(run.skipped)
    if run.history.terms == ledger.history.terms:
        ledger.history = run.history
    for index, name in enumerate(parts.program.info.parameter_names):
        ledger.gradient_shares[index] = run.gradient_shares.get(name, 0.0)
    loop.go_on(run.position, run.partial)


def _with_fitting_slots(run: RunState, own: Mapping[str, Any], found: list[str], *, allowed: Sequence[str]) -> RunState:
    """The state without the optimizer's part where another optimizer is allowed; else a difference is entered."""
    saved = run.snapshot.optimizer
    if set(saved) == set(own) or (run.snapshot.update == 0 and not own):
        return run
    if "optimizer" in allowed:
        warnings.warn("the other optimizer begins with a state of its own", CheckpointWarning, stacklevel=5)
        return replace(run, snapshot=replace(run.snapshot, optimizer={}))
    if not any(line.startswith("optimizer:") for line in found):
        found.append(f"optimizer: its state has {sorted(saved)} in the checkpoint, {sorted(own)} here")
    return run


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`: itself, or the newest valid one where `path` is a run's directory.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if parse_name(path.name) is not None or (path / MANIFEST).exists():
        return path
    newest = newest_checkpoint(path)
    if newest is None:
        raise CheckpointError(
            f"there is no valid checkpoint at {path}; give a checkpoint's directory, or that of a run that has saved",
            path=path,
        )
    return newest


def open_run(path: str | Path) -> RunState:
    """The state in a checkpoint, or in the newest valid one of a run's directory; every byte of it verified.

    Raises:
        CheckpointError: there is none, it is damaged, or holds no run.
    """
    found = find_checkpoint(path)
    return replace(from_contents(read_checkpoint(found)), path=found)


def starting_state(run_dir: Path | None, resume: str | RunState) -> RunState | None:
    """What a trainer goes on from; None to begin anew.

    Raises:
        CheckpointError: `resume` does not agree with what is in the directory.
    """
    if isinstance(resume, RunState):
        if run_dir is not None and resume.path is not None and resume.path.resolve().parent.parent != run_dir.resolve():
            choose_start(run_dir, "never")  # the checkpoints of two runs must not meet in one directory
        return resume
    start = None if run_dir is None else choose_start(run_dir, resume)
    return None if start is None else open_run(start)


def compile_alike(
    native: Backend, experiment: Experiment, run: RunState | None, example: Mapping[str, Any], execution: Execution
) -> tuple[Experiment, Program]:
    """The program of an experiment; where a run goes on, one whose dropout layers draw that run's masks."""
    program = native.compile(experiment, example=example, execution=execution)
    same = experiment if run is None else same_masks(experiment, program, run)
    return same, program if same is experiment else native.compile(same, example=example, execution=execution)


def adapted(experiment: Experiment, run: RunState) -> Experiment:
    """The experiment with the micro-batch size that the run has found where it was left open."""
    size = run.experiment.get("micro_batch_size")
    if experiment.micro_batch_size != AUTO or not isinstance(size, int):
        return experiment
    return experiment.replace(micro_batch_size=size, memory_budget=None)


def same_masks(experiment: Experiment, program: Program, run: RunState) -> Experiment:
    """The experiment with dropout layers renamed so that they draw the masks of the run, if they need to be."""
    here = _layers(program, experiment)
    if not here or not run.dropout_layers:
        return experiment
    rename = experiment.model.rename
    if {layer_name(path, rename) for path in here} == set(run.dropout_layers):
        return experiment
    pairs = pair_layers(run.dropout_layers, here, rename)
    new = {path: partner for path, partner in pairs.items() if layer_name(path, rename) != partner}
    return experiment.replace(model=experiment.model.renamed(new)) if new else experiment


def _layers(program: Program, experiment: Experiment) -> tuple[str, ...]:
    return program.info.dropout_layers if experiment.dropout == "portable" else ()
