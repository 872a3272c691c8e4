"""The port: what a backend implements, and all that the core asks of it.

A `Backend` turns an `Experiment` into a `Program`; the program runs windows. State is passed and
returned, and ownership goes with the call: after `state = program.run(state, ...)` the old state
must not be touched, because torch may have mutated it and JAX may have donated its buffers. What
`run` measures stays on the device until `read`.

Three Protocols are required: `Backend`, `Program`, and `ProgramInfo` as what a program tells about
itself. The others are capabilities, which a backend or a program has or has not; the core asks with
`isinstance`, never by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from multibackend.core.paths import Shapes
from multibackend.experiment import Experiment
from multibackend.protocol.index_ranges import IndexRange
from multibackend.protocol.tracing import Forced, Trace
from multibackend.protocol.values import (
    Arrays,
    EvaluationSums,
    Execution,
    NativeArrays,
    PartialWindow,
    Rates,
    Snapshot,
    WindowResults,
    WindowStack,
)

__all__ = [
    "Backend",
    "BackendPlugin",
    "Idiomatic",
    "Interruptible",
    "MemoryAware",
    "NativeModel",
    "Predicts",
    "Program",
    "ProgramInfo",
    "RecomputesStatistics",
    "Traceable",
    "WeightsReader",
]


@dataclass(frozen=True)
class BackendPlugin:
    """What the entry point of a backend names: enough to list it without importing its framework.

    Attributes:
        name: what users write, for example "torch".
        backend: "package.module:Class", imported when the backend is chosen.
        requires: modules that must be importable.
        distributions: distributions whose versions are worth telling.
        install: the command that installs what is missing.
        execution_modes: the ways in which it can execute a window; "auto" chooses among them.
        capabilities: what else it can do, by name.
    """

    name: str
    backend: str
    requires: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    execution_modes: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ProgramInfo:
    """What a program is, as far as the core wants to know. Empty where a backend does not tell.

    Attributes:
        parameter_names: canonical, in the order of `WindowResults.gradient_norms`.
        output_shapes: of the arrays in the model's outputs for the example micro-batch, by their paths and by
            those that a loss or metric picks: `multibackend.core.paths.shapes_by_path`.
        nonlinear_outputs: the paths of those arrays whose last operation is neither a sum nor a product of matrices
            or a convolution: they may be probabilities.
        kinds: for each parameter and state array, in order of definition, the sort of layer that it
            belongs to, for example "Linear"; "" for a module of the user's own. Matching pairs
            arrays of the same sort.
        dropout_layers: the names of the model's dropout layers whose rate is not 0, in order of
            definition. `compare` gives both models the same masks by them.
        batch_norm_layers: the names of its layers with running statistics.
        native_arrays: translates to the framework's own names and layouts, for files of weights.
        index_ranges: of each field that the model looks up, as the data have it, in a table such as
            an embedding's, the table and its rows. The data are checked against them before a
            window, an evaluation or a prediction.
    """

    parameter_names: tuple[str, ...]
    output_shapes: Shapes = field(default_factory=dict)
    nonlinear_outputs: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    dropout_layers: tuple[str, ...] = ()
    batch_norm_layers: tuple[str, ...] = ()
    native_arrays: NativeArrays | None = None
    index_ranges: Mapping[str, IndexRange] = field(default_factory=dict)

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """The shape of the model's outputs where they are one array; else None."""
        return self.output_shapes.get("")


class Program(Protocol):
    """An experiment made executable on one device. States and what `place` returns are the backend's own.

    Attributes:
        info: what the program is.
        execution: how it executes windows, "auto" replaced by what was chosen, and None too unless
            the program goes on choosing.
        windows_per_dispatch: how many windows `run` takes best at once; may change as
            the program learns.
    """

    info: ProgramInfo
    execution: Execution
    windows_per_dispatch: int

    def init(self) -> Any:
        """The state at update 0, with the parameters that the model's builder chose."""
        ...

    def place(self, stack: WindowStack) -> Any:
        """Move windows to the device."""
        ...

    def run(self, state: Any, placed: Any, rates: Rates) -> tuple[Any, Any]:
        """Make the updates of the windows. Returns the new state and results for `read`, without waiting."""
        ...

    def read(self, results: Any) -> WindowResults:
        """Wait for the results of one `run` and bring them to the host."""
        ...

    def evaluate(self, state: Any, batch: Arrays, *, ema: bool = False) -> Any:
        """Loss and metrics of a batch, the model in evaluation mode; the state does not change. For `read_sums`.

        With `ema` the moving average takes the place of the parameters; asked for only where the
        experiment keeps one.
        """
        ...

    def read_sums(self, sums: Sequence[Any]) -> EvaluationSums:
        """The sums over several batches, on the host."""
        ...

    def snapshot(self, state: Any) -> Snapshot:
        """Copy the state to the host."""
        ...

    def restore(self, snapshot: Snapshot) -> Any:
        """A state from a snapshot; names and shapes must be this program's own."""
        ...

    def compilations(self) -> int:
        """How many programs were compiled so far; 0 for a backend that does not compile."""
        ...


