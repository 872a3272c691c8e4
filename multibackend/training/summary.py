"""What a model is, layer by layer, before it is trained: shapes, parameters, bytes, the memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.bytesize import format_bytes
from multibackend.core.text import Block, Line, Readable, Table
from multibackend.errors import OutOfMemoryError
from multibackend.experiment import Experiment
from multibackend.optimizers.groups import frozen_names, resolve_groups
from multibackend.protocol import Execution, MemoryAware, Program, Traceable
from multibackend.protocol.tracing import LayerCall
from multibackend.training.plan import Plan

__all__ = ["LayerSummary", "Summary", "summary"]

_UNKNOWN = "-"
_CALLED_NOWHERE = "(no call seen)"


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a model, what is inside of it aside.

    Attributes:
        name: canonical, "" for the whole model.
        kind: its class in the framework.
        output_shapes: of the arrays that it returned at its first call, the micro-batch first.
        calls: how often the model calls it for one micro-batch; 0 where no call was seen.
        leaf: whether it calls no other layer.
        parameters: how many numbers it learns itself. One that several layers share counts for the
            first of them.
        trainable: how many of them are not frozen by a group of the optimizer.
        state: how many numbers it keeps besides: running statistics, and parameters that the model
            itself keeps out of training.
        bytes: of its parameters and its state.
    """

    name: str
    kind: str
    output_shapes: tuple[tuple[int, ...], ...]
    calls: int
    leaf: bool
    parameters: int
    trainable: int
    state: int
    bytes: int


@dataclass(frozen=True, repr=False)
class Summary(Readable):
    """What `summary` found; `print(summary)` shows a table with a row for each layer that computes or learns.

    Attributes:
        experiment, backend, precision: what was looked at.
        micro_batch_size: of the shapes and the memory.
        layers: in the order of their first calls, those that only hold others included.
        parameters, trainable, state, bytes: of the whole model.
        frozen: names of the parameters that a group of the optimizer keeps as they are.
        memory: bytes that training takes at its peak on a micro-batch: parameters, gradients, optimizer
            and activations; None where it is not known.
        memory_note: why it is not; "" where it was not asked for.
    """

    experiment: str
    backend: str
    precision: str
    micro_batch_size: int
    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable: int
    state: int
    bytes: int
    frozen: tuple[str, ...]
    memory: int | None
    memory_note: str = ""

    def blocks(self) -> Sequence[Block]:
        """What is printed."""
        title = f"{self.experiment} on {self.backend}, {self.micro_batch_size} examples in {self.precision}"
        columns = ("layer", "kind", "output", "parameters", "trained", "bytes")
        shown = [layer for layer in self.layers if layer.leaf or layer.parameters or layer.state]
        table = Table(columns, [_row(layer) for layer in shown], title=title, numbers=(3, 4, 5))
        lines = [f"{self.parameters:,} parameters, {_share(self.trainable, self.parameters)} of them trained"]
        if self.frozen:
            lines.append(f"frozen by a group: {_listed(self.frozen)}")
        held = f"{format_bytes(self.bytes)} of parameters"
        lines.append(f"{held} and model state ({self.state:,} numbers)" if self.state else held)
        if self.memory is not None:
            lines.append(f"memory of training on a micro-batch: about {format_bytes(self.memory)}")
        elif self.memory_note:
            lines.append(f"memory of training on a micro-batch: not known, {self.memory_note}")
        return [table, *map(Line, lines)]

    def __repr__(self) -> str:
        return f"<Summary of {self.experiment} on {self.backend}: {self.parameters:,} parameters>"


