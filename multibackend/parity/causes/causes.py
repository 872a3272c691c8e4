"""From what a comparison recorded to causes: each finding and each stage is handed to the formulas that know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend.parity.causes.data import data_difference
from multibackend.parity.causes.gradients import gradient_difference
from multibackend.parity.causes.laws import Difference, aligned
from multibackend.parity.causes.layers import arrival_causes, layer_difference
from multibackend.parity.causes.losses import LossSide, loss_difference
from multibackend.parity.causes.sides import Side, Source, sources_before, sources_within
from multibackend.parity.causes.states import StatisticsSide, statistics_difference
from multibackend.parity.causes.updates import UpdateSide, clip_difference, slot_difference, update_difference
from multibackend.parity.causes.words import Place, cause_of
from multibackend.parity.findings import Cause, Divergence, LayerFinding
from multibackend.parity.locate.evidence import Evidence
from multibackend.parity.locate.rerun import Step
from multibackend.protocol.tracing import LayerCall

__all__ = ["diagnose"]

_MOST_FINDINGS = 16

Idioms = tuple[Mapping[str, str], Mapping[str, str]]


def diagnose(
    divergence: Divergence, layers: Sequence[LayerFinding], evidence: Evidence, idioms: Idioms = ({}, {})
) -> tuple[Divergence, tuple[LayerFinding, ...]]:
    """The divergence and the findings with their causes; no cause is better than a wrong one.

    Args:
        divergence: the first one.
        layers: every place that is wrong by itself.
        evidence: what was recorded there.
        idioms: how each framework writes things, see `words.Place`.
    """
    told = tuple(
        replace(finding, causes=_tried(_of_finding, finding, evidence, idioms)) if number < _MOST_FINDINGS else finding
        for number, finding in enumerate(layers)
    )
    if divergence.stage == "activations":
        own = next((f.causes for f in told if f.name == divergence.what and f.place == divergence.place), ())
        return replace(divergence, causes=own), told
    return replace(divergence, causes=_tried(_of_stage, divergence, evidence, idioms)), told


def _tried(look: Callable[..., tuple[Cause, ...]], *arguments: Any) -> tuple[Cause, ...]:
    """The causes; none where a formula cannot take the recorded arrays, which are a stranger's and may be anything."""
    try:
        with np.errstate(all="ignore"):
            return look(*arguments)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, np.linalg.LinAlgError):
        return ()


def _of_finding(finding: LayerFinding, evidence: Evidence, idioms: Idioms) -> tuple[Cause, ...]:
    if finding.kind == "loss":
        return _caused(_loss(finding, evidence), Place(evidence.backends, idioms=idioms))
    sides = _sides(finding, evidence)
    if sides is None:
        return ()
    if finding.kind == "layer":
        found = layer_difference(sides)
    else:
        found = arrival_causes(sides, (finding.expected, finding.found), thorough=not finding.follows)
    assert evidence.traces is not None
    place = Place(
        evidence.backends,
        finding.name or "the model's outputs",
        (sides[0].call, sides[1].call),
        idioms,
        {call.name: call.kind for call in evidence.traces[0].layers},
        frozenset(source.name for source in sides[0].sources),
    )
    return _caused(found, place)


def _caused(found: Difference | None, place: Place) -> tuple[Cause, ...]:
    return () if found is None else (cause_of(found, place),)


def _sides(finding: LayerFinding, evidence: Evidence) -> tuple[Side, Side] | None:
    """Both sides of a finding; the other's arrays under the reference's names, as it was fed with the reference's."""
    if evidence.traces is None or evidence.forced is None or finding.calls is None:
        return None
    here, there = evidence.traces[0].layers, evidence.forced.layers
    indices = _index(here, finding.calls[0]), _index(there, finding.calls[1])
    if indices[0] is None or indices[1] is None:
        return None
    before = evidence.steps[0].before, evidence.steps[1].before
    sources = sources_within if finding.kind == "layer" or "at the end of" in finding.place else sources_before
    first = sources(here, indices[0], before[0].parameters)
    second = sources(there, indices[1], evidence.bridge.parameters.to_reference(before[1].parameters))
    names = {_label(there[pair.other]): _label(here[pair.reference]) for pair in evidence.pairs}
    return (
        Side(evidence.backends[0], here[indices[0]], before[0].parameters, before[0].model_state, first),
        Side(
            evidence.backends[1],
            _fed(here[indices[0]], there[indices[1]]) if finding.kind == "layer" else there[indices[1]],
            before[1].parameters,
            before[1].model_state,
            tuple(_as_reference(source, first, names) for source in second),
        ),
    )


