"""Which places of a model are wrong by themselves, read from a pass that was fed layer by layer.

A layer that makes something else of right inputs is wrong, and so is a place between layers at
which something else arrives although all layers before were right: what the model computes there in
code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.parity.findings import LayerFinding
from multibackend.parity.locate.activations import CONTAINER_INPUT, INPUT, OUTPUT, ArrayKey, Observation
from multibackend.parity.locate.fits import GOOD, find_fit, worst_element
from multibackend.parity.locate.layers import enclosing_calls, finished_order
from multibackend.protocol.tracing import LayerCall, Trace

__all__ = ["WrongPlaces"]

AT_THE_END = "at the end of"  # read in LayerFinding.place also by who explains a finding


class WrongPlaces:
    """Reads a pass of the second model whose layers were fed and followed by the reference's arrays.

    Args:
        reference, forced: the reference's pass, and that one.
        observations: their arrays.
        rounding: the difference that rounding alone makes of an array.
        bound: the difference up to which nothing is said, given that.
    """

    def __init__(
        self,
        reference: Trace,
        forced: Trace,
        observations: Sequence[Observation],
        rounding: Callable[[ArrayKey], float],
        bound: Callable[[float], float],
    ) -> None:
        self.reference = reference
        self.forced = forced
        self.layers = reference.layers
        self.observations = observations
        self.rounding = rounding
        self.bound = bound
        self.pairs = {observation.key.call: observation.pair for observation in observations}
        self.finished = [index for index in finished_order(self.layers) if index in self.pairs]

    def findings(self, terms: Sequence[str]) -> tuple[LayerFinding, ...]:
        """Return every place that is wrong by itself, in order; `terms` name those of the loss."""
        findings: list[LayerFinding] = []
        told: set[tuple[int, str]] = set()  # of several wrong inputs of a layer the first is enough
        for observation in self.observations:
            place = (observation.key.call, observation.key.role)
            if place[1] != CONTAINER_INPUT and place not in told and self._is_wrong(observation):
                told.add(place)
                findings.append(self._finding(observation))
        order = {(call.name, call.call): index for index, call in enumerate(self.layers)}
        for finding in self._other_sizes():
            findings.insert(_position(findings, finding, order), finding)
        return (*_without_echoes(findings), *self._wrong_terms(terms))

    def _is_wrong(self, observation: Observation) -> bool:
        return observation.difference > self.bound(self.rounding(observation.key))

    def _calls(self, observation: Observation) -> tuple[LayerCall, LayerCall]:
        return self.layers[observation.pair.reference], self.forced.layers[observation.pair.other]

    def _finding(self, observation: Observation) -> LayerFinding:
        call, partner = self._calls(observation)
        if observation.key.role == INPUT:
            container, place = self._before_layer(observation.key.call)
        elif observation.pair.leaf:
            container, place = self._innermost_container(observation.key.call), ""
        else:
            container, place = call.name, self._end_of_container(observation.key.call)
        return LayerFinding(
            kind="wiring" if place else "layer",
            name=call.name,
            partner=partner.name,
            container=container,
            place=place,
            difference=observation.difference,
            rounding=self.rounding(observation.key),
            values=worst_element(observation.expected, observation.actual),
            expected=observation.expected,
            found=observation.actual,
            calls=(call, partner),
            before=self._finished_calls(observation, container),
        )

    def _innermost_container(self, index: int) -> str:
        for outer in self._paired_around(index):
            return self.layers[outer].name
        return ""

    def _paired_around(self, index: int) -> list[int]:
        return [outer for outer in enclosing_calls(self.layers, index) if outer in self.pairs]

    def _end_of_container(self, index: int) -> str:
        """Say what is wrong with a container's output when everything inside was right."""
        inside = [done for done in self._finished_before_return(index) if done > index]
        after = f"after {self.layers[inside[-1]].name}, " if inside else ""
        return f"{after}{AT_THE_END} {self._name(index)}"

    def _before_layer(self, index: int) -> tuple[str, str]:
        """Return the container in which something else arrives, and the place in words."""
        earlier = [done for done in self.finished if self._returned(done, index)]
        container = self._container_of_arrival(index, earlier)
        inside = f", inside {container}" if container else ""
        begin = self.layers[earlier[-1]].name if earlier else "the model's inputs"
        return container, f"between {begin} and {self._name(index)}{inside}"

    def _container_of_arrival(self, index: int, earlier: Sequence[int]) -> str:
        """Find the innermost module in which an array went wrong.

        What entered it was right, or it holds the layer before, whose output was the reference's.
        """
        sound = set()
        for observation in self.observations:
            if observation.key.role == CONTAINER_INPUT and not self._is_wrong(observation):
                sound.add(observation.key.call)
        if earlier:
            sound.update(enclosing_calls(self.layers, earlier[-1]))
        for outer in self._paired_around(index):
            if outer in sound:
                return self.layers[outer].name
        return ""

    def _name(self, index: int) -> str:
        return self.layers[index].name or "the model"

    def _returned(self, index: int, start: int) -> bool:
        """Whether a call had returned when another began."""
        return index < start and index not in enclosing_calls(self.layers, start)

    def _finished_before_return(self, index: int) -> list[int]:
        return self.finished[: self.finished.index(index)]

    def _finished_calls(self, observation: Observation, container: str) -> tuple[tuple[LayerCall, LayerCall], ...]:
        """Return the paired calls inside a container that had returned by then."""
        index = observation.key.call
        if observation.key.role == INPUT:
            finished = [done for done in self.finished if self._returned(done, index)]
        else:
            finished = self._finished_before_return(index)
            if not self.layers[index].leaf:
                finished = [done for done in finished if done > index]
        result = []
        for done in finished:
            names = [self.layers[outer].name for outer in enclosing_calls(self.layers, done)]
            if container in names:
                result.append((self.layers[done], self.forced.layers[self.pairs[done].other]))
        return tuple(result)

    def _other_sizes(self) -> list[LayerFinding]:
        """Find layers that make arrays of another size of right inputs: another stride or padding.

        No observation is made of such outputs, for they can not be laid side by side.
        """
        findings = []
        for observation in self.observations:
            call, partner = self._calls(observation)
            if observation.key.role != INPUT or observation.key.position or self._is_wrong(observation):
                continue
            if not call.parameters or not call.outputs or not partner.outputs:
                continue
            expected = call.outputs[0]
            actual = partner.outputs[0]
            if expected.size != actual.size:
                around = enclosing_calls(self.layers, observation.key.call)
                finding = LayerFinding(
                    kind="layer",
                    name=call.name,
                    partner=partner.name,
                    container=self.layers[around[0]].name if around else "",
                    place=f"which makes {list(expected.shape)} here and {list(actual.shape)} there",
                    difference=1.0,
                    rounding=None,
                    values=(float(expected.size), float(actual.size)),
                    expected=expected,
                    found=actual,
                    calls=(call, partner),
                )
                findings.append(finding)
        return findings

    def _wrong_terms(self, names: Sequence[str]) -> list[LayerFinding]:
        """Find terms of the loss that differ although the model's outputs were given."""
        if self.reference.outputs and self.forced.outputs:
            fit = find_fit(self.reference.outputs[0], self.forced.outputs[0])
            if fit is None or fit.difference > self.bound(self.rounding(ArrayKey(0, OUTPUT, 0))):
                return []
        if len(self.reference.terms) != len(self.forced.terms):
            return []
        findings = []
        for index, name in enumerate(names):
            expected = self.reference.terms[index : index + 1]
            actual = self.forced.terms[index : index + 1]
            difference = relative_difference(expected, actual)
            # rounding is measured of arrays, not of terms, and the losses were given the
            # same outputs
            if difference > self.bound(0.0):
                values = (float(expected[0]), float(actual[0]))
                findings.append(
                    LayerFinding("loss", name, name, "", "", difference, None, values, expected, actual, None)
                )
        return findings


