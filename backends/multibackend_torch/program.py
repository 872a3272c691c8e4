"""An experiment made executable in torch on one device."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from multibackend.core.names import check_same_names, check_same_slots
from multibackend.core.paths import Shapes, collect
from multibackend.core.precision import LossScale
from multibackend.experiment import Experiment
from multibackend.optimizers.groups import frozen_names, resolve_groups, with_zeros
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
from multibackend.protocol.values import inverse
from multibackend_torch.model.calls import Call
from multibackend_torch.model.dropout import Draws
from multibackend_torch.model.names import (
    exchanged,
    kinds_of,
    load_tensors,
    named_parameters,
    native_arrays,
    to_host,
    unchanged,
    with_tensors_of,
)
from multibackend_torch.model.norm import Momentum, averaging
from multibackend_torch.model.outputs import host_outputs
from multibackend_torch.model.precision import Precision
from multibackend_torch.model.randomness import Randomness
from multibackend_torch.model.release import released
from multibackend_torch.step.losses import loss_sum, metric_sum
from multibackend_torch.step.optimizers import build_grouped, read_slots, slot_names, write_slots
from multibackend_torch.step.partial_window import BegunWindow, from_host, in_module, set_aside, to_partial_window
from multibackend_torch.step.trace import trace_micro_batch
from multibackend_torch.step.window import Batch, TrainState, Window, WindowFunctions, WindowRow

__all__ = ["TorchProgram"]

_SECONDS_PER_RUN = 0.05  # windows shorter than this share one call of `run`
_MOST_WINDOWS = 64


@dataclass(frozen=True)
class PlacedWindows:
    """A stack whose fields are on the device.

    Attributes:
        stack: the host's.
        fields, ragged: as `WindowStack` has them.
        inverse_divisors: float64 [windows, steps, terms], 1 / divisor.
        ragged_inverse_divisors: [terms].
    """

    stack: WindowStack
    fields: Batch
    ragged: Batch | None
    inverse_divisors: np.ndarray
    ragged_inverse_divisors: list[float]

    def size(self, window: int) -> int:
        """How many micro-batches a window has, the ragged one included."""
        return int(self.stack.counts[window]) + self._is_ragged(window)

    def micro_batches(self, window: int) -> Iterator[tuple[Batch, list[float]]]:
        """A window's micro-batches with their inverse divisors, the ragged one last. Views, cut in one call."""
        count = int(self.stack.counts[window])
        views = {name: tensor[window].unbind(0) for name, tensor in self.fields.items()}
        inverse_divisors = self.inverse_divisors[window, :count].tolist()
        for step in range(count):
            yield {name: view[step] for name, view in views.items()}, inverse_divisors[step]
        if self.ragged is not None and self._is_ragged(window):
            yield self.ragged, self.ragged_inverse_divisors

    def _is_ragged(self, window: int) -> bool:
        return self.ragged is not None and window == len(self.stack) - 1


@dataclass(frozen=True)
class BatchSums:
    """What evaluating a batch gave.

    Attributes:
        sums: of each term of the loss, then each metric: its weighted sum and the sum of its weights.
        known_weights: of the terms whose weights the data tell; they are added on the host.
        collected: what metrics over the whole set need, by the path that they pick and the path below it.
    """

    sums: list[torch.Tensor]
    known_weights: list[float]
    collected: dict[str, dict[str, torch.Tensor]]