def _index(layers: Sequence[LayerCall], wanted: LayerCall) -> int | None:
    return next((i for i, call in enumerate(layers) if (call.name, call.call) == (wanted.name, wanted.call)), None)


def _label(call: LayerCall) -> str:
    name = call.name or "the model"
    return name if call.call == 0 else f"{name} (call {call.call + 1})"


def _fed(reference: LayerCall, other: LayerCall) -> LayerCall:
    """The other's layer with the inputs that it was fed: the reference's, in its own layout."""
    inputs = list(other.inputs)
    for place, (expected, arrived) in enumerate(zip(reference.inputs, other.inputs, strict=False)):
        moved = aligned(arrived, expected) if arrived.dtype.kind == expected.dtype.kind else None
        inputs[place] = arrived if moved is None else moved
    return replace(other, inputs=tuple(inputs))


def _as_reference(source: Source, first: Sequence[Source], names: Mapping[str, str]) -> Source:
    """A source by its partner's name; what a paired layer handed on is the reference's array."""
    name = names.get(source.name)
    if name is None:
        return source
    partner = next((own for own in first if own.name == name), None)
    if partner is None or partner.array.size != source.array.size:
        return replace(source, name=name)
    return replace(partner, inputs=source.inputs)


def _of_stage(divergence: Divergence, evidence: Evidence, idioms: Idioms) -> tuple[Cause, ...]:
    stages = {
        "data order": _data,
        "loss": _loss,
        "gradients": _gradients,
        "clip": _clip,
        "update": _update,
        "next update": _update,
        "model state": _model_state,
    }
    look = stages.get(divergence.stage)
    calls: tuple[LayerCall | None, LayerCall | None] = (None, None)
    if divergence.stage == "model state" and evidence.traces is not None:
        calls = _owners(divergence, evidence)
    found = None if look is None else look(divergence, evidence)
    return _caused(found, Place(evidence.backends, divergence.what, calls, idioms))


def _data(divergence: Divergence, evidence: Evidence) -> Difference | None:
    del divergence
    first, second = ([batch for batch, _ in step.micro_batches()] for step in evidence.steps)
    settings = [{name: getattr(one, name) for name in ("shuffle", "seed", "drop_last")} for one in evidence.experiments]
    return data_difference((first, second), (settings[0], settings[1]))


