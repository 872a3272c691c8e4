"""From what was recorded to causes: each finding and each stage meets the formulas that know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.parity.causes.formulas import Difference, aligned
from multibackend.parity.causes.layers import arrival_causes, layer_difference
from multibackend.parity.causes.place import Calls, Idioms, Place
from multibackend.parity.causes.recorded_layers import (
    RecordedLayer,
    Sides,
    Source,
    label,
    sources_before,
    sources_within,
)
from multibackend.parity.causes.sentences import cause_of
from multibackend.parity.causes.stages import layers_of_statistic, loss_term_difference, stage_difference
from multibackend.parity.findings import Cause, Divergence, LayerFinding
from multibackend.parity.locate.evidence import Evidence
from multibackend.protocol.tracing import LayerCall

__all__ = ["diagnose"]

# Many findings are one mistake made in every block; a search may take seconds each.
_MOST_FINDINGS = 16

BothIdioms = tuple[Idioms, Idioms]


def diagnose(
    divergence: Divergence, layers: Sequence[LayerFinding], evidence: Evidence, idioms: BothIdioms = ({}, {})
) -> tuple[Divergence, tuple[LayerFinding, ...]]:
    """Return divergence and findings with their causes; no cause is better than a wrong one.

    Args:
        divergence: the first one.
        layers: every place that is wrong by itself.
        evidence: what was recorded there.
        idioms: how each framework writes things, see `place.Place`.
    """
    findings = list(layers)
    # A stranger's arrays hold anything; a formula that overflows on them is a wrong one.
    with np.errstate(all="ignore"):
        for number, finding in enumerate(findings[:_MOST_FINDINGS]):
            findings[number] = replace(finding, causes=_causes_of_finding(finding, evidence, idioms))
        if divergence.stage != "activations":
            causes = _causes_of_stage(divergence, evidence, idioms)
            return replace(divergence, causes=causes), tuple(findings)
    for finding in findings:
        if (finding.name, finding.place) == (divergence.what, divergence.place):
            return replace(divergence, causes=finding.causes), tuple(findings)
    return replace(divergence, causes=()), tuple(findings)


def _causes_of_finding(finding: LayerFinding, evidence: Evidence, idioms: BothIdioms) -> tuple[Cause, ...]:
    if finding.kind == "loss":
        return _causes(loss_term_difference(finding, evidence), Place(evidence.backends, idioms=idioms))
    sides = _sides(finding, evidence)
    if sides is None or evidence.traces is None:
        return ()
    if finding.kind == "layer":
        difference = layer_difference(sides)
    else:
        difference = arrival_causes(sides, (finding.expected, finding.found), thorough=not finding.follows)
    place = Place(
        evidence.backends,
        finding.name or "the model's outputs",
        (sides[0].call, sides[1].call),
        idioms,
        {call.name: call.kind for call in evidence.traces[0].layers},
        frozenset(source.name for source in sides[0].sources),
    )
    return _causes(difference, place)


def _causes_of_stage(divergence: Divergence, evidence: Evidence, idioms: BothIdioms) -> tuple[Cause, ...]:
    calls: Calls = (None, None)
    if divergence.stage == "model state":
        calls = layers_of_statistic(divergence, evidence)
    place = Place(evidence.backends, divergence.what, calls, idioms)
    return _causes(stage_difference(divergence, evidence), place)


def _causes(difference: Difference | None, place: Place) -> tuple[Cause, ...]:
    if difference is None:
        return ()
    return (cause_of(difference, place),)


def _sides(finding: LayerFinding, evidence: Evidence) -> Sides | None:
    """Both sides of a finding, the other's arrays by the reference's names."""
    if evidence.traces is None or evidence.forced is None or finding.calls is None:
        return None
    reference_layers = evidence.traces[0].layers
    other_layers = evidence.forced.layers
    index = _index(reference_layers, finding.calls[0])
    other_index = _index(other_layers, finding.calls[1])
    if index is None or other_index is None:
        return None
    reference = evidence.steps[0].before
    other = evidence.steps[1].before
    # what leaves a container was made inside it, by calls that came after its own beginning
    inside = finding.kind == "layer" or "at the end of" in finding.place
    sources = sources_within if inside else sources_before
    first = sources(reference_layers, index, reference.parameters)
    second = sources(other_layers, other_index, evidence.bridge.parameters.to_reference(other.parameters))
    # fed with the reference's arrays, partners returned the same, under two names
    partners: dict[str, str] = {}
    for pair in evidence.pairs:
        partners[label(other_layers[pair.other])] = label(reference_layers[pair.reference])
    second = tuple(_as_reference(source, first, partners) for source in second)
    call = reference_layers[index]
    other_call = other_layers[other_index]
    if finding.kind == "layer":
        other_call = _fed(call, other_call)
    return (
        RecordedLayer(call, reference.parameters, reference.model_state, first),
        RecordedLayer(other_call, other.parameters, other.model_state, second),
    )


def _index(layers: Sequence[LayerCall], call: LayerCall) -> int | None:
    """The place of a call in a trace, which holds another object for it if traced anew."""
    for index, layer in enumerate(layers):
        if (layer.name, layer.call) == (call.name, call.call):
            return index
    return None


def _fed(reference: LayerCall, other: LayerCall) -> LayerCall:
    """The other's layer with the inputs that it was fed: the reference's, in its own layout."""
    inputs = list(other.inputs)
    for place, (expected, arrived) in enumerate(zip(reference.inputs, other.inputs, strict=False)):
        if arrived.dtype.kind != expected.dtype.kind:
            continue
        moved = aligned(arrived, expected)
        if moved is not None:
            inputs[place] = moved
    return replace(other, inputs=tuple(inputs))


def _as_reference(source: Source, first: Sequence[Source], names: Mapping[str, str]) -> Source:
    """A source by its partner's name; what a paired layer handed on is the reference's array."""
    name = names.get(source.name)
    if name is None:
        return source
    for partner in first:
        if partner.name == name and partner.array.size == source.array.size:
            return partner
    return replace(source, name=name)
