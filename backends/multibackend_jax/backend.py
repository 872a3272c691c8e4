"""The JAX backend: from an experiment to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from multibackend.core.arrays import Arrays
from multibackend.core.paths import Shapes, arrays_by_path, pick, shapes_by_path
from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError, OutOfMemoryError
from multibackend.experiment import Experiment
from multibackend.losses import check_batch, check_gradient
from multibackend.protocol import Execution, IndexRange
from multibackend_jax.idioms import IDIOMS
from multibackend_jax.memory import device_bytes, is_out_of_memory, program_bytes
from multibackend_jax.model.build import build_model
from multibackend_jax.model.indices import index_ranges
from multibackend_jax.model.outputs import ends_linear
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import FlaxModel, Stamp
from multibackend_jax.model.rematerialize import compiler_options
from multibackend_jax.program import JaxProgram
from multibackend_jax.step.dispatch import Dispatch
from multibackend_jax.step.losses import loss_sum
from multibackend_jax.step.scan import Scan
from multibackend_jax.step.window import WindowFunctions
from multibackend_jax.step.workload import Workload, choose_mode, choose_windows_per_dispatch, measure_workload

__all__ = ["JaxBackend"]

RUNNERS = {runner.name: runner for runner in (Scan, Dispatch)}


class JaxBackend:
    """See `multibackend.protocol.Backend`, `MemoryAware` and `Idiomatic`."""

    name = "jax"
    idioms = IDIOMS

    def devices(self) -> Sequence[str]:
        """The default platform's devices first, then the CPU: "gpu:0", "cpu:0"."""
        found = [*jax.devices(), *jax.devices("cpu")]
        return tuple(dict.fromkeys(f"{device.platform}:{device.id}" for device in found))

    def compile(self, experiment: Experiment, *, example: Arrays, execution: Execution) -> JaxProgram:
        problems = Problems("Trainer")
        problems.choice("execution", execution.mode, ("auto", *RUNNERS))
        problems.raise_if_any()
        precision = Precision(experiment.precision)
        device = self._device(execution.device)
        with precision.scope(), jax.default_device(device):
            batch = {name: jnp.asarray(precision.cast_input(name, array)) for name, array in example.items()}
            model = _pure_model(experiment, precision, batch)
            outputs, ranges = _traced(experiment, model, batch, example)
            weighed_by_model = any(loss.weight_sums(example, 0) is None for loss in experiment.loss_terms.values())
            options = compiler_options(experiment.rematerialize, device.platform)
            functions = WindowFunctions(experiment, model, weighed_by_model, options)
            workload = _workload(functions, batch)
        mode = execution.mode
        if mode == "auto":
            mode = choose_mode(device.platform, workload)
        windows = execution.windows_per_dispatch
        if windows is None:
            steps = experiment.held_steps
            windows = choose_windows_per_dispatch(
                device.platform,
                workload,
                steps=steps,
                window_bytes=steps * sum(array.nbytes for array in batch.values()),
                windows_per_epoch=_windows_per_epoch(experiment, steps),
            )
        if mode != Scan.name:  # a dispatch of its own for each micro-batch gains nothing from more windows
            windows = 1
        name = f"{device.platform}:{device.id}"
        return JaxProgram(
            experiment,
            model,
            functions,
            RUNNERS[mode](functions),
            precision=precision,
            device=device,
            execution=replace(execution, device=name, mode=mode, windows_per_dispatch=windows),
            outputs=outputs,
            index_ranges=ranges,
        )

    def memory_of(
        self, experiment: Experiment, *, example: Arrays, execution: Execution, limit: int | None = None
    ) -> int:
        try:
            program = self.compile(experiment, example=example, execution=execution)
            return program_bytes(program, example, experiment.held_steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = int(experiment.micro_batch_size)
            raise OutOfMemoryError(str(error), micro_batch_size=size, precision=experiment.precision) from error

    def device_memory(self, device: str | None = None) -> int | None:
        return device_bytes(self._device(device))

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def _device(self, name: str | None) -> Any:
        if name is None:
            return jax.devices()[0]
        platform, _, index = name.partition(":")
        platform = "gpu" if platform == "cuda" else platform
        try:
            return jax.devices(platform)[int(index or 0)]
        except (RuntimeError, IndexError, ValueError) as error:
            listed = ", ".join(map(repr, self.devices()))
            raise ConfigurationError("Trainer", [f"device {name!r} is not here; jax sees {listed}"]) from error


def _pure_model(experiment: Experiment, precision: Precision, batch: dict[str, jax.Array]) -> FlaxModel:
    """Build the model as the experiment's options ask for."""
    model = build_model(
        experiment.model,
        precision,
        int(experiment.seed),
        batch,
        portable_dropout=experiment.dropout == "portable",
        frozen=experiment.batch_statistics == "frozen",
        rematerialize=experiment.rematerialize,
    )
    return precision.mixed(model)


def _traced(
    experiment: Experiment, model: FlaxModel, batch: dict[str, jax.Array], example: Arrays
) -> tuple[tuple[Shapes, tuple[str, ...]], dict[str, IndexRange]]:
    """Trace model and loss: the outputs, of whatever structure, and the fields that are used as indices.

    Of the outputs the shapes, and the paths of those that end in an activation. Raises `DataError`
    where the data do not fit them, or the loss does not depend on the parameters.
    """

    def outputs_and_totals(
        parameters: dict[str, jax.Array], state: dict[str, jax.Array], batch: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], list[jax.Array]]:
        outputs, _ = model.apply(parameters, state, batch, None, False)
        shapes.update(shapes_by_path(outputs, experiment.picked_outputs))
        for loss in experiment.loss_terms.values():
            check_batch(loss, example, shapes)  # before the loss meets outputs that do not fit
        totals = [loss_sum(loss, outputs, batch)[0] for loss in experiment.loss_terms.values()]
        # only arrays leave a traced function; by those paths too that a loss picks them by
        return arrays_by_path(outputs) | {path: pick(outputs, path) for path in shapes}, totals

    shapes: dict[str, tuple[int, ...]] = {}
    traced = jax.make_jaxpr(outputs_and_totals)(model.parameters, model.state, batch)
    jaxpr = traced.jaxpr
    count = len(shapes)
    parameters = jaxpr.invars[: len(model.parameters)]
    check_gradient(model.parameters, _depend(jaxpr, jaxpr.outvars[count:], parameters))
    # JAX lists the arrays of a dict in the order of its keys
    ends = zip(sorted(shapes), jaxpr.outvars[:count], strict=True)
    nonlinear = tuple(path for path, array in ends if not ends_linear(jaxpr, array))
    tables = [*sorted(model.parameters), *sorted(model.state)]
    return (shapes, nonlinear), index_ranges(jaxpr, tables, sorted(batch))


