"""Why a stage outside the model's layers differs: data, loss, gradients, update, statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.experiment import Experiment
from multibackend.losses import CrossEntropy
from multibackend.parity.causes.data import data_difference
from multibackend.parity.causes.formulas import Difference
from multibackend.parity.causes.gradients import gradient_difference
from multibackend.parity.causes.losses import RecordedLoss, loss_difference
from multibackend.parity.causes.place import Calls
from multibackend.parity.causes.states import RecordedStatistic, statistics_difference
from multibackend.parity.causes.update_fits import RecordedUpdates, clip_difference, slot_difference, update_difference
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.evidence import Evidence
from multibackend.parity.locate.rerun import Step
from multibackend.protocol import Snapshot
from multibackend.protocol.tracing import LayerCall, Trace

__all__ = ["layers_of_statistic", "loss_term_difference", "stage_difference"]


def stage_difference(divergence: Divergence, evidence: Evidence) -> Difference | None:
    """Why the two sides part at a stage; None where no formula tells."""
    explain = {
        "data order": _data,
        "loss": loss_term_difference,
        "gradients": _gradients,
        "clip": _clip,
        "update": _update,
        "next update": _update,
        "model state": _model_state,
    }.get(divergence.stage)
    return explain and explain(divergence, evidence)


def _data(divergence: Divergence, evidence: Evidence) -> Difference | None:
    del divergence
    reference, other = evidence.steps
    settings = (_order_settings(evidence.experiments[0]), _order_settings(evidence.experiments[1]))
    return data_difference((_batches(reference), _batches(other)), settings)


def _batches(step: Step) -> list[Arrays]:
    return [batch for batch, _ in step.micro_batches()]


def _order_settings(experiment: Experiment) -> dict[str, Any]:
    return {"shuffle": experiment.shuffle, "seed": experiment.seed, "drop_last": experiment.drop_last}


def loss_term_difference(finding: LayerFinding | Divergence, evidence: Evidence) -> Difference | None:
    """Why a term of the loss differs on equal outputs."""
    if evidence.traces is None or not evidence.traces[0].outputs:
        return None
    # the loss as a whole is explained by its first term
    terms = list(evidence.experiments[0].loss_terms)
    name = finding.name if isinstance(finding, LayerFinding) else finding.what
    term = name.removeprefix("loss/")
    if term not in terms:
        term = terms[0]
    first = _recorded_loss(finding, evidence, term, 0)
    second = _recorded_loss(finding, evidence, term, 1)
    if first is None or second is None:
        return None
    return loss_difference((first, second))


def _recorded_loss(
    finding: LayerFinding | Divergence, evidence: Evidence, name: str, index: int
) -> RecordedLoss | None:
    """One side's loss of the outputs that both have, as the mean that the experiment reports."""
    terms = evidence.experiments[index].loss_terms
    # sides that are described apart may call their one term by two names
    if name not in terms:
        name = next(iter(terms))
    spec = terms[name]
    if spec.scale == 0 or evidence.traces is None:
        return None
    step = evidence.steps[index]
    batches = _batches(step)
    if len(batches) == 1:
        value = float(step.results.terms[0, list(terms).index(name)]) / spec.scale
    else:
        # of several micro-batches each has its part in the loss of the update
        value = finding.values[index] * len(batches) / spec.scale
    recorded = RecordedLoss(evidence.traces[0].outputs[:1], [batches[evidence.micro_batch]], [value])
    if isinstance(spec, CrossEntropy):
        return replace(recorded, smoothings=(spec.label_smoothing,), ignored=(spec.ignore_index,))
    return recorded