class TorchProgram:
    """See `multibackend.protocol.Program`, `Interruptible`, `Predicts`, `NativeModel` and the other capabilities.

    Attributes:
        module: the model as it was built; every state has a copy.
        device: on which it trains.
    """

    def __init__(
        self,
        experiment: Experiment,
        module: torch.nn.Module,
        call: Call,
        *,
        precision: Precision,
        device: torch.device,
        execution: Execution,
        dropout: tuple[tuple[str, ...], Draws | None],
        statistics: tuple[tuple[str, ...], Momentum | None],
        outputs: tuple[Shapes, tuple[str, ...]],
        index_ranges: Mapping[str, IndexRange],
    ) -> None:
        dropout_layers, draws = dropout
        output_shapes, nonlinear_outputs = outputs
        batch_norm_layers, self._momentum = statistics
        self.info = ProgramInfo(
            parameter_names=tuple(named_parameters(module)),
            output_shapes=output_shapes,
            nonlinear_outputs=nonlinear_outputs,
            index_ranges=index_ranges,
            kinds=kinds_of(module),
            dropout_layers=dropout_layers,
            batch_norm_layers=batch_norm_layers,
            native_arrays=native_arrays(module),
        )
        self.execution = execution
        # begins with one window, and learns from its time how many make a call of `run` worth it
        self.windows_per_dispatch = execution.windows_per_dispatch or 1
        self._adapts = execution.windows_per_dispatch is None
        shapes = {name: tuple(p.shape) for name, p in named_parameters(module).items()}
        self._groups = resolve_groups(experiment.optimizer, shapes)
        self._frozen = frozen_names(self._groups)
        self._trained = [index for index, name in enumerate(self.info.parameter_names) if name not in self._frozen]
        self._experiment = experiment
        self._losses = tuple(experiment.loss_terms.values())
        self.module = module
        self._call = call
        self._precision = precision
        self.device = device
        # torch draws from generators, which are seeded anew for each micro-batch
        self._randomness = Randomness(int(experiment.seed), device, draws)
        # compiled is the forward pass with the loss: what follows depends on the divisors
        forward = torch.compile(self._total) if execution.mode == "compiled" else self._total
        self._functions = WindowFunctions(experiment, forward, self._randomness.stamp)

    def init(self) -> TrainState:
        return self._state(copy.deepcopy(self.module).train())

    def place(self, stack: WindowStack) -> PlacedWindows:
        return PlacedWindows(
            stack=stack,
            fields=self._put(stack.fields),
            ragged=self._put(stack.ragged) if stack.ragged else None,
            inverse_divisors=inverse(stack.divisors),
            ragged_inverse_divisors=inverse(stack.ragged_divisors).tolist(),
        )

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, list[WindowRow]]:
        started = time.perf_counter()
        rows: list[WindowRow] = []
        accumulate = self._functions.accumulate
        if not state.module.training:  # walking through all submodules takes as long as a small layer
            state.module.train()
        with self._precision.scope(self.device), self._randomness.scope():
            for index in range(len(placed.stack)):
                # with on_nonfinite="raise" nothing behind the failed window may be applied
                if state.failed:
                    break
                self._expect(placed, index)
                window = self._functions.start(state)
                for batch, inverse_divisors in placed.micro_batches(index):
                    accumulate(state, window, batch, inverse_divisors)
                rows.append(self._finish(state, window, placed, index, rates))
        if self._adapts:
            windows = _SECONDS_PER_RUN * len(rows) / max(time.perf_counter() - started, 1e-9)
            self.windows_per_dispatch = int(max(1, min(windows, _MOST_WINDOWS)))
        return state, rows

    def run_part(
        self, state: TrainState, placed: PlacedWindows, begun: BegunWindow | None, start: int, stop: int
    ) -> BegunWindow:
        begun = begun or BegunWindow(self._functions.start(state))
        with self._inside(state, placed, begun) as before:
            for batch, inverse_divisors in islice(placed.micro_batches(0), start, stop):
                self._functions.accumulate(state, begun.window, batch, inverse_divisors)
            return set_aside(state, begun.window, before)

    def run_rest(
        self, state: TrainState, placed: PlacedWindows, begun: BegunWindow, start: int, rates: Rates
    ) -> tuple[TrainState, list[WindowRow]]:
        with self._inside(state, placed, begun):
            for batch, inverse_divisors in islice(placed.micro_batches(0), start, None):
                self._functions.accumulate(state, begun.window, batch, inverse_divisors)
            return state, [self._finish(state, begun.window, placed, 0, rates)]

    def snapshot_window(self, state: TrainState, begun: BegunWindow) -> PartialWindow:
        return to_partial_window(state, begun, len(self._losses))

    def restore_window(self, state: TrainState, placed: PlacedWindows, partial: PartialWindow) -> BegunWindow:
        return from_host(self._functions, state, partial, weighed_by_model=placed.stack.weighed_by_model)

    @contextlib.contextmanager
    def _inside(
        self, state: TrainState, placed: PlacedWindows, begun: BegunWindow
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Let micro-batches of the one window in `placed` run; yields the buffers that the module had before."""
        state.module.train()
        self._expect(placed, 0)
        with self._precision.scope(self.device), self._randomness.scope(), in_module(state, begun) as before:
            yield before

    def _expect(self, placed: PlacedWindows, window: int) -> None:
        """Tell the layers that count them how many micro-batches the window has."""
        if self._momentum is not None:
            self._momentum.steps = placed.size(window)

    def _finish(self, state: TrainState, window: Window, placed: PlacedWindows, index: int, rates: Rates) -> WindowRow:
        weights = placed.stack.weights[index].tolist()
        learning_rate = float(rates.values[state.update - rates.first])
        return self._functions.finish(state, window, weights, learning_rate)

    def read(self, results: Sequence[WindowRow]) -> WindowResults:
        weights = np.array([row.weights for row in results])
        finite = np.array([row.finite for row in results])
        sums = []
        for row in results:
            with np.errstate(invalid="ignore"):  # a loss may be infinite, and what it is multiplied by 0
                by_micro_batch = np.multiply(row.totals, row.inverse_divisors).reshape(-1, weights.shape[1])
                sums.append(by_micro_batch.sum(axis=0) * row.inverse_weight)
        # of a window that is dropped for what is not finite the losses tell why
        has_loss = ~finite | (weights.sum(axis=1) > 0)
        norms = np.zeros((len(results), len(self.info.parameter_names)))  # of frozen parameters 0
        norms[:, self._trained] = torch.stack([row.norms for row in results]).cpu().double().numpy()
        return WindowResults(
            terms=np.where(has_loss[:, None], np.array(sums), np.nan),
            grad_norm=np.array([row.norm for row in results]),
            weights=weights,
            finite=finite,
            applied=np.array([row.applied for row in results]),
            gradient_norms=norms * np.array([row.gradient_scale for row in results])[:, None],
            loss_scale=np.array([row.loss_scale for row in results]),
        )

    @torch.no_grad()
    def evaluate(self, state: TrainState, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> BatchSums:
        with self._evaluating(state, ema=ema):
            tensors = self._put(batch)
            outputs = self._call(state.module, tensors, False)
            sums: list[torch.Tensor] = []
            known_weights = []  # of the terms whose weights the data tell: they are added on the host
            for loss in self._losses:
                total, weight = loss_sum(loss, outputs, tensors)
                known_weights.append(float(loss.weight_sums(batch, 0) or 0.0) if weight is None else 0.0)
                sums += (total, torch.zeros_like(total) if weight is None else weight)
            for metric in self._experiment.summed_metrics:
                sums += metric_sum(metric, outputs, tensors)
        return BatchSums(sums, known_weights, collect(outputs, self._experiment.collected_outputs))

    @torch.no_grad()
    def predict(self, state: TrainState, batch: Mapping[str, np.ndarray], *, ema: bool = False) -> Any:
        with self._evaluating(state, ema=ema):
            outputs = self._call(state.module, self._put(batch), False)
            return host_outputs(outputs, self._precision.dtype)

    def native_model(self, state: TrainState) -> torch.nn.Module:
        # from the module as it was built: one that was trained may hold what cannot be copied
        return released(with_tensors_of(copy.deepcopy(self.module), state.module)).eval()

    @contextlib.contextmanager
    def _evaluating(self, state: TrainState, *, ema: bool) -> Iterator[None]:
        """Let the model run in evaluation mode, without a trace in the state."""
        state.module.eval()
        swapped = exchanged(state.parameters, state.ema) if ema else contextlib.nullcontext()
        with self._precision.scope(self.device), swapped, unchanged(state.buffers):
            yield

    @torch.no_grad()
    def recompute_statistics(self, state: TrainState, batches: Iterable[Mapping[str, np.ndarray]]) -> TrainState:
        state.module.train()
        with self._precision.scope(self.device), self._randomness.scope(), averaging(state.module) as weigh:
            for index, batch in enumerate(batches):
                weigh(len(next(iter(batch.values()))))
                self._randomness.stamp(state.update, index)
                self._call(state.module, self._put(batch), True)
        return state

    def read_sums(self, sums: Sequence[BatchSums]) -> EvaluationSums:
        rows = [_flat(batch.sums) for batch in sums]
        total = torch.stack(rows).cpu().numpy().sum(axis=0)
        # a term's sum comes before its weight
        total[1 : 2 * len(self._losses) : 2] += np.sum([batch.known_weights for batch in sums], axis=0)
        collected = [{path: to_host(arrays) for path, arrays in batch.collected.items()} for batch in sums]
        return EvaluationSums.unpack(total, self._experiment, collected)

    def snapshot(self, state: TrainState) -> Snapshot:
        slots = read_slots(state.optimizer, state.trained)
        parameters = to_host(state.parameters)
        return Snapshot(
            parameters=parameters,
            model_state=to_host(state.model_state),
            optimizer=with_zeros({s: to_host(tensors) for s, tensors in slots.items()}, parameters, self._frozen),
            update=state.update,
            loss_scale=state.loss_scale,
            ema=to_host(state.ema),
        )

    def restore(self, snapshot: Snapshot) -> TrainState:
        check_same_names(to_host(named_parameters(self.module)), snapshot.parameters, "the parameters")
        # a fresh copy of the module: the one that was built stays as its builder left it
        state = self.init()
        check_same_names(to_host(state.model_state), snapshot.model_state, "the model's state")
        load_tensors(state.parameters, snapshot.parameters)
        load_tensors(state.model_state, snapshot.model_state)
        if snapshot.ema:
            check_same_names(snapshot.parameters, snapshot.ema, "the moving average")
        if state.ema:
            load_tensors(state.ema, snapshot.ema or snapshot.parameters)
        if snapshot.optimizer:
            check_same_slots(slot_names(state.optimizer, snapshot.optimizer), snapshot.optimizer)
            write_slots(state.optimizer, state.trained, snapshot.optimizer, snapshot.update)
        state.update = snapshot.update
        if state.loss_scale is not None and snapshot.loss_scale is not None:
            state.loss_scale = snapshot.loss_scale
        return state

    def compilations(self) -> int:
        return 0

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
        update, micro_batch, steps = stamp
        if self._momentum is not None:
            self._momentum.steps = steps
        with self._precision.scope(self.device), self._randomness.scope():
            self._randomness.stamp(update, micro_batch)
            return trace_micro_batch(
                state,
                self._call,
                self._losses,
                self._put(batch),
                divisors,
                train=train,
                gradients=gradients,
                forced=forced,
                by_micro_batch=self._experiment.normalize == "microbatch",
            )

    def _state(self, module: torch.nn.Module) -> TrainState:
        parameters = named_parameters(module)
        optimizer = build_grouped(self._experiment.optimizer, self._groups, parameters)
        averaged = parameters if self._experiment.ema_decay is not None else {}
        ema = {name: parameter.detach().clone() for name, parameter in averaged.items()}
        scale = LossScale() if self._precision.format.scales_loss else None
        return TrainState(module, optimizer, ema=ema, frozen=self._frozen, loss_scale=scale)

    def _put(self, fields: Mapping[str, np.ndarray]) -> Batch:
        return {name: self._precision.to_device(array, self.device) for name, array in fields.items()}

    def _total(self, module: torch.nn.Module, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Each term's sum of weighted losses over a micro-batch, and that of its weights where only the loss knows."""
        outputs = self._call(module, batch, True)
        if len(self._losses) == 1:  # the usual case, without lists of pairs: 2 % of a tiny model's micro-batch
            total, weight = loss_sum(self._losses[0], outputs, batch)
            return [total], weight
        return [loss_sum(loss, outputs, batch)[0] for loss in self._losses], None


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in tensors])