def summary(
    experiment: Experiment, backend: str = "torch", *, device: str | None = None, memory: bool = True
) -> Summary:
    """Look at an experiment's model on a backend: build it and run one micro-batch through it, untrained.

    Args:
        experiment: whose model, with the micro-batch size that decides about shapes and memory.
        backend: a name from `multibackend.list_backends()`.
        device: a name from the backend's devices; its first one unless given.
        memory: find out the memory of a micro-batch too, for which JAX compiles the program and
            torch makes an update on a trial.

    Raises:
        ConfigurationError, DataError: the experiment does not run on that backend.

    >>> print(mb.summary(experiment, backend="jax"))                    # doctest: +SKIP
    digits on jax, 32 examples in float32
    layer  kind    output    parameters  trained  bytes
    ---------------------------------------------------
    fc1    Linear  [32, 64]       4,160    100 %  16.2 KiB
    fc2    Linear  [32, 10]         650    100 %  2.5 KiB
    4,810 parameters, 100 % of them trained
    18.8 KiB of parameters
    memory of training on a micro-batch: about 98.4 KiB
    """
    plan, program = Plan.of(experiment, backend, Execution(device), None, read_ahead=False).compile()
    experiment = plan.experiment
    state = program.init()
    snapshot = program.snapshot(state)
    frozen = frozen_names(
        resolve_groups(experiment.optimizer, {name: array.shape for name, array in snapshot.parameters.items()})
    )
    arrays = _Arrays(snapshot.parameters, snapshot.model_state, frozen)
    calls = _calls(plan, program, state)
    layers = _layers(calls, arrays, program.info.kinds)
    known, note = _memory(plan) if memory else (None, "")
    return Summary(
        experiment=experiment.name,
        backend=backend,
        precision=experiment.precision,
        micro_batch_size=int(experiment.micro_batch_size),
        layers=tuple(layers),
        parameters=sum(array.size for array in snapshot.parameters.values()),
        trainable=sum(array.size for name, array in snapshot.parameters.items() if name not in frozen),
        state=sum(array.size for array in snapshot.model_state.values()),
        bytes=sum(array.nbytes for array in (*snapshot.parameters.values(), *snapshot.model_state.values())),
        frozen=tuple(name for name in snapshot.parameters if name in frozen),
        memory=known,
        memory_note=note,
    )


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a model, and which of them belong to a layer."""

    parameters: Mapping[str, np.ndarray]
    state: Mapping[str, np.ndarray]
    frozen: frozenset[str]

    def row(self, call: LayerCall, calls: int, names: Sequence[str]) -> LayerSummary:
        parameters = [name for name in names if name in self.parameters]
        state = [name for name in names if name in self.state]
        return LayerSummary(
            name=call.name,
            kind=call.kind,
            output_shapes=tuple(array.shape for array in call.outputs),
            calls=calls,
            leaf=call.leaf,
            parameters=sum(self.parameters[name].size for name in parameters),
            trainable=sum(self.parameters[name].size for name in parameters if name not in self.frozen),
            state=sum(self.state[name].size for name in state),
            bytes=sum(self.parameters[name].nbytes for name in parameters)
            + sum(self.state[name].nbytes for name in state),
        )


def _calls(plan: Plan, program: Program, state: object) -> tuple[LayerCall, ...]:
    """Return what the model calls for a micro-batch, in evaluation mode; nothing where the backend does not tell."""
    if not isinstance(program, Traceable):
        return ()
    divisors = np.ones(len(plan.experiment.loss_terms))
    return program.trace(state, plan.feed.example(), divisors, stamp=(0, 0, 1), train=False, gradients=False).layers


def _layers(calls: Sequence[LayerCall], arrays: _Arrays, kinds: Mapping[str, str]) -> list[LayerSummary]:
    """Return a row for each layer that is called, and for each that has arrays and is not."""
    counts: dict[str, int] = {}
    first: dict[str, LayerCall] = {}
    for call in calls:
        counts[call.name] = counts.get(call.name, 0) + 1
        first.setdefault(call.name, call)
    owned: dict[str, list[str]] = {}
    for name in (*arrays.parameters, *arrays.state):
        owned.setdefault(_owner(name, first), []).append(name)
    rows = [arrays.row(call, counts[name], owned.pop(name, [])) for name, call in first.items()]
    for name, names in owned.items():
        kind = kinds.get(names[0], "") or _CALLED_NOWHERE
        rows.append(arrays.row(LayerCall(name, 0, kind, (), (), leaf=True), 0, names))
    return rows


def _owner(name: str, called: Mapping[str, LayerCall]) -> str:
    """Return the layer that an array belongs to: the nearest one around it whose call was seen, but not the whole
    model for what lies deeper in it.
    """
    layer = name.rpartition(".")[0]
    nearest = layer
    while nearest and nearest not in called:
        nearest = nearest.rpartition(".")[0]
    return nearest or layer


def _memory(plan: Plan) -> tuple[int | None, str]:
    """Return the bytes of training on a micro-batch, or None and why they are not known."""
    backend = plan.backend
    if not isinstance(backend, MemoryAware):
        return None, f"for the backend {backend.name!r} does not tell"
    try:
        return backend.memory_of(plan.experiment, example=plan.feed.example(), execution=plan.execution), ""
    except OutOfMemoryError:
        return None, "for the device has too little"


def _row(layer: LayerSummary) -> tuple[str, ...]:
    shapes = ", ".join(str([*shape]) for shape in layer.output_shapes)
    called = f" ({layer.calls} calls)" if layer.calls > 1 else ""
    parameters = f"{layer.parameters:,}" if layer.parameters else ""
    share = _share(layer.trainable, layer.parameters) if layer.parameters else ""
    size = format_bytes(layer.bytes) if layer.bytes else ""
    return (layer.name or "(the model)", layer.kind, f"{shapes}{called}" or _UNKNOWN, parameters, share, size)


def _share(part: int, whole: int) -> str:
    """Write a part in percent, never rounded to all or to nothing."""
    if part in (0, whole):
        return "100 %" if part else "0 %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
