"""From a run to what is saved of it and back, with the check that the experiment fits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multibackend.checkpoint import newest_checkpoint, read_checkpoint
from multibackend.checkpoint.contents import parse_name
from multibackend.checkpoint.manifest import MANIFEST
from multibackend.errors import CheckpointError, CheckpointWarning, ParameterMatchError, ResumeError
from multibackend.matching.arrays import matching_from
from multibackend.protocol import Program
from multibackend.protocol.dropout_masks import layer_name
from multibackend.protocol.values import is_native_slot
from multibackend.training.loop import Loop
from multibackend.training.plan import Plan, mask_names
from multibackend.training.run_state import RunState
from multibackend.training.saving.experiment_description import check_allowed, describe, differences
from multibackend.training.saving.fitting import array_problems
from multibackend.training.saving.saved_run import SavedRun, from_contents, in_names_of
from multibackend.training.saving.saver import choose_start

__all__ = ["capture", "find_checkpoint", "open_run", "restore", "starting_run"]

# where one of these differs, a window that has begun cannot be finished: it would not be one window
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


def capture(plan: Plan, program: Program, loop: Loop, state: RunState) -> SavedRun:
    """Copy a run's state to the host. Everything handed to the device must have been read."""
    experiment = plan.experiment
    shares = zip(program.info.parameter_names, state.gradient_shares.tolist(), strict=True)
    rename = experiment.model.rename
    return SavedRun(
        snapshot=program.snapshot(state.program_state),
        position=state.position,
        partial=loop.partial_window(),
        micro_batches=state.micro_batches,
        history=state.history,
        skipped=tuple(state.skipped),
        idle_examples=state.idle_examples,
        gradient_shares=dict(shares),
        backend=plan.backend.name,
        dropout_layers=tuple(layer_name(path, rename) for path in mask_names(experiment, program)),
        experiment={**describe(experiment, plan.feed.example()), "initial": plan.initial},
        evaluations=state.evaluations,
        kinds=program.info.kinds,
    )


def restore(
    plan: Plan,
    program: Program,
    loop: Loop,
    state: RunState,
    saved: SavedRun,
    may_differ: Sequence[str] = (),
) -> None:
    """Let a run go on from what was saved.

    Raises:
        ResumeError: the experiment does not fit; every difference is listed with both values.
        ConfigurationError: `may_differ` has a name that means nothing.
    """
    description = describe(plan.experiment, plan.feed.example())
    allowed = check_allowed(may_differ, description)
    problems = list(differences(saved.experiment, description, allowed).values())
    # of a state of its own, because what one framework alone counts is not saved and begins anew
    initial = program.snapshot(program.init())
    try:
        model = plan.experiment.model
        matching = matching_from(saved.snapshot, saved.kinds, initial, model, program)
        saved = in_names_of(saved, initial, matching)
    except ParameterMatchError as error:
        problems.append(f"model: {error}")
    else:
        is_written_here = saved.backend == plan.backend.name
        saved = _with_fitting_slots(
            saved, initial.optimizer, problems, allowed=allowed, is_written_here=is_written_here
        )
        kept = saved
        if _of_another_window(saved, description):
            kept = replace(saved, partial=None)
        problems += array_problems(
            kept,
            initial,
            terms=len(plan.experiment.loss_terms),
            is_averaged=_keeps_average(saved, description, allowed),
            is_written_here=is_written_here,
        )
    if problems:
        lines = "".join(f"\n  - {line}" for line in problems)
        raise ResumeError(
            f"the experiment does not fit the checkpoint:{lines}\nGive it the values of the "
            'checkpoint, or name what may differ, for example may_differ=("learning_rate",)',
            problems,
        )
    saved = _with_fitting_window(saved, description)
    snapshot = saved.snapshot
    loop.restore(replace(snapshot, model_state={**initial.model_state, **snapshot.model_state}))
    state.micro_batches = saved.micro_batches
    state.idle_examples = saved.idle_examples
    state.skipped = list(saved.skipped)
    state.evaluations = saved.evaluations
    # another loss, where that may differ, begins another history
    if saved.history.terms == state.history.terms:
        state.history = saved.history
    for index, name in enumerate(program.info.parameter_names):
        state.gradient_shares[index] = saved.gradient_shares.get(name, 0.0)
    position = saved.position
    if plan.feed.examples is not None:  # of shorter data, where these may differ, the epoch has ended
        position = replace(position, offset=min(position.offset, plan.feed.examples))
    loop.resume_at(position, saved.partial)


def _keeps_average(saved: SavedRun, description: Mapping[str, Any], allowed: Sequence[str]) -> bool:
    """Whether there must be a moving average: the run kept one, and goes on with it."""
    is_kept = saved.experiment.get("ema_decay") is not None and description["ema_decay"] is not None
    return is_kept and "ema_decay" not in allowed


def _with_fitting_slots(
    saved: SavedRun, initial: Mapping[str, Any], problems: list[str], *, allowed: Sequence[str], is_written_here: bool
) -> SavedRun:
    """Leave the optimizer's part out where another optimizer is allowed; else enter a problem."""
    slots = saved.snapshot.optimizer
    differing = set(slots) ^ set(initial)
    if not differing or (saved.snapshot.update == 0 and not initial):
        return saved
    # a framework's own optimizer has no state before its first update
    if is_written_here and all(is_native_slot(slot) for slot in differing):
        return saved
    if "optimizer" in allowed:
        message = "the other optimizer begins with a state of its own"
        warnings.warn(message, CheckpointWarning, stacklevel=5)
        return replace(saved, snapshot=replace(saved.snapshot, optimizer={}))
    if not any(line.startswith("optimizer:") for line in problems):
        problem = f"its state has {sorted(slots)} in the checkpoint, {sorted(initial)} here"
        problems.append(f"optimizer: {problem}")
    return saved


def _with_fitting_window(saved: SavedRun, description: Mapping[str, Any]) -> SavedRun:
    """Leave a begun window out, with a warning, where something differs that it depends on."""
    changed = _of_another_window(saved, description)
    if saved.partial is None or not changed:
        return saved
    message = f"the window that was open begins anew, because of another {', '.join(changed)}"
    warnings.warn(message, CheckpointWarning, stacklevel=5)
    return replace(saved, partial=None)


def _of_another_window(saved: SavedRun, description: Mapping[str, Any]) -> list[str]:
    """Return what differs that a begun window depends on."""
    changes = differences(saved.experiment, description)
    return [name for name in _OF_A_WINDOW if name in changes]


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


def open_run(path: str | Path) -> SavedRun:
    """Read and verify the run in a checkpoint, or in the newest valid one of a run's directory.

    Raises:
        CheckpointError: there is none, it is damaged, or holds no run.
    """
    checkpoint = find_checkpoint(path)
    return replace(from_contents(read_checkpoint(checkpoint)), path=checkpoint)


def starting_run(run_dir: Path | None, resume: str | SavedRun, *, is_saved: bool) -> SavedRun | None:
    """Read what a trainer goes on from; None to begin anew.

    A run that is not to be saved has no use for the checkpoints of its directory.

    Raises:
        CheckpointError: `resume` does not agree with what is in the directory.
    """
    if isinstance(resume, SavedRun):
        if run_dir is None or not is_saved or resume.path is None:
            return resume
        if resume.path.resolve().parent.parent != run_dir.resolve():
            choose_start(run_dir, "never")  # two runs must not meet in one directory
        return resume
    if run_dir is None or not is_saved:
        return None
    start = choose_start(run_dir, resume)
    if start is None:
        return None
    return open_run(start)
