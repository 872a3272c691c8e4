"""Which call of one model is which of another: by the parameters, by name, by place between those that are paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.names import normalised
from multibackend.protocol.tracing import LayerCall, Trace

__all__ = ["LayerPair", "finished_order", "innermost", "pair_layers"]

_KINDS = ("drop", "pool", "gelu", "silu", "relu", "tanh", "sigmoid", "softmax", "act", "flatten", "identity")


@dataclass(frozen=True)
class LayerPair:
    """Calls that mean the same: their indices in the traces of the reference and of the other model.

    `leaf`: one of them called no other module, so nothing inside can be compared.
    """

    reference: int
    other: int
    leaf: bool


def pair_layers(reference: Trace, other: Trace, pairs: Iterable[tuple[str, str]]) -> tuple[LayerPair, ...]:
    """Pair the calls of two traces, in the order of the reference's. What has no partner is left out.

    Layers are partners where the parameters below them are; several with the same parameters by their names and their
    nesting. What has no parameters goes by name, style aside, else by its order among its kind between two neighbours
    that are paired.

    Args:
        pairs: (parameter of the reference, parameter of the other), for every link.
    """
    links = list(pairs)
    first, second = _first_calls(reference), _first_calls(other)
    names = _by_parameters(
        _below(reference, {name: {name} for name, _ in links}),
        _below(other, _partners(links)),
        (first, second),
    )
    _by_name(first, second, names)
    _by_place(first, second, names)
    index = {(call.name, call.call): place for place, call in enumerate(other.layers)}
    found = []
    for place, call in enumerate(reference.layers):
        partner = index.get((names.get(call.name, "\0"), call.call))
        if partner is not None:
            found.append(LayerPair(place, partner, call.leaf or other.layers[partner].leaf))
    return tuple(found)


def finished_order(layers: Sequence[LayerCall]) -> list[int]:
    """The indices of calls in the order in which they returned."""
    order: list[int] = []
    began: list[int] = []
    for index, call in enumerate(layers):
        while began and layers[began[-1]].depth >= call.depth:
            order.append(began.pop())
        began.append(index)
    return [*order, *reversed(began)]


def innermost(layers: Sequence[LayerCall], index: int) -> list[int]:
    """The indices of the calls inside which a call was made, the innermost first."""
    found, depth = [], layers[index].depth
    for place in range(index - 1, -1, -1):
        if layers[place].depth < depth:
            found.append(place)
            depth = layers[place].depth
    return found


def _first_calls(trace: Trace) -> dict[str, LayerCall]:
    return {call.name: call for call in reversed(trace.layers) if call.call == 0}


def _partners(links: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    """{parameter of the other: its partners}."""
    found: dict[str, set[str]] = {}
    for name, partner in links:
        found.setdefault(partner, set()).add(name)
    return found


def _below(trace: Trace, known: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    """{layer: the parameters at or below it, by the reference's names}, where there are any."""
    found: dict[str, frozenset[str]] = {}
    for call in trace.layers:
        prefix = f"{call.name}." if call.name else ""
        own = {name for name in known if name.startswith(prefix)} | (set(call.parameters) & known.keys())
        if own:
            found[call.name] = frozenset().union(*(known[name] for name in own))
    return found


def _by_parameters(
    reference: Mapping[str, frozenset[str]],
    other: Mapping[str, frozenset[str]],
    calls: tuple[Mapping[str, LayerCall], Mapping[str, LayerCall]],
) -> dict[str, str]:
    names: dict[str, str] = {}
    for below in dict.fromkeys(reference.values()):
        here = sorted((name for name in reference if reference[name] == below), key=lambda n: calls[0][n].depth)
        there = sorted((name for name in other if other[name] == below), key=lambda n: calls[1][n].depth)
        if len(here) == len(there):
            names.update(zip(here, there, strict=True))
            continue
        for style in (normalised, lambda name: normalised(name).rpartition(".")[2]):
            for name in [name for name in here if name not in names]:
                partner = next((p for p in there if style(p) == style(name) and p not in names.values()), None)
                if partner is not None and _comparable(calls[0][name], calls[1][partner]):
                    names[name] = partner
        for end in (-1, 0):  # the innermost, then the outermost
            rest = [name for name in here if name not in names], [p for p in there if p not in names.values()]
            if all(rest) and _comparable(calls[0][rest[0][end]], calls[1][rest[1][end]]):
                names[rest[0][end]] = rest[1][end]
    return names


def _by_name(first: Mapping[str, LayerCall], second: Mapping[str, LayerCall], names: dict[str, str]) -> None:
    taken = set(names.values())
    free = {normalised(name): name for name in second if name not in taken}
    for name, call in first.items():
        partner = free.get(normalised(name))
        if name not in names and partner is not None and _comparable(call, second[partner]):
            names[name] = partner
    if "" not in names and "" not in names.values():
        names[""] = ""


def _by_place(first: Mapping[str, LayerCall], second: Mapping[str, LayerCall], names: dict[str, str]) -> None:
    """What has no parameters, by its order among its kind between two neighbours that are paired."""
    here = [name for name, call in first.items() if call.leaf]
    there = [name for name, call in second.items() if call.leaf]
    anchors = [(name, names[name]) for name in here if names.get(name) in there]
    places = [(here.index(name), there.index(partner)) for name, partner in anchors]
    begin = (-1, -1)
    for end in [*places, (len(here), len(there))]:
        if end[1] > begin[1]:
            left = [name for name in here[begin[0] + 1 : end[0]] if name not in names]
            right = [name for name in there[begin[1] + 1 : end[1]] if name not in names.values()]
            for kind in _KINDS:
                some = [name for name in left if _kind(first[name]) == kind]
                others = [name for name in right if _kind(second[name]) == kind]
                if len(some) == len(others):
                    fitting = zip(some, others, strict=True)
                    names.update((n, p) for n, p in fitting if _comparable(first[n], second[p]))
            begin = end


def _kind(call: LayerCall) -> str:
    return next((kind for kind in _KINDS if kind in call.kind.lower()), "")


def _comparable(first: LayerCall, second: LayerCall) -> bool:
    """Whether the first outputs may be the same array in two layouts."""
    if not first.outputs or not second.outputs:
        return not first.outputs and not second.outputs
    shapes = first.outputs[0].shape, second.outputs[0].shape
    same_rank = len(shapes[0]) == len(shapes[1]) and all(
        1 in pair for pair in zip(*shapes, strict=True) if len(set(pair)) > 1
    )
    return int(np.prod(shapes[0])) == int(np.prod(shapes[1])) or same_rank
