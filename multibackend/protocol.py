"""The port: what a backend implements and all that the core knows of it.

A `Backend` turns an `Experiment` into a `Program`; the program runs windows. State is passed and returned, and
ownership goes with the call: after `state = program.run(state, ...)` the old state must not be touched, because torch
may have mutated it and JAX may have donated its buffers. What `run` measures stays on the device until `read`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from multibackend.history import term_name
from multibackend.precision import LossScale

if TYPE_CHECKING:
    from multibackend.experiment import Experiment
    from multibackend.tracing import Forced, Trace
    from multibackend.windows import WindowStack

__all__ = [
    "Backend",
    "BackendPlugin",
    "EvaluationSums",
    "HalfWindow",
    "Interruptible",
    "MemoryAware",
    "Program",
    "Rates",
    "Snapshot",
    "Traceable",
    "WindowResults",
]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BackendPlugin:
    """What the entry point of a backend names: enough to list it without importing its framework.

    Attributes:
        name: what users write, for example "torch".
        backend: "package.module:Class", imported when the backend is chosen.
        requires: modules that must be importable.
        distributions: distributions whose versions are worth telling.
        install: the command that installs what is missing.
        strategies: the ways in which it can execute a window; "auto" chooses among them.
        capabilities: what else it can do, by name.
    """

    name: str
    backend: str
    requires: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    strategies: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rates:
    """Learning rates by update index: `values[i]` belongs to the update with index `first + i`.

    A table rather than one number, because only the device knows whether the window before was skipped.
    """

    first: int
    values: np.ndarray


@dataclass(frozen=True)
class WindowResults:
    """What `run` measured, one entry per window, on the host.

    Attributes:
        terms: float64 [windows, terms], scale * weighted mean of each term of the loss; 0 where its weights sum to 0,
            NaN where those of all do.
        grad_norm: float64 [windows], the global norm after normalisation and before clipping.
        weights: float64 [windows, terms], the sums of the weights.
        finite: bool [windows], whether the gradient was finite.
        applied: bool [windows], whether the window made an update.
        gradient_norms: float64 [windows, parameters], in the order of `Program.parameter_names`; normalised as
            `grad_norm` is.
        loss_scale: float64 [windows], what the gradients were computed with; 1 but for fp16. A gradient that is not
            finite at a scale above 1 is an overflow, which never fails a run.
    """

    terms: np.ndarray
    grad_norm: np.ndarray
    weights: np.ndarray
    finite: np.ndarray
    applied: np.ndarray
    gradient_norms: np.ndarray
    loss_scale: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """float64 [windows], the sum of the terms."""
        return self.terms.sum(axis=1)

    @property
    def overflowed(self) -> np.ndarray:
        """bool [windows]: dropped because the loss scale was too large."""
        return ~self.finite & (self.loss_scale > LossScale.smallest)


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over batches, by name: weighted values and weights. One entry per metric, and "loss", or "loss/NAME" for
    each of several terms, without its scale.

    A value is a number, or an array of the metric's `shape`.
    """

    values: Mapping[str, Any]
    weights: Mapping[str, float]

    @classmethod
    def unpack(cls, flat: np.ndarray, experiment: Experiment) -> EvaluationSums:
        """From one float64 array: for each term of the loss, then each metric, its value, flattened, and its weight."""
        values, weights, start = {}, {}, 0
        terms = [(term_name(name, len(experiment.loss_terms)), ()) for name in experiment.loss_terms]
        for name, shape in [*terms, *((metric.name, metric.shape) for metric in experiment.metrics)]:
            stop = start + math.prod(shape)
            values[name], weights[name] = flat[start:stop].reshape(shape)[()], float(flat[stop])
            start = stop + 1
        return cls(values, weights)

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        """Over the batches of both."""
        return EvaluationSums(
            {name: value + other.values[name] for name, value in self.values.items()},
            {name: weight + other.weights[name] for name, weight in self.weights.items()},
        )