def _gradients(divergence: Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None:
        return None
    reference, other = evidence.traces
    return gradient_difference(divergence.what, reference.gradients, evidence.bridge.gradients(other.gradients))


def _clip(divergence: Divergence, evidence: Evidence) -> Difference | None:
    limits = (evidence.experiments[0].max_grad_norm, evidence.experiments[1].max_grad_norm)
    difference = None
    # where one side does not clip by the norm, it may clip in another way, which its update tells
    if not (limits[0] and limits[1]):
        difference = _update(divergence, evidence)
    return difference or clip_difference(divergence.values, limits)


def _update(divergence: Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None or evidence.sides is None or not all(evidence.history):
        return None
    sides = (_recorded_updates(evidence, 0), _recorded_updates(evidence, 1))
    return update_difference(sides, divergence.what) or _slots(divergence.what, evidence, sides)


def _recorded_updates(evidence: Evidence, index: int) -> RecordedUpdates:
    history = evidence.history[index]
    experiment = evidence.experiments[index]
    states = [history[0].before, *(step.after for step in history)]
    return RecordedUpdates(
        [_window_gradients(evidence, index, step) for step in history],
        [_parameters(evidence, index, state) for state in states],
        [step.rate for step in history],
        experiment.max_grad_norm,
        vars(experiment.optimizer),
    )


def _parameters(evidence: Evidence, index: int, state: Snapshot) -> Arrays:
    """A side's parameters by the reference's names."""
    if index == 0:
        return state.parameters
    return evidence.bridge.parameters.to_reference(state.parameters)


def _window_gradients(evidence: Evidence, index: int, step: Step) -> Arrays:
    """The sum over the micro-batches of a window, by the reference's names."""
    assert evidence.sides is not None
    total: dict[str, Array] = {}
    for number, _ in enumerate(step.micro_batches()):
        gradients = evidence.sides[index].trace(step.before, step, number).gradients
        if index:
            gradients = evidence.bridge.gradients(gradients)
        for name, array in gradients.items():
            total[name] = total.get(name, 0.0) + np.asarray(array, np.float64)
    return total


def _slots(name: str, evidence: Evidence, sides: tuple[RecordedUpdates, RecordedUpdates]) -> Difference | None:
    """The optimizer's state of one parameter, slot by slot, where both sides keep the same ones."""
    if any(name not in side.gradients[-1] for side in sides):
        return None
    gradients = [side.clipped(side.gradients[-1][name]) for side in sides]
    steps = [history[-1] for history in evidence.history]
    before = [steps[0].before, evidence.bridge.to_reference(steps[1].before)]
    after = [steps[0].after, evidence.bridge.to_reference(steps[1].after)]
    for slot in steps[0].after.optimizer:
        if any(slot not in step.before.optimizer or slot not in step.after.optimizer for step in steps):
            return None
        recorded = []
        for old, new, gradient in zip(before, after, gradients, strict=True):
            old_array = old.optimizer.get(slot, {}).get(name)
            new_array = new.optimizer.get(slot, {}).get(name)
            # a slot that is not one array for each parameter, such as a counter, is no average
            if old_array is not None and new_array is not None and new_array.shape == gradient.shape:
                recorded.append((old_array, new_array, gradient))
        if len(recorded) < len(sides):
            continue
        difference = slot_difference(recorded)
        if difference is not None:
            return difference
    return None


def layers_of_statistic(divergence: Divergence, evidence: Evidence) -> Calls:
    """The layer on each side that keeps the statistic at which two runs part."""
    if evidence.traces is None:
        return None, None
    reference, other = evidence.traces
    return _keeper(reference, divergence.what), _keeper(other, divergence.partner)


def _keeper(trace: Trace, statistic: str) -> LayerCall | None:
    """The first call of the layer whose statistic this is, by its name in the model state."""
    name = statistic.rpartition(".")[0]
    return next((call for call in trace.layers if call.name == name), None)


def _model_state(divergence: Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None:
        return None
    names = (divergence.what, divergence.partner or divergence.what)
    calls = layers_of_statistic(divergence, evidence)
    statistic = divergence.what.rpartition(".")[2]
    sides = []
    for name, call, trace, step in zip(names, calls, evidence.traces, evidence.steps, strict=True):
        before = step.before.model_state
        if call is None or not call.inputs or name not in before or name not in trace.model_state:
            return None
        after = np.asarray(trace.model_state[name])
        sides.append(RecordedStatistic(np.asarray(before[name], np.float64), after, call.inputs[0], statistic))
    return statistics_difference((sides[0], sides[1]))