def _depend(jaxpr: Any, results: Sequence[Any], arguments: Sequence[Any]) -> bool:
    """Whether any of the results is computed from any of the arguments; what an equation calls is taken as a whole."""
    needed = {variable for variable in results if not hasattr(variable, "val")}  # literals have values
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name != "stop_gradient" and not needed.isdisjoint(equation.outvars):
            needed |= {variable for variable in equation.invars if not hasattr(variable, "val")}
    return not needed.isdisjoint(arguments)


def _windows_per_epoch(experiment: Experiment, steps: int) -> int | None:
    """None for data of unknown length."""
    examples = experiment.examples
    return None if examples is None else -(-examples // (steps * int(experiment.micro_batch_size)))


def _workload(functions: WindowFunctions, batch: dict[str, jax.Array]) -> Workload:
    """The workload of a micro-batch; nothing is compiled or run."""
    state = jax.eval_shape(functions.init)
    stamp = (jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), jnp.ones([], jnp.int32))

    def micro_batch(parameters: dict[str, jax.Array], batch: dict[str, jax.Array]) -> object:
        carry = functions.start(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))
        return functions.accumulate(parameters, carry, batch, jnp.ones(functions.terms), Stamp(*stamp))

    return measure_workload(micro_batch, functions.model.parameters, batch)
