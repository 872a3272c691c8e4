"""The whole backend: y = x W^T + b, gradients by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multibackend.core.names import check_same_names
from multibackend.core.paths import collect, shapes_by_path
from multibackend.core.user_code import name_of, user_code
from multibackend.errors import CapabilityError, ConfigurationError
from multibackend.experiment import Experiment
from multibackend.losses import MeanSquaredError
from multibackend.optimizers import SGD, GroupedParameters, resolve_groups
from multibackend.protocol import EvaluationSums, Execution, ProgramInfo, Rates, Snapshot, WindowResults, WindowStack
from multibackend.protocol.values import inverse

__all__ = ["Linear", "Row", "State", "StubBackend", "StubProgram"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Linear:
    """The only module this backend knows: `weight` [out, in] and `bias` [out]."""

    inputs: int
    outputs: int

    def initial(self, seed: int, dtype: str) -> Arrays:
        """Draw the parameters that a run begins with."""
        random = np.random.default_rng(seed)
        weight = random.normal(size=(self.outputs, self.inputs)) / np.sqrt(self.inputs)
        return {"weight": weight.astype(dtype), "bias": np.zeros(self.outputs, dtype)}


@dataclass(frozen=True)
class State:
    """What a run carries from window to window; never changed in place."""

    parameters: Arrays
    velocity: Arrays
    update: int = 0
    failed: bool = False
    ema: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What one window measured."""

    loss: float
    norm: float
    weight: float
    finite: bool
    applied: bool
    norms: tuple[float, ...]


