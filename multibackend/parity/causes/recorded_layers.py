"""What one side recorded where two models part: a layer, and the arrays before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.protocol.tracing import LayerCall

__all__ = ["RecordedLayer", "Sides", "Source", "label", "setting", "sources_before", "sources_within"]


@dataclass(frozen=True)
class Source:
    """An array that was there before a layer was called.

    Attributes:
        name: of the layer that returned it, or of the parameter; partners have one name.
        array: in its side's own layout.
        kind: the class of the layer; "input" of the model's own inputs, "parameter".
    """

    name: str
    array: Array
    kind: str = ""


@dataclass(frozen=True)
class RecordedLayer:
    """One side of a divergence.

    Attributes:
        call: the layer, with its inputs and outputs.
        parameters: all of the model's, by the side's canonical names.
        state: its model state before the pass, by canonical name.
        sources: what was there when the layer was called, the latest first.
    """

    call: LayerCall
    parameters: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    @property
    def input(self) -> Array | None:
        """The layer's first floating-point input, in float64."""
        for array in self.call.inputs:
            if array.dtype.kind == "f":
                return np.asarray(array, np.float64)
        return None

    @property
    def output(self) -> Array | None:
        """The layer's first output, as it was recorded."""
        return next(iter(self.call.outputs), None)

    def own(self, last: str) -> Array | None:
        """The layer's own parameter or state whose name ends in `last`, in float64."""
        # by what the layer says is its own, which may be tied and have another layer's name
        for name in self.call.parameters:
            if name.rpartition(".")[2] == last and name in self.parameters:
                return np.asarray(self.parameters[name], np.float64)
        # the model itself has no name to put before its parameters' names
        name = f"{self.call.name}.{last}".removeprefix(".")
        array = self.parameters.get(name, self.state.get(name))
        if array is None:
            return None
        return np.asarray(array, np.float64)


Sides = tuple[RecordedLayer, RecordedLayer]


def setting(call: LayerCall, *beginnings: str) -> tuple[str, Any] | None:
    """The first setting of a layer whose name begins in one of these ways, with its value.

    >>> setting(LayerCall("n", 0, "LayerNorm", (), (), True, {"eps": 1e-05}), "eps")
    ('eps', 1e-05)
    """
    for beginning in beginnings:
        for name, value in call.settings.items():
            if name.startswith(beginning):
                return name, value
    return None


def label(call: LayerCall) -> str:
    """The layer's name, with the number of its call where it was called before."""
    name = call.name or "the model"
    if call.call > 0:
        return f"{name} (call {call.call + 1})"
    return name


def sources_before(layers: Sequence[LayerCall], index: int, parameters: Arrays) -> tuple[Source, ...]:
    """What was there when the call `layers[index]` began, the latest first; then the parameters.

    Outputs of finished calls and inputs of every call that had begun, each array once.

    Args:
        layers: the calls in the order in which they began, the whole model first.
        index: of the call.
        parameters: of the model, by name.
    """
    return _sources(layers[:index], layers[index].depth, parameters)


def sources_within(layers: Sequence[LayerCall], index: int, parameters: Arrays) -> tuple[Source, ...]:
    """What was there when the call `layers[index]` returned, with all that it called."""
    depth = layers[index].depth
    stop = index + 1
    while stop < len(layers) and layers[stop].depth > depth:
        stop += 1
    return _sources(layers[:stop], depth + 1, parameters)


def _sources(layers: Sequence[LayerCall], depth: int, parameters: Arrays) -> tuple[Source, ...]:
    """The arrays of calls, those deeper than `depth` returned, latest first; then parameters."""
    sources: list[Source] = []
    contents: set[bytes] = set()
    unfinished: list[LayerCall] = []

    def add(name: str, arrays: Sequence[Array], kind: str) -> None:
        for part, array in enumerate(arrays):
            # by content: what one layer returns is what the next one gets, and would be there twice
            content = array.tobytes() + str(array.dtype).encode()
            if array.size and content not in contents:
                contents.add(content)
                sources.append(Source(name if part == 0 else f"{name}, {part}", array, kind))

    def finish(down_to: int) -> None:
        while unfinished and unfinished[-1].depth >= down_to:
            call = unfinished.pop()
            add(label(call), call.outputs, call.kind)

    # Calls are listed as they begin; one has returned when the next one no deeper begins.
    for call in layers:
        finish(call.depth)
        name = f"the input of {call.name}" if call.name else "the model's input"
        add(name, call.inputs, "input")
        unfinished.append(call)
    finish(depth)
    tables = [Source(name, array, "parameter") for name, array in parameters.items()]
    return (*reversed(sources), *tables)