@dataclass(frozen=True)
class Snapshot:
    """A training state on the host, in canonical names and layouts: what crosses between frameworks.

    Attributes:
        parameters: float arrays.
        model_state: BatchNorm statistics and other state that is no parameter.
        optimizer: by slot (torch's names: "momentum_buffer", "exp_avg", "exp_avg_sq"), then by parameter.
        update: updates made.
        loss_scale: of an fp16 run; None in other precisions.
        ema: the moving average of the parameters, by their names; empty where none is kept. A state that is restored
            without it begins the average at its parameters.
    """

    parameters: Arrays
    model_state: Arrays = field(default_factory=dict)
    optimizer: Mapping[str, Arrays] = field(default_factory=dict)
    update: int = 0
    loss_scale: LossScale | None = None
    ema: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class HalfWindow:
    """A window of which some micro-batches have run, on the host, in canonical names and layouts.

    The `Snapshot` beside it is the state before the window.

    Attributes:
        done: micro-batches that have run.
        accumulator: the sum of their gradients by parameter, times the loss scale in fp16; a parameter that none of
            them used may be absent.
        model_state: BatchNorm statistics and the like as those micro-batches left them.
        totals: [rows, terms], sums of losses, to be multiplied by `factors` and then added. A backend that adds on the
            device has one row, another one a row per micro-batch.
        factors: float64 [rows, terms].
        weights: float64 [rows, terms], the sums of the weights that only the model's run told; [0, terms] where they
            are known from the data.
    """

    done: int
    accumulator: Arrays
    model_state: Arrays
    totals: np.ndarray
    factors: np.ndarray
    weights: np.ndarray


class Program(Protocol):
    """An experiment made executable on one device. States and what `place` returns are the backend's own.

    Attributes:
        strategy: how it executes a window.
        windows_per_dispatch: how many windows `run` takes best at once.
        parameter_names: canonical.
        output_shape: of the model's outputs for the example micro-batch; None unless they are one array.

    A program may also have `dropout_layers`: the names of the model's dropout layers whose rate is not 0, as a tuple in
    order of definition. `compare` needs them to give both models the same masks. And `batch_norm_layers`: the names of
    its layers with running statistics, with `recompute_statistics(state, batches)`, the state with those statistics
    replaced by their mean over batches (field arrays on the host) weighted by size.
    """

    strategy: str
    windows_per_dispatch: int
    parameter_names: tuple[str, ...]
    output_shape: tuple[int, ...] | None

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

        With `ema` the moving average takes the place of the parameters; asked for only where the experiment keeps one.
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

    def compile(
        self,
        experiment: Experiment,
        *,
        example: Arrays,
        device: str | None = None,
        strategy: str = "auto",
        windows_per_dispatch: int | None = None,
    ) -> Program:
        """Build the model and make the experiment executable. `example` is a micro-batch, for shapes."""
        ...


@runtime_checkable
class MemoryAware(Protocol):
    """What a backend may offer besides `Backend`: that it knows about memory. `micro_batch_size="auto"` needs it."""

    name: str

    def memory_of(
        self,
        experiment: Experiment,
        *,
        example: Arrays,
        device: str | None = None,
        strategy: str = "auto",
        windows_per_dispatch: int | None = None,
        limit: int | None = None,
    ) -> int:
        """The bytes that training takes at its peak, `example` being a micro-batch of the experiment's size.

        A program of its own, nothing of which is left. It may stop as soon as it has seen that more than `limit` are
        needed; then, and where the device refuses, it raises `OutOfMemoryError`.
        """
        ...

    def device_memory(self, device: str | None = None) -> int | None:
        """The bytes that a device has for this process; None for a CPU."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error is the framework's way to say that a device has no memory left."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """What a program may offer besides `Program`: to stop in the middle of a window and go on, bit for bit.

    An open window is the backend's own; `placed` holds that window alone. The state is the one before it throughout.
    """

    def run_part(self, state: Any, placed: Any, opened: Any | None, start: int, stop: int) -> Any:
        """The window with its micro-batches from index `start` to `stop` - 1 added; None is one that has not begun.

        The state stays usable, the open window that was passed does not.
        """
        ...

    def run_rest(self, state: Any, placed: Any, opened: Any, start: int, rates: Rates) -> tuple[Any, Any]:
        """Run the micro-batches from index `start` on and make the update: the bits that `run` would have given."""
        ...

    def snapshot_window(self, state: Any, opened: Any) -> HalfWindow:
        """Copy an open window to the host."""
        ...

    def restore_window(self, state: Any, placed: Any, half: HalfWindow) -> Any:
        """An open window from its copy, also from that of another backend."""
        ...


@runtime_checkable
class Traceable(Protocol):
    """What a program may offer besides `Program`: to tell what each layer did. `compare` needs it to name a layer."""

    def trace(
        self,
        state: Any,
        batch: Arrays,
        factors: np.ndarray,
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
            factors: [terms], as `WindowStack.factors` has them for one micro-batch.
            stamp: (update index, index of the micro-batch in its window, micro-batches in the window), which decide
                about dropout.
            train: the mode of the model.
            gradients: whether to go backward.
            forced: by (layer name, call), what to put in place of inputs and outputs.
        """
        ...