class Backend(Protocol):
    """One framework."""

    name: str

    def devices(self) -> Sequence[str]:
        """What `device=` accepts here, the default first."""
        ...

    def compile(self, experiment: Experiment, *, example: Arrays, execution: Execution) -> Program:
        """Build the model and make the experiment executable. `example` is a micro-batch, for shapes."""
        ...


# What a backend may offer besides.


@runtime_checkable
class MemoryAware(Protocol):
    """A backend that knows about memory. `micro_batch_size="auto"` needs it."""

    name: str

    def memory_of(
        self, experiment: Experiment, *, example: Arrays, execution: Execution, limit: int | None = None
    ) -> int:
        """The bytes that training takes at its peak, `example` being a micro-batch of the experiment's size.

        A program of its own, nothing of which is left. It may stop as soon as it has seen that more
        than `limit` are needed; then, and where the device refuses, it raises `OutOfMemoryError`.
        """
        ...

    def device_memory(self, device: str | None = None) -> int | None:
        """The bytes that a device has for this process; None for a CPU."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error is the framework's way to say that a device has no memory left."""
        ...


@runtime_checkable
class WeightsReader(Protocol):
    """A backend that reads its framework's own files of weights. `convert` needs it for anything but safetensors."""

    def read_weights(self, path: Path) -> dict[str, np.ndarray]:
        """Arrays by the framework's names, in its layouts; raises `DataError` for what is not safe to load."""
        ...


@runtime_checkable
class Idiomatic(Protocol):
    """A backend that says how its framework writes a setting. `compare` words its repairs with it.

    Attributes:
        idioms: by the neutral name of a setting, a template of the framework's own line.
    """

    idioms: Mapping[str, str]


# What a program may offer besides.


@runtime_checkable
class Interruptible(Protocol):
    """A program that can stop in the middle of a window and go on, bit for bit.

    A window that has begun is the backend's own; `placed` holds that window alone. The state is the
    one before it throughout.
    """

    def run_part(self, state: Any, placed: Any, begun: Any | None, start: int, stop: int) -> Any:
        """The window with its micro-batches from index `start` to `stop` - 1 added; None is one that has not begun.

        The state stays usable, the begun window that was passed does not.
        """
        ...

    def run_rest(self, state: Any, placed: Any, begun: Any, start: int, rates: Rates) -> tuple[Any, Any]:
        """Run the micro-batches from index `start` on and make the update: the bits that `run` would have given."""
        ...

    def snapshot_window(self, state: Any, begun: Any) -> PartialWindow:
        """Copy a begun window to the host."""
        ...

    def restore_window(self, state: Any, placed: Any, partial: PartialWindow) -> Any:
        """A begun window from its copy, also from that of another backend."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """A program that hands out what its model returns. `Trainer.predict` needs it."""

    info: ProgramInfo

    def predict(self, state: Any, batch: Arrays, *, ema: bool = False) -> Any:
        """The outputs of the model in evaluation mode; the state does not change.

        In the structure in which the model returns them (one array, a dict, a tuple, a dataclass),
        every array a numpy copy, floats in the dtype of the experiment's parameters: float32 for
        bf16. `batch` has the fields that the model reads, and need not have those of the loss.
        With `ema` the moving average takes the place of the parameters.
        """
        ...


@runtime_checkable
class NativeModel(Protocol):
    """A program that hands out the trained model as its framework's users know it. `Trainer.model` needs it."""

    def native_model(self, state: Any) -> Any:
        """The model with the parameters and the model state of `state`, in evaluation mode.

        A copy: what is done to it does not reach the run, nor training on it. What the library put
        into its layers for the run (masks by update, rematerialisation) is out of it again where it
        would show.
        """
        ...


@runtime_checkable
class RecomputesStatistics(Protocol):
    """A program that can replace running statistics by their mean over data.

    `Trainer.recompute_statistics` needs it.
    """

    def recompute_statistics(self, state: Any, batches: Iterable[Arrays]) -> Any:
        """The state with those of `info.batch_norm_layers` replaced by their mean over batches, weighted by size."""
        ...


@runtime_checkable
class Traceable(Protocol):
    """A program that can tell what each layer did. `compare` needs it to name a layer."""

    def trace(
        self,
        state: Any,
        batch: Arrays,
        divisors: np.ndarray,
        *,
        stamp: tuple[int, int, int],
        train: bool = True,
        gradients: bool = True,
        forced: Mapping[tuple[str, int], Forced] | None = None,
    ) -> Trace:
        """One micro-batch, forward and backward, from a state that stays as it is.

        Args:
            state: the backend's own.
            batch: field arrays on the host.
            divisors: [terms], as `WindowStack.divisors` has them for one micro-batch.
            stamp: (update index, index of the micro-batch in its window, micro-batches in the
                window), which decide about dropout.
            train: the mode of the model.
            gradients: whether to go backward.
            forced: by (layer name, call), what to put in place of inputs and outputs.
        """
        ...