def _loss(finding: LayerFinding | Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None:
        return None
    terms = list(evidence.experiments[0].loss_terms)
    name = finding.name if isinstance(finding, LayerFinding) else finding.what
    term = next((t for t in terms if name in (t, f"loss/{t}")), terms[0])
    first, second = (_loss_side(finding, evidence, term, index) for index in (0, 1))
    return loss_difference((first, second))


def _loss_side(finding: LayerFinding | Divergence, evidence: Evidence, term: str, index: int) -> LossSide:
    """One side's loss of the outputs that both have, as the mean that the experiment reports."""
    terms, step = evidence.experiments[index].loss_terms, evidence.steps[index]
    batches = [batch for batch, _ in step.micro_batches()]
    spec, place = terms.get(term, next(iter(terms.values()))), list(terms).index(term) if term in terms else 0
    whole = float(step.results.terms[0, place]) / spec.scale
    # of several micro-batches each has its share in the loss of the update
    value = whole if len(batches) == 1 else finding.values[index] * len(batches) / spec.scale
    told = getattr(spec, "label_smoothing", None), getattr(spec, "ignore_index", None)
    smoothings, ignored = (() if one is None else (one,) for one in told)
    assert evidence.traces is not None
    return LossSide(evidence.traces[0].outputs[:1], [batches[evidence.micro_batch]], [value], smoothings, ignored)


def _gradients(divergence: Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None:
        return None
    first, second = evidence.traces[0].gradients, evidence.bridge.gradients(evidence.traces[1].gradients)
    return gradient_difference(divergence.what, first, second)


def _clip(divergence: Divergence, evidence: Evidence) -> Difference | None:
    first, second = (experiment.max_grad_norm for experiment in evidence.experiments)
    found = None if first and second else _update(divergence, evidence)
    return found or clip_difference(divergence.values, (first, second))


def _update(divergence: Divergence, evidence: Evidence) -> Difference | None:
    sides = []
    for index, history in enumerate(evidence.history):
        if not history or evidence.traces is None or evidence.sides is None:
            return None
        states = [history[0].before, *(step.after for step in history)]
        sides.append(
            UpdateSide(
                [_window_gradients(evidence, index, step) for step in history],
                [_named(evidence, index, state.parameters) for state in states],
                [step.rate for step in history],
                evidence.experiments[index].max_grad_norm,
                evidence.experiments[index].optimizer.__dict__,
            )
        )
    found = update_difference((sides[0], sides[1]), divergence.what)
    return _slots(divergence.what, evidence, sides) if found is None else found


def _slots(name: str, evidence: Evidence, sides: Sequence[UpdateSide]) -> Difference | None:
    """The optimizer's state of one parameter, slot by slot, where both sides keep the same ones."""
    states = [(history[-1].before, history[-1].after) for history in evidence.history]
    for slot in states[0][1].optimizer:
        found = []
        for index, (before, after) in enumerate(states):
            if slot not in after.optimizer or slot not in before.optimizer:
                return None
            try:
                old, new = (_named(evidence, index, state.optimizer[slot]).get(name) for state in (before, after))
            except KeyError:  # a slot that is not one array for each parameter
                break
            gradient = sides[index].gradients[-1].get(name)
            if old is not None and new is not None and gradient is not None and new.shape == gradient.shape:
                found.append((old, new, sides[index].clipped(gradient)))
        difference = slot_difference(found) if len(found) == len(states) else None
        if difference is not None:
            return difference
    return None


def _named(evidence: Evidence, index: int, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A side's arrays by the reference's names."""
    return evidence.bridge.parameters.to_reference(arrays) if index else arrays


def _window_gradients(evidence: Evidence, index: int, step: Step) -> Mapping[str, np.ndarray]:
    """The sum over the micro-batches of a window, by the reference's names."""
    total: dict[str, np.ndarray] = {}
    assert evidence.sides is not None
    for number, _ in enumerate(step.micro_batches()):
        trace = evidence.sides[index].trace(step.before, step, number)
        for name, array in (evidence.bridge.gradients(trace.gradients) if index else trace.gradients).items():
            total[name] = total[name] + array if name in total else np.asarray(array, np.float64)
    return total


def _owners(divergence: Divergence, evidence: Evidence) -> tuple[LayerCall | None, LayerCall | None]:
    assert evidence.traces is not None
    names = divergence.what.rpartition(".")[0], divergence.partner.rpartition(".")[0]
    found = [
        next((call for call in trace.layers if call.name == name), None)
        for trace, name in zip(evidence.traces, names, strict=True)
    ]
    return found[0], found[1]


def _model_state(divergence: Divergence, evidence: Evidence) -> Difference | None:
    if evidence.traces is None:
        return None
    calls, last = _owners(divergence, evidence), divergence.what.rpartition(".")[2]
    sides = []
    for index, name in enumerate((divergence.what, divergence.partner or divergence.what)):
        call, trace = calls[index], evidence.traces[index]
        before = evidence.steps[index].before.model_state
        if call is None or not call.inputs or name not in before or name not in trace.model_state:
            return None
        after = np.asarray(trace.model_state[name])
        sides.append(StatisticsSide(np.asarray(before[name], np.float64), after, call.inputs[0], last))
    return statistics_difference((sides[0], sides[1]))
