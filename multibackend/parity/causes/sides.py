"""What is known of one side at the place where two models part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.protocol.tracing import LayerCall

__all__ = ["Side", "Source", "setting", "sources_before", "sources_within"]


@dataclass(frozen=True)
class Source:
    """An array that was there before a layer was called.

    Attributes:
        name: of the layer that returned it, or of the parameter; the same on both sides for partners.
        array: in its side's own layout.
        kind: the class of the layer; "input" of the model's own inputs, "parameter".
        inputs: what that layer was called with.
        part: which of several outputs.
    """

    name: str
    array: np.ndarray
    kind: str = ""
    inputs: tuple[np.ndarray, ...] = ()
    part: int = 0


@dataclass(frozen=True)
class Side:
    """One side of a divergence.

    Attributes:
        backend: its name.
        call: the layer, with its inputs and outputs.
        parameters: all of the model's, by the side's canonical names.
        state: its model state before the pass, by canonical name.
        sources: what was there when the layer was called, the latest first.
        idioms: how the framework writes things, by the laws' names.
    """

    backend: str
    call: LayerCall
    parameters: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    idioms: Mapping[str, str] = field(default_factory=dict)

    @property
    def input(self) -> np.ndarray | None:
        """The layer's first floating-point input, in float64."""
        return next((np.asarray(x, np.float64) for x in self.call.inputs if x.dtype.kind == "f"), None)

    @property
    def output(self) -> np.ndarray | None:
        """The layer's first output, as it was recorded."""
        return self.call.outputs[0] if self.call.outputs else None

    def own(self, last: str) -> np.ndarray | None:
        """The layer's own parameter or state whose name ends in `last`, in float64."""
        for name in self.call.parameters:
            if name.rpartition(".")[2] == last and name in self.parameters:
                return np.asarray(self.parameters[name], np.float64)
        name = f"{self.call.name}.{last}" if self.call.name else last
        held = self.parameters.get(name, self.state.get(name))
        return None if held is None else np.asarray(held, np.float64)


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
    """What was there when the call `layers[index]` returned: as `sources_before`, with all that it called itself."""
    own = layers[index]
    later = range(index + 1, len(layers))
    stop = next((number for number in later if layers[number].depth <= own.depth), len(layers))
    return _sources(layers[:stop], own.depth + 1, parameters)


def _sources(layers: Sequence[LayerCall], depth: int, parameters: Arrays) -> tuple[Source, ...]:
    found: list[Source] = []
    seen: set[bytes] = set()

    def add(name: str, arrays: Sequence[np.ndarray], kind: str, inputs: tuple[np.ndarray, ...]) -> None:
        for part, array in enumerate(arrays):
            mark = array.tobytes() + str(array.dtype).encode()
            if array.size and mark not in seen:
                seen.add(mark)
                found.append(Source(name if part == 0 else f"{name}, {part}", array, kind, inputs, part))

    def finish(down_to: int) -> None:
        while began and began[-1].depth >= down_to:
            done = began.pop()
            add(_name_of(done), done.outputs, done.kind, done.inputs)

    began: list[LayerCall] = []
    for call in layers:
        finish(call.depth)
        add(f"the input of {call.name}" if call.name else "the model's input", call.inputs, "input", ())
        began.append(call)
    finish(depth)
    held = [Source(name, array, "parameter") for name, array in parameters.items()]
    return (*found[::-1], *held)


def _name_of(call: LayerCall) -> str:
    name = call.name or "the model"
    return name if call.call == 0 else f"{name} (call {call.call + 1})"
