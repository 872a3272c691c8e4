"""The stages within a micro-batch: activations, loss and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from multibackend.core.differences import relative_difference
from multibackend.parity.findings import Divergence
from multibackend.parity.locate.activations import (
    CONTAINER_INPUT,
    OUTPUT,
    Fits,
    Observation,
    hints_of,
    observe,
    roundings,
)
from multibackend.parity.locate.examined_update import ExaminedUpdate
from multibackend.parity.locate.fits import find_fit, worst_element
from multibackend.parity.locate.layer_by_layer import ForcedLayers, run_layer_by_layer
from multibackend.parity.locate.layers import pair_layers
from multibackend.parity.locate.wrong_places import WrongPlaces
from multibackend.protocol.tracing import Trace

__all__ = ["first_of_the_passes"]

_MOST_MICRO_BATCHES = 16  # each is traced three times at least, every activation kept


def first_of_the_passes(update: ExaminedUpdate) -> Divergence | None:
    """Look at activations, loss and gradients of the micro-batches in turn."""
    if not (update.reference.traceable and update.other.traceable):
        return None
    count = len(list(update.steps[0].micro_batches()))
    for index in range(min(count, _MOST_MICRO_BATCHES)):
        divergence = _micro_batch(update, index)
        if divergence is not None:
            return divergence
    return None


def _micro_batch(update: ExaminedUpdate, index: int) -> Divergence | None:
    step, other_step = update.steps
    reference = update.reference.trace(update.start, step, index)
    nearby = update.reference.trace(update.perturbed_start, step, index)
    other = update.other.trace(update.other_start, other_step, index)
    pairs = pair_layers(reference, other, update.bridge.links)
    update.evidence = replace(update.evidence, micro_batch=index, traces=(reference, other), pairs=pairs)
    return (
        _activations(update, reference, other, nearby)
        or update.first_of_the_terms(reference.terms, other.terms, nearby.terms)
        or _gradients(update, reference, other, nearby)
    )


def _activations(update: ExaminedUpdate, reference: Trace, other: Trace, nearby: Trace) -> Divergence | None:
    pairs = update.evidence.pairs
    index = update.evidence.micro_batch
    rounding = roundings(reference, nearby)
    fits: Fits = {}
    hints = hints_of(reference, update.bridge.parameters)
    observations = observe(reference, other, pairs, hints, fits)
    # what enters a container is no more than what enters its first layers
    arrays = [array for array in observations if array.key.role != CONTAINER_INPUT]
    wrong = [array for array in arrays if array.difference > update.bound(rounding(array.key))]
    if not wrong and _same_end(update, reference, other):
        return None

    def trace_other(forced: ForcedLayers) -> Trace:
        return update.other.trace(update.other_start, update.steps[1], index, gradients=False, forced=forced)

    forced, observations = run_layer_by_layer(reference, other, pairs, hints, fits, trace_other)
    findings = WrongPlaces(reference, forced, observations, rounding, update.bound).findings(update.terms)
    number = update.evidence.update
    update.layers = tuple(replace(finding, update=number, micro_batch=index) for finding in findings)
    update.evidence = replace(update.evidence, forced=forced)
    for finding in update.layers:
        if finding.kind != "loss":
            divergence = update.divergence(
                "activations", finding.name, finding.values, finding.difference, finding.rounding
            )
            return replace(divergence, partner=finding.partner, place=finding.place)
    # Fed layer by layer nothing is wrong: the first difference of the plain pass has to do.
    return _of_observation(update, wrong[0], rounding(wrong[0].key)) if wrong else None


def _of_observation(update: ExaminedUpdate, observation: Observation, rounding: float) -> Divergence:
    assert update.evidence.traces is not None
    reference, other = update.evidence.traces
    values = worst_element(observation.expected, observation.actual)
    name = reference.layers[observation.pair.reference].name
    divergence = update.divergence("activations", name, values, observation.difference, rounding)
    place = "" if observation.key.role == OUTPUT else "what arrives there"
    return replace(divergence, partner=other.layers[observation.pair.other].name, place=place)


def _same_end(update: ExaminedUpdate, reference: Trace, other: Trace) -> bool:
    """Whether the loss sees and makes the same: code after the last layer is in no observation."""
    if reference.outputs and other.outputs:
        fit = find_fit(reference.outputs[0], other.outputs[0])
        if fit is not None and fit.difference > update.bound(0.0):
            return False
    return relative_difference(reference.terms, other.terms) <= update.bound(0.0)


def _gradients(update: ExaminedUpdate, reference: Trace, other: Trace, nearby: Trace) -> Divergence | None:
    gradients = update.bridge.gradients(other.gradients)
    common = {name: array for name, array in reference.gradients.items() if name in gradients}
    return update.first_divergence(
        "gradients",
        common,
        gradients,
        nearby.gradients,
        order=_backward_order(reference, list(common)),
        skip=update.undetermined,
    )


def _backward_order(trace: Trace, names: Sequence[str]) -> list[str]:
    """Sort parameters as a backward pass comes to their layers: a wrong one spoils the later."""
    last: dict[str, int] = {}
    for place, call in enumerate(trace.layers):
        last |= dict.fromkeys(call.parameters, place)
    return sorted(names, key=lambda name: -last.get(name, -1))
