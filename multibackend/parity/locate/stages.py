"""One update of two runs from the same state, stage by stage, up to the first that differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.parity.findings import Divergence
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.evidence import Evidence, Examination
from multibackend.parity.locate.examined_update import ExaminedUpdate
from multibackend.parity.locate.fits import worst_element
from multibackend.parity.locate.passes import first_of_the_passes
from multibackend.parity.locate.rerun import Runner, Step
from multibackend.parity.locate.statistics import differs_by_bias
from multibackend.protocol import Snapshot

__all__ = ["examine"]


def examine(sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step]) -> Examination:
    """Hold one update of both sides against each other, from the reference's state before it.

    Args:
        sides: the reference and the other.
        bridge: between them.
        steps: the windows that were run, of the same update.
    """
    divergence = _data_order(steps)
    if divergence is not None:
        # other data cannot be run on from one state, so there is nothing more to examine
        return Examination(divergence, evidence=Evidence.of(sides, bridge, steps))
    update = ExaminedUpdate(sides, bridge, steps)
    stages = (_initial_parameters, first_of_the_passes, _window_loss, _clip, _applied, _parameters, _model_state)
    for stage in stages:
        divergence = stage(update)
        if divergence is not None:
            break
    return Examination(divergence, update.layers, update.evidence, update.notes)


def _data_order(steps: tuple[Step, Step]) -> Divergence | None:
    """Find the first difference in the data; only fields that both sides have are looked at."""
    number = steps[0].before.update + 1
    first_batches = [batch for batch, _ in steps[0].micro_batches()]
    second_batches = [batch for batch, _ in steps[1].micro_batches()]
    counts = (float(len(first_batches)), float(len(second_batches)))
    if counts[0] != counts[1]:
        return Divergence("data order", number, "micro-batches per update", counts, relative_difference(*counts))
    for first, second in zip(first_batches, second_batches, strict=True):
        for name, a in first.items():
            b = second.get(name)
            if b is None or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                continue
            if a.shape != b.shape:
                lengths = (float(len(a)), float(len(b)))
                return Divergence("data order", number, f"the shape of {name}", lengths, 1.0)
            return Divergence("data order", number, name, worst_element(a, b), relative_difference(a, b))
    return None


def _initial_parameters(update: ExaminedUpdate) -> Divergence | None:
    """Look whether what was moved to the other side has arrived."""
    program = update.other.program
    arrived = update.bridge.to_reference(program.snapshot(program.restore(update.other_start))).parameters
    sent = {name: array for name, array in update.start.parameters.items() if name in arrived}
    # moving rounds nothing, so what was sent stands for its own perturbed twin
    return update.first_divergence("initial parameters", sent, arrived, sent, order=list(sent))


def _window_loss(update: ExaminedUpdate) -> Divergence | None:
    """Look at the loss of the window: its weights may differ where no micro-batch's sum does."""
    first, second, nearby = (step.results.terms[0] for step in (*update.steps, update.perturbed))
    return update.first_of_the_terms(first, second, nearby)


def _clip(update: ExaminedUpdate) -> Divergence | None:
    """Look at the global norm, and at the factor by which the gradient was scaled."""
    first, second, nearby = (float(step.results.grad_norm[0]) for step in (*update.steps, update.perturbed))
    rounding = relative_difference(first, nearby)
    bound = update.bound(rounding)
    difference = relative_difference(first, second)
    if difference > bound:
        return update.divergence("clip", "grad_norm", (first, second), difference, rounding)
    factor = _clip_factor(first, update.reference.experiment.max_grad_norm)
    other_factor = _clip_factor(second, update.other.experiment.max_grad_norm)
    difference = relative_difference(factor, other_factor)
    if difference > bound:
        return update.divergence("clip", "clip factor", (factor, other_factor), difference, rounding)
    return None


def _clip_factor(norm: float, limit: float | None) -> float:
    return 1.0 if limit is None or norm <= limit else limit / norm


def _applied(update: ExaminedUpdate) -> Divergence | None:
    """Look whether both sides made an update."""
    first, second = (float(not step.results.applied[0]) for step in update.steps)
    if first == second:
        return None
    return update.divergence("update", "number of skipped windows", (first, second), 1.0)


def _parameters(update: ExaminedUpdate) -> Divergence | None:
    """Look how far each parameter moved, then at the optimizer's slots.

    Moves rather than values: a step is small beside the parameter, and a wrong one would
    hide behind it.
    """
    step, other_step = update.steps
    after = update.bridge.to_reference(other_step.after)
    moves = _moves(step.before, step.after)
    other_moves = _moves(update.bridge.to_reference(update.other_start), after)
    nearby_moves = _moves(update.perturbed_start, update.perturbed.after)
    common = {name: move for name, move in moves.items() if name in other_moves}
    skip = update.undetermined
    order = list(common)
    divergence = update.first_divergence("update", common, other_moves, nearby_moves, order=order, skip=skip)
    return divergence or _slots(update, step.after, after, order=order, skip=skip)


def _moves(before: Snapshot, after: Snapshot) -> Mapping[str, np.ndarray]:
    return {name: array - before.parameters[name] for name, array in after.parameters.items()}


def _slots(
    update: ExaminedUpdate, reference: Snapshot, other: Snapshot, *, order: Sequence[str], skip: Collection[str]
) -> Divergence | None:
    """Look at what the optimizer keeps, as far as both keep it."""
    for slot, arrays in reference.optimizer.items():
        other_arrays = other.optimizer.get(slot, {})
        nearby = update.perturbed.after.optimizer[slot]
        common = {name: arrays[name] for name in order if name in arrays and name in other_arrays}
        divergence = update.first_divergence("update", common, other_arrays, nearby, order=list(common), skip=skip)
        if divergence is not None:
            return replace(divergence, remark=f"It is the optimizer's {slot!r} that differs.")
    return None


def _model_state(update: ExaminedUpdate) -> Divergence | None:
    """Look at statistics by name; a biased variance on one side is a note, not a divergence.

    Each framework has its own definition of it, and training does not see which.
    """
    step, other_step = update.steps
    after = update.bridge.to_reference(other_step.after).model_state
    common = {name: a for name, a in step.after.model_state.items() if name in after and a.dtype.kind == "f"}
    biased = set()
    for name, array in common.items():
        count = differs_by_bias(array, after[name], step.before.model_state[name])
        if count is not None and relative_difference(array, after[name]) > update.bound(0.0):
            biased.add(name)
            update.notes.append(
                f"{name}: one side keeps the unbiased variance of a micro-batch, the other the biased one, a factor of "
                f"{count / (count - 1):.6g} for {count} values; it shows in evaluation only"
            )
    nearby = update.perturbed.after.model_state
    return update.first_divergence("model state", common, after, nearby, order=list(common), skip=biased)
