"""The port: what a backend implements and all that the core knows of it.

A `Backend` turns an `Experiment` into a `Program`; the program runs windows. State is passed and returned, and
ownership goes with the call: after `state = program.run(state, ...)` the old state must not be touched, because torch
may have mutated it and JAX may have donated its buffers. What `run` measures stays on the device until `read`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from multibackend.experiment import Experiment
    from multibackend.windows import WindowStack

__all__ = [
    "Backend",
    "BackendPlugin",
    "EvaluationSums",
    "Program",
    "Rates",
    "Snapshot",
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
        loss: float64 [windows], the weighted mean loss; NaN where the weights sum to 0.
        grad_norm: float64 [windows], the global norm after normalisation and before clipping.
        weight: float64 [windows].
        finite: bool [windows], whether the gradient was finite.
        applied: bool [windows], whether the window made an update.
        gradient_norms: float64 [windows, parameters], in the order of `Program.parameter_names`; normalised as
            `grad_norm` is.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    weight: np.ndarray
    finite: np.ndarray
    applied: np.ndarray
    gradient_norms: np.ndarray


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over one batch, by name of the loss ("loss") or metric: weighted values and weights."""

    values: Mapping[str, float]
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Snapshot:
    """A training state on the host, in canonical names and layouts: what crosses between frameworks.

    Attributes:
        parameters: float arrays.
        model_state: BatchNorm statistics and other state that is no parameter.
        optimizer: by slot (torch's names: "momentum_buffer", "exp_avg", "exp_avg_sq"), then by parameter.
        update: updates made.
    """

    parameters: Arrays
    model_state: Arrays = field(default_factory=dict)
    optimizer: Mapping[str, Arrays] = field(default_factory=dict)
    update: int = 0


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

    def evaluate(self, state: Any, batch: Arrays) -> Any:
        """Loss and metrics of a batch, the model in evaluation mode; the state does not change. For `read_sums`."""
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