def _position(findings: Sequence[LayerFinding], finding: LayerFinding, order: dict[tuple[str, int], int]) -> int:
    """Find where a finding belongs: before the first whose layer begins, or container ends, later."""

    def index(finding: LayerFinding) -> int:
        assert finding.calls is not None
        return order[finding.calls[0].name, finding.calls[0].call]

    for position, later in enumerate(findings):
        if index(later) > index(finding) or AT_THE_END in later.place:
            return position
    return len(findings)


def _without_echoes(findings: Sequence[LayerFinding]) -> list[LayerFinding]:
    """Leave out what only repeats an earlier finding.

    A wrong array in a residual stream shows again wherever the stream goes, past every layer that
    was fed. Where the same difference is merely added again it is left out; where it may be, the
    finding says so.
    """
    result: list[LayerFinding] = []
    for finding in findings:
        earlier = []
        if finding.kind == "wiring":
            earlier = [candidate for candidate in result if candidate.kind == "wiring"]
        if any(_same_gap(candidate, finding) for candidate in earlier):
            continue
        sources = [candidate.name for candidate in earlier if candidate.container in ("", finding.container)]
        result.append(replace(finding, follows=next(iter(sources), finding.follows)))
    return result


def _same_gap(first: LayerFinding, second: LayerFinding) -> bool:
    first_gap = np.asarray(first.found, np.float64) - np.asarray(first.expected, np.float64)
    second_gap = np.asarray(second.found, np.float64) - np.asarray(second.expected, np.float64)
    return first_gap.shape == second_gap.shape and relative_difference(first_gap, second_gap) <= GOOD
