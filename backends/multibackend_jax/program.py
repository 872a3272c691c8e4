"""An experiment as compiled JAX programs on one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multibackend.core.names import check_same_names, check_same_slots
from multibackend.core.paths import Shapes, collect
from multibackend.core.precision import LossScale
from multibackend.experiment import Experiment
from multibackend.optimizers.groups import with_zeros
from multibackend.protocol import (
    EvaluationSums,
    Execution,
    IndexRange,
    PartialWindow,
    ProgramInfo,
    Rates,
    Snapshot,
    WindowResults,
    WindowStack,
)
from multibackend.protocol.tracing import Forced, Trace
from multibackend_jax.model.names import native_arrays
from multibackend_jax.model.norm import moved
from multibackend_jax.model.outputs import Outputs
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import Arrays, FlaxModel, Stamp
from multibackend_jax.step.execution import Bounds, PlacedWindows, WindowRunner
from multibackend_jax.step.losses import loss_sum, metric_sum
from multibackend_jax.step.optimizers import read_slots, write_slots
from multibackend_jax.step.partial_window import BegunWindow, from_host, to_partial_window
from multibackend_jax.step.trace import Tracer
from multibackend_jax.step.update_rules import NATIVE
from multibackend_jax.step.window import DeviceLossScale, Row, TrainState, WindowFunctions

__all__ = ["JaxProgram"]


Sums = tuple[jax.Array, dict[str, dict[str, jax.Array]]]
"""What evaluating a batch gave: for each term of the loss and each metric its weighted sum and the sum of its weights,
in one array, because each that is read costs a transfer; and what metrics over the whole set need, by the path that
they pick and the path below it.
"""


class JaxProgram:
    """See `multibackend.protocol.Program`, `Interruptible`, `Predicts`, `NativeModel` and the other capabilities.

    Attributes:
        model: as a pure function.
        functions: of its windows.
        runner: executes them.
        precision, device: in which, and on which.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: FlaxModel,
        functions: WindowFunctions,
        runner: WindowRunner,
        *,
        precision: Precision,
        device: Any,
        execution: Execution,
        outputs: tuple[Shapes, tuple[str, ...]],
        index_ranges: Mapping[str, IndexRange],
    ) -> None:
        output_shapes, nonlinear_outputs = outputs
        self.info = ProgramInfo(
            parameter_names=tuple(sorted(model.parameters)),  # the order in which JAX flattens a dict
            output_shapes=output_shapes,
            nonlinear_outputs=nonlinear_outputs,
            index_ranges=index_ranges,
            kinds=model.kinds,
            dropout_layers=model.dropout_layers,
            batch_norm_layers=tuple(model.statistics),
            native_arrays=native_arrays(model.native, model.layouts),
        )
        self.execution = execution
        self.windows_per_dispatch = execution.windows_per_dispatch or 1
        self._experiment = experiment
        self.model = model
        self.functions = functions
        self.runner = runner
        self._trained = [i for i, name in enumerate(self.info.parameter_names) if name not in functions.frozen]
        self.precision = precision
        self.device = device
        self._evaluate = jax.jit(self._sums)
        self._predict = jax.jit(self._outputs)
        self._average = jax.jit(self._averaged)
        self._tracer = Tracer(functions)

    def init(self) -> TrainState:
        with self.precision.scope():
            # copied, because the first run donates the buffers and `init` may be called again
            return jax.device_put(jax.tree.map(jnp.copy, self.functions.init()), self.device)

    def place(self, stack: WindowStack) -> PlacedWindows:
        # on CPU a dispatch takes host arrays in half the time that device_put needs
        put = self._cast if self.device.platform == "cpu" and self.runner.reads_fields_once else self._put
        with self.precision.scope():
            return PlacedWindows(stack, put(stack.fields), put(stack.ragged) if stack.ragged else None)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, Any]:
        with self.precision.scope():
            return self.runner.run(state, placed, rates)

    def run_part(
        self, state: TrainState, placed: PlacedWindows, begun: BegunWindow | None, start: int, stop: int
    ) -> BegunWindow:
        with self.precision.scope():
            carry = None if begun is None else begun.carry
            return BegunWindow(stop, self.runner.accumulate(state, placed, carry, Bounds(start, stop)))

    def run_rest(
        self, state: TrainState, placed: PlacedWindows, begun: BegunWindow, start: int, rates: Rates
    ) -> tuple[TrainState, Any]:
        with self.precision.scope():
            return self.runner.close(state, placed, begun.carry, start, rates)

    def snapshot_window(self, state: TrainState, begun: BegunWindow) -> PartialWindow:
        return to_partial_window(begun, self._to_host)

    def restore_window(self, state: TrainState, placed: PlacedWindows, partial: PartialWindow) -> BegunWindow:
        with self.precision.scope():
            carry = from_host(state, partial, placed.stack, self.functions, self._to_native)
            return BegunWindow(partial.done, jax.device_put(jax.tree.map(jnp.copy, carry), self.device))

    def read(self, results: Sequence[tuple[Row, int]]) -> WindowResults:
        terms = self.functions.terms
        width = 4 + 2 * terms + len(self._trained)
        # one array a dispatch; what lies past its count is room for more windows
        rows = np.concatenate([np.asarray(row).reshape(-1, width)[:count] for row, count in results])
        columns = np.split(rows.astype(np.float64), [4, 4 + terms, 4 + 2 * terms], axis=1)  # as `Row` has them
        numbers, losses, weights, trained_norms = columns
        norm, finite, applied, loss_scale = numbers.T
        norms = np.zeros((len(rows), len(self.info.parameter_names)))  # of frozen parameters 0
        norms[:, self._trained] = trained_norms
        return WindowResults(
            terms=losses,
            grad_norm=norm,
            weights=weights,
            finite=finite > 0,
            applied=applied > 0,
            gradient_norms=norms,
            loss_scale=loss_scale,
        )

    def evaluate(self, state: TrainState, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> Sums:
        with self.precision.scope():
            return self._evaluate(state.ema if ema else state.parameters, state.model_state, self._put(batch))

    def predict(self, state: TrainState, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> Any:
        with self.precision.scope():
            parameters = state.ema if ema else state.parameters
            return self._predict(parameters, state.model_state, self._put(batch)).to_host()

    def native_model(self, state: TrainState) -> Any:
        with self.precision.scope():
            # copied, because the next run donates the state's own buffers
            return self.model.bind(*jax.tree.map(jnp.copy, (state.parameters, state.model_state)))

    def recompute_statistics(self, state: TrainState, batches: Iterable[Mapping[str, np.ndarray]]) -> TrainState:
        examples = 0
        model_state = state.model_state
        with self.precision.scope():
            for index, batch in enumerate(batches):
                size = len(next(iter(batch.values())))
                examples += size
                place = (state.optimizer.gradient_step, np.int32(index), np.int32(1))
                # a running mean: after this batch it has this weight among all examples so far
                weight = np.asarray(size / examples, self.precision.dtype)
                model_state = self._average(state.parameters, model_state, self._put(batch), place, weight)
        return state._replace(model_state=model_state)

    def read_sums(self, sums: Sequence[Sums]) -> EvaluationSums:
        total = np.sum([np.asarray(part, np.float64) for part, _ in sums], axis=0)
        collected = jax.device_get([arrays for _, arrays in sums])
        return EvaluationSums.unpack(total, self._experiment, collected)

    def snapshot(self, state: TrainState) -> Snapshot:
        parameters = self._to_host(state.parameters)
        slots = read_slots(state.optimizer.inner_opt_state)
        host_slots = {slot: self._to_host(arrays, slot) for slot, arrays in slots.items()}
        scale = state.loss_scale
        return Snapshot(
            parameters=parameters,
            model_state=self._to_host(state.model_state),
            optimizer=with_zeros(host_slots, parameters, self.functions.frozen),
            update=int(state.optimizer.gradient_step),
            loss_scale=None if scale is None else LossScale(float(scale.scale), int(scale.updates)),
            ema=self._to_host(state.ema),
        )

    def restore(self, snapshot: Snapshot) -> TrainState:
        check_same_names(self._to_host(self.model.parameters), snapshot.parameters, "the parameters")
        check_same_names(self._to_host(self.model.state), snapshot.model_state, "the model's state")
        if snapshot.ema:
            check_same_names(snapshot.parameters, snapshot.ema, "the moving average")
        with self.precision.scope():
            state = self.functions.init()
            optimizer = state.optimizer
            if snapshot.optimizer:
                check_same_slots(read_slots(optimizer.inner_opt_state), snapshot.optimizer)
                slots = {slot: self._to_native(arrays, slot) for slot, arrays in snapshot.optimizer.items()}
                inner = write_slots(optimizer.inner_opt_state, slots, snapshot.update)
                optimizer = optimizer._replace(inner_opt_state=inner)
            optimizer = optimizer._replace(gradient_step=jnp.asarray(snapshot.update, jnp.int32))
            loss_scale = state.loss_scale
            if loss_scale is not None and snapshot.loss_scale is not None:
                loss_scale = DeviceLossScale.of(snapshot.loss_scale)
            restored = state._replace(
                parameters=self._to_native(snapshot.parameters),
                model_state=self._to_native(snapshot.model_state),
                optimizer=optimizer,
                loss_scale=loss_scale,
                ema=self._to_native(snapshot.ema or snapshot.parameters) if state.ema else {},
            )
            # copied, because the first run donates the buffers, which the model's own values
            # may share
            return jax.device_put(jax.tree.map(jnp.copy, restored), self.device)

    @property
    def paths(self) -> Mapping[str, tuple[str, ...]]:
        """Where flax keeps each parameter and state array, by canonical name."""
        return self.model.paths

    def to_flax(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Canonical arrays in flax's own layouts."""
        return {name: self.model.layouts[name].from_canonical(np.asarray(array)) for name, array in arrays.items()}

    def from_flax(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Flax's own arrays in canonical layouts."""
        return {name: self.model.layouts[name].to_canonical(array) for name, array in arrays.items()}

    def compilations(self) -> int:
        return self.runner.compilations()

    def trace(
        self,
        state: TrainState,
        batch: Mapping[str, np.ndarray],
        divisors: np.ndarray,
        *,
        stamp: tuple[int, int, int],
        train: bool = True,
        gradients: bool = True,
        forced: Mapping[tuple[str, int], Forced] | None = None,
    ) -> Trace:
        with self.precision.scope(), jax.default_device(self.device):
            fields = self._put(batch)
            return self._tracer(state, fields, divisors, stamp=stamp, train=train, gradients=gradients, forced=forced)

    def _cast(self, fields: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: self.precision.cast_input(name, array) for name, array in fields.items()}

    def _put(self, fields: Mapping[str, np.ndarray]) -> Arrays:
        return jax.device_put(self._cast(fields), self.device)

    def _to_host(self, arrays: Mapping[str, jax.Array], slot: str = "") -> dict[str, np.ndarray]:
        if slot.startswith(NATIVE):  # arrays of any shape, which go nowhere else
            return {name: np.array(array) for name, array in arrays.items()}
        return self.from_flax(arrays)

    def _to_native(self, arrays: Mapping[str, np.ndarray], slot: str = "") -> Arrays:
        """Canonical host arrays as device arrays in native layout and this run's precision."""
        if slot.startswith(NATIVE):
            return {name: jnp.asarray(array) for name, array in arrays.items()}
        native = self.to_flax(arrays)
        return {name: self.precision.cast_array(jnp.asarray(array)) for name, array in native.items()}

    def _averaged(
        self, parameters: Arrays, model_state: Arrays, batch: Arrays, place: tuple[Any, Any, Any], weight: jax.Array
    ) -> Arrays:
        """Move running statistics by `weight` towards those of a batch; all other state stays as it was."""
        _, new = self.model.apply(parameters, model_state, batch, Stamp(*place), True)
        result = moved(model_state, new, self.model.statistics, lambda decay: weight)
        changed = {name for names in self.model.statistics.values() for name in names}
        return {name: result[name] if name in changed else array for name, array in model_state.items()}

    def _outputs(self, parameters: Arrays, model_state: Arrays, batch: Arrays) -> Outputs:
        outputs, _ = self.model.apply(parameters, model_state, batch, None, False)
        return Outputs(outputs, self.precision.dtype)

    def _sums(self, parameters: Arrays, model_state: Arrays, batch: Arrays) -> Sums:
        """Evaluate each term of the loss, then each metric, and collect what metrics over the whole set need."""
        outputs, _ = self.model.apply(parameters, model_state, batch, None, False)
        parts: list[Any] = []
        for loss in self._experiment.loss_terms.values():
            parts += loss_sum(loss, outputs, batch)
        for metric in self._experiment.summed_metrics:
            parts += metric_sum(metric, outputs, batch)
        sums = jnp.concatenate([jnp.asarray(part, self.precision.dtype).reshape(-1) for part in parts])
        return sums, collect(outputs, self._experiment.collected_outputs)