class StubProgram:
    """See `multibackend.protocol.Program` and `Predicts`."""

    def __init__(self, experiment: Experiment, module: Linear, execution: Execution, batch: int) -> None:
        self.experiment = experiment
        self.module = module
        self.execution = execution
        self.windows_per_dispatch = execution.windows_per_dispatch or 1
        shapes = shapes_by_path(np.empty((batch, module.outputs)), experiment.picked_outputs)
        self.info = ProgramInfo(parameter_names=("weight", "bias"), output_shapes=shapes)
        self.loss: MeanSquaredError = experiment.loss_terms["loss"]  # type: ignore[assignment]
        self.spec: SGD = experiment.optimizer  # type: ignore[assignment]
        self.groups = self.grouped({"weight": (module.outputs, module.inputs), "bias": (module.outputs,)})

    def grouped(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, GroupedParameters]:
        """Return the group of each parameter."""
        return {name: group for group in resolve_groups(self.spec, shapes) for name in group.names}

    def init(self) -> State:
        parameters = self.module.initial(int(self.experiment.seed), self.experiment.precision)
        velocity = {name: np.zeros_like(array) for name, array in parameters.items()}
        return State(parameters, velocity, ema={} if self.experiment.ema_decay is None else _copy(parameters))

    def place(self, stack: WindowStack) -> WindowStack:
        return stack

    def run(self, state: State, placed: WindowStack, rates: Rates) -> tuple[State, list[Row]]:
        rows = []
        for window in range(len(placed)):
            # one loss, so one term: the first divisor is the only one
            batches = [(batch, float(inverse(divisors[0]))) for batch, divisors in placed.micro_batches(window)]
            state, row = self.window(state, batches, float(placed.weights[window, 0]), rates)
            rows.append(row)
        return state, rows

    def window(self, state: State, micro_batches: list, weight: float, rates: Rates) -> tuple[State, Row]:
        """Run one window: accumulate, check, clip, update."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for below
            loss, gradient = self.accumulate(state, micro_batches)
            norms = self.norms(gradient)
            norm = float(np.sqrt(np.square(norms).sum()))
        finite = self.is_finite(loss, norm)
        applied = finite and weight > 0 and not state.failed
        row = Row(loss if weight > 0 or not finite else np.nan, norm, weight, finite, applied, norms)
        if applied:
            return self.step(state, self.clip(gradient, norm), self.rate(state, rates)), row
        # The host learns of the failure only after the whole dispatch: the windows behind it must change nothing.
        fails = not finite and self.experiment.on_nonfinite == "raise"
        return replace(state, failed=state.failed or fails), row

    def accumulate(self, state: State, micro_batches: list) -> tuple[float, Arrays]:
        """Return the window's loss and its gradient, that of frozen parameters being 0."""
        loss = 0.0
        gradient = {name: np.zeros_like(array) for name, array in state.parameters.items()}
        for batch, inverse_divisor in micro_batches:
            total, slope, x = self.forward(state.parameters, batch)
            loss += inverse_divisor * total
            gradient["weight"] += inverse_divisor * slope.T @ x
            gradient["bias"] += inverse_divisor * slope.sum(axis=0)
        # zeroed before the norm is taken, in which frozen parameters have no part
        frozen = {name: np.zeros_like(array) for name, array in gradient.items() if self.groups[name].frozen}
        return loss, gradient | frozen

    def forward(self, parameters: Arrays, batch: Mapping[str, np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
        """Return (sum of w * l, its derivative by the outputs, the inputs)."""
        dtype = self.experiment.precision
        x = self.inputs(batch)
        y = batch[self.loss.target].astype(dtype)
        weights = 1.0 if self.loss.weights is None else batch[self.loss.weights].astype(dtype)[:, None]
        residual = self.outputs(parameters, x) - y
        return float((weights * residual**2).sum()), 2 * weights * residual, x

    def inputs(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return batch[self.experiment.model.inputs[0]].astype(self.experiment.precision)

    def outputs(self, parameters: Arrays, x: np.ndarray) -> np.ndarray:
        return x @ parameters["weight"].T + parameters["bias"]

    def norms(self, gradient: Arrays) -> tuple[float, ...]:
        return tuple(float(np.linalg.norm(gradient[name])) for name in self.info.parameter_names)

    def clip(self, gradient: Arrays, norm: float) -> Arrays:
        limit = self.experiment.max_grad_norm
        if limit is None or norm <= limit:
            return gradient
        return {name: array * (limit / norm) for name, array in gradient.items()}

    def is_finite(self, loss: float, norm: float) -> bool:
        # either: an infinite loss may have a finite gradient
        return bool(np.isfinite(loss) and np.isfinite(norm))

    def rate(self, state: State, rates: Rates) -> float:
        # by the update, not by the window: a skipped window uses up no rate
        return float(rates.values[state.update - rates.first])

    def step(self, state: State, gradient: Arrays, rate: float) -> State:
        parameters: Arrays = {}
        velocity: Arrays = {}
        for name in state.parameters:
            parameters[name], velocity[name] = self.move(state, gradient, rate, name)
        return State(parameters, velocity, state.update + 1, ema=self.average(state, parameters))

    def move(self, state: State, gradient: Arrays, rate: float, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (parameter, velocity) after an update."""
        group = self.groups[name]
        p = state.parameters[name]
        b = state.velocity[name]
        if group.frozen:
            return p, b
        d = gradient[name] + group.spec.weight_decay * p  # type: ignore[attr-defined]
        b = self.spec.momentum * b + d
        step = d + self.spec.momentum * b if self.spec.nesterov else b
        return p - rate * group.learning_rate_factor * step, b

    def average(self, state: State, parameters: Arrays) -> Arrays:
        """Return the moving average after an update that gave `parameters`."""
        d = self.experiment.ema_decay or 0.0
        if self.experiment.ema_warmup:
            d = min(d, (1 + state.update) / (10 + state.update))
        return {name: d * array + (1 - d) * parameters[name] for name, array in state.ema.items()}

    def read(self, results: Sequence[Row]) -> WindowResults:
        return WindowResults(
            terms=np.array([[row.loss] for row in results]),
            grad_norm=np.array([row.norm for row in results]),
            weights=np.array([[row.weight] for row in results]),
            finite=np.array([row.finite for row in results]),
            applied=np.array([row.applied for row in results]),
            gradient_norms=np.array([row.norms for row in results]),
            loss_scale=np.ones(len(results)),
        )

    def evaluate(self, state: State, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> tuple:
        if self.experiment.summed_metrics:
            raise CapabilityError("the stub backend knows metrics over the whole set only")
        parameters = state.ema if ema else state.parameters
        outputs = self.outputs(parameters, self.inputs(batch))
        collected = collect(outputs, self.experiment.collected_outputs)
        return self.forward(parameters, batch)[0], float(self.loss.weight_sums(batch, 0)), collected

    def predict(self, state: State, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> np.ndarray:
        parameters = state.ema if ema else state.parameters
        return self.outputs(parameters, self.inputs(batch))

    def read_sums(self, sums: Sequence[tuple]) -> EvaluationSums:
        totals, weights, *collected = zip(*sums, strict=True)
        return EvaluationSums({"loss": sum(totals)}, {"loss": sum(weights)}, *collected)

    def snapshot(self, state: State) -> Snapshot:
        # torch's name of the slot, so that another backend knows it
        slots = {"momentum_buffer": _copy(state.velocity)} if self.spec.momentum else {}
        return Snapshot(_copy(state.parameters), optimizer=slots, update=state.update, ema=_copy(state.ema))

    def restore(self, snapshot: Snapshot) -> State:
        fresh = self.init()
        check_same_names(fresh.parameters, snapshot.parameters, "the parameters")
        velocity = snapshot.optimizer.get("momentum_buffer", fresh.velocity)
        dtype = self.experiment.precision  # a snapshot may come from a run in another one
        ema = _copy(snapshot.ema or snapshot.parameters, dtype) if fresh.ema else {}
        return State(_copy(snapshot.parameters, dtype), _copy(velocity, dtype), snapshot.update, ema=ema)

    def compilations(self) -> int:
        return 0


class StubBackend:
    """See `multibackend.protocol.Backend`."""

    name = "stub"
    program = StubProgram

    def devices(self) -> Sequence[str]:
        return ("cpu",)

    def compile(
        self, experiment: Experiment, *, example: Mapping[str, np.ndarray], execution: Execution
    ) -> StubProgram:
        if not isinstance(experiment.loss, MeanSquaredError) or not isinstance(experiment.optimizer, SGD):
            raise CapabilityError("the stub backend knows MeanSquaredError and SGD only")
        if experiment.number_format.mixed:
            raise CapabilityError(f"the stub backend has no precision {experiment.precision!r}")
        if execution.mode not in ("auto", "plain") or execution.device not in (None, "cpu"):
            raise ConfigurationError(
                "Trainer",
                [f"execution {execution.mode!r} on device {execution.device!r} is not here, but 'auto' on 'cpu'"],
            )
        builder = experiment.model.builder("stub")
        with user_code(f"the stub builder{name_of(builder)}", hint="it is called without arguments"):
            module = builder()
        if not isinstance(module, Linear):
            problem = f"the stub builder must return a Linear, got {type(module).__name__}"
            raise ConfigurationError("Model", [problem])
        chosen = replace(execution, device="cpu", mode="plain")
        return self.program(experiment, module, chosen, batch=len(next(iter(example.values()))))


def _copy(arrays: Mapping[str, np.ndarray], dtype: str | None = None) -> Arrays:
    return {name: np.array(array, dtype) for name, array in arrays.items()}
