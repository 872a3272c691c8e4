"""Which call of one model is which of another: by parameters, by name, by place between pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from multibackend.core.names import normalised
from multibackend.protocol.tracing import LayerCall, Trace

__all__ = ["LayerPair", "begin_and_return", "enclosing_calls", "finished_order", "pair_layers"]

# Parts of class names of layers without parameters; the first that occurs counts.
_KINDS = ("drop", "pool", "gelu", "silu", "relu", "tanh", "sigmoid", "softmax", "act", "flatten", "identity")

Below = Mapping[str, frozenset[str]]  # {layer: parameters at or below it, by the reference's names}


@dataclass(frozen=True)
class LayerPair:
    """Calls that mean the same: their indices in the traces of the reference and of the other.

    `leaf`: one of them called no other module, so nothing inside can be compared.
    """

    reference: int
    other: int
    leaf: bool


def pair_layers(reference: Trace, other: Trace, pairs: Iterable[tuple[str, str]]) -> tuple[LayerPair, ...]:
    """Pair the calls of two traces, in the reference's order. What has no partner is left out.

    Layers are partners where the parameters below them are; several with the same parameters by
    their names and their nesting. What has no parameters goes by name, style aside, else by its
    order among its kind between two neighbours that are paired.

    Args:
        pairs: (parameter of the reference, parameter of the other), for every link.
    """
    own_names: dict[str, set[str]] = {}
    partner_names: dict[str, set[str]] = {}  # of a fused one, several
    for name, partner in pairs:
        own_names[name] = {name}
        partner_names.setdefault(partner, set()).add(name)
    partners = _Partners(_first_calls(reference), _first_calls(other))
    # the surest sign first: what it pairs is no longer there for the next
    partners.pair_by_parameters(_below(reference, own_names), _below(other, partner_names))
    partners.pair_by_name()
    partners.pair_by_place()
    index = {(call.name, call.call): place for place, call in enumerate(other.layers)}
    result = []
    for place, call in enumerate(reference.layers):
        partner = partners.names.get(call.name)
        if partner is not None and (partner, call.call) in index:
            partner_place = index[partner, call.call]
            result.append(LayerPair(place, partner_place, call.leaf or other.layers[partner_place].leaf))
    return tuple(result)


def begin_and_return(layers: Sequence[LayerCall]) -> Iterator[tuple[int, bool]]:
    """Yield (index of a call, whether it returns) as each call begins and returns."""
    open_calls: list[int] = []
    for index, call in enumerate(layers):
        # a trace does not record returns: a call is over when the next one is no deeper
        while open_calls and layers[open_calls[-1]].depth >= call.depth:
            yield open_calls.pop(), True
        open_calls.append(index)
        yield index, False
    for index in reversed(open_calls):
        yield index, True


def finished_order(layers: Sequence[LayerCall]) -> list[int]:
    """Return the indices of calls in the order in which they returned."""
    return [index for index, returned in begin_and_return(layers) if returned]


def enclosing_calls(layers: Sequence[LayerCall], index: int) -> list[int]:
    """Return the indices of the calls inside which a call was made, the innermost first."""
    enclosing = []
    depth = layers[index].depth
    for place in range(index - 1, -1, -1):
        if layers[place].depth < depth:
            enclosing.append(place)
            depth = layers[place].depth
    return enclosing


def _first_calls(trace: Trace) -> dict[str, LayerCall]:
    return {call.name: call for call in reversed(trace.layers) if call.call == 0}


def _below(trace: Trace, reference_names: Mapping[str, set[str]]) -> Below:
    """Find the parameters at or below each layer that has any.

    Args:
        reference_names: {parameter of this model: its names in the reference}.
    """
    below: dict[str, frozenset[str]] = {}
    for call in trace.layers:
        prefix = f"{call.name}." if call.name else ""
        inside = {name for name in reference_names if name.startswith(prefix)}
        inside |= set(call.parameters) & reference_names.keys()  # tied: named after another
        if inside:
            below[call.name] = frozenset().union(*(reference_names[name] for name in inside))
    return below


class _Partners:
    """The layers that are paired so far.

    Attributes:
        reference, other: the first call of each layer, by name.
        names: {layer of the reference: layer of the other}.
    """

    def __init__(self, reference: Mapping[str, LayerCall], other: Mapping[str, LayerCall]) -> None:
        self.reference = reference
        self.other = other
        self.names: dict[str, str] = {}

    def pair_by_parameters(self, reference: Below, other: Below) -> None:
        """Pair the layers above the same parameters, which are several where containers nest."""
        for parameters in dict.fromkeys(reference.values()):
            first = _outermost_first(reference, parameters, self.reference)
            second = _outermost_first(other, parameters, self.other)
            if len(first) == len(second):
                self.names.update(zip(first, second, strict=True))
                continue
            # one model has a wrapper more: by full name, by last part, then the ends of the nest
            for style in (normalised, _last_part):
                for name in self._free(first):
                    for partner in self._free_others(second):
                        if style(partner) == style(name):
                            self._pair_if_comparable([name], [partner])
                            break
            for end in (slice(-1, None), slice(0, 1)):
                self._pair_if_comparable(self._free(first)[end], self._free_others(second)[end])

    def pair_by_name(self) -> None:
        """Pair layers of one name; the whole models are partners in any case."""
        namesakes = {normalised(name): name for name in self._free_others(self.other)}
        for name in self._free(self.reference):
            if normalised(name) in namesakes:
                self._pair_if_comparable([name], [namesakes[normalised(name)]])
        if "" not in self.names and "" not in self.names.values():
            self.names[""] = ""

    def pair_by_place(self) -> None:
        """Pair what has no parameters by its order among its kind between paired neighbours."""
        first = [name for name, call in self.reference.items() if call.leaf]
        second = [name for name, call in self.other.items() if call.leaf]
        places = []
        for place, name in enumerate(first):
            if self.names.get(name) in second:
                places.append((place, second.index(self.names[name])))
        begin = (-1, -1)
        for end in [*places, (len(first), len(second))]:
            # an anchor that stands before the last one in the other model bounds no stretch of it
            if end[1] > begin[1]:
                self._pair_by_kind(first[begin[0] + 1 : end[0]], second[begin[1] + 1 : end[1]])
                begin = end

    def _pair_by_kind(self, first: Sequence[str], second: Sequence[str]) -> None:
        """Pair two stretches of layers kind by kind, where they have as many of it."""
        free = self._free(first)
        free_others = self._free_others(second)
        for kind in _KINDS:
            some = [name for name in free if _kind(self.reference[name]) == kind]
            others = [name for name in free_others if _kind(self.other[name]) == kind]
            if len(some) == len(others):
                self._pair_if_comparable(some, others)

    def _free(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.names]

    def _free_others(self, names: Iterable[str]) -> list[str]:
        taken = set(self.names.values())
        return [name for name in names if name not in taken]

    def _pair_if_comparable(self, first: Sequence[str], second: Sequence[str]) -> None:
        for name, partner in zip(first, second, strict=False):
            if _comparable(self.reference[name], self.other[partner]):
                self.names[name] = partner


def _outermost_first(below: Below, parameters: frozenset[str], calls: Mapping[str, LayerCall]) -> list[str]:
    """Return the layers above just these parameters, from the outermost to the innermost."""
    names = [name for name in below if below[name] == parameters]
    return sorted(names, key=lambda name: calls[name].depth)


def _last_part(name: str) -> str:
    return normalised(name).rpartition(".")[2]


def _kind(call: LayerCall) -> str:
    for kind in _KINDS:
        if kind in call.kind.lower():
            return kind
    return ""


def _comparable(first: LayerCall, second: LayerCall) -> bool:
    """Whether the first outputs may be the same array in two layouts."""
    if not first.outputs or not second.outputs:
        return not first.outputs and not second.outputs
    shape = first.outputs[0].shape
    partner_shape = second.outputs[0].shape
    if math.prod(shape) == math.prod(partner_shape):
        return True
    if len(shape) != len(partner_shape):
        return False
    return all(a == b or 1 in (a, b) for a, b in zip(shape, partner_shape, strict=True))
