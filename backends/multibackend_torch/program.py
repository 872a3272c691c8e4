"""An experiment made executable in torch on one device."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multibackend.experiment import Experiment
from multibackend.names import check_same_names, check_same_slots
from multibackend.optimizers.groups import frozen_names, resolve_groups, with_zeros
from multibackend.precision import LossScale
from multibackend.protocol import EvaluationSums, Rates, Snapshot, WindowResults
from multibackend.tracing import Forced, Trace
from multibackend.windows import WindowStack
from multibackend_torch.dropout import Draws
from multibackend_torch.losses import metric_sum, weighted_sum
from multibackend_torch.models import Call
from multibackend_torch.names import exchanged, load_tensors, named_parameters, to_host, unchanged
from multibackend_torch.norm import Momentum, averaging
from multibackend_torch.optimizers import build_grouped, read_slots, slot_names, write_slots
from multibackend_torch.precision import Precision
from multibackend_torch.randomness import Randomness
from multibackend_torch.trace import trace_micro_batch
from multibackend_torch.window import Batch, MicroBatch, TrainState, WindowRow, run_window

__all__ = ["TorchProgram"]

_SECONDS_PER_RUN = 0.05  # windows shorter than this share one call of `run`
_MOST_WINDOWS = 64


@dataclass(frozen=True)
class PlacedWindows:
    """A stack whose fields are on the device."""

    stack: WindowStack
    fields: Batch
    ragged: Batch | None

    def size(self, window: int) -> int:
        """How many micro-batches a window has, the ragged one included."""
        return int(self.stack.counts[window]) + (self.ragged is not None and window == len(self.stack) - 1)

    def micro_batches(self) -> Iterator[Iterator[MicroBatch]]:
        """For each window its micro-batches with their factors, the ragged one last. Views, cut in one call."""
        for window, count in enumerate(self.stack.counts.tolist()):
            views = {name: tensor[window].unbind(0) for name, tensor in self.fields.items()}
            batches: list[Batch] = [{name: view[step] for name, view in views.items()} for step in range(count)]
            factors = self.stack.factors[window, :count].tolist()
            if self.ragged is not None and window == len(self.stack) - 1:
                batches.append(self.ragged)
                factors.append(self.stack.ragged_factors.tolist())
            yield zip(batches, factors, strict=True)


class TorchProgram:
    """See `multibackend.protocol.Program` and `Traceable`."""

    def __init__(
        self,
        experiment: Experiment,
        module: torch.nn.Module,
        call: Call,
        *,
        strategy: str,
        precision: Precision,
        device: torch.device,
        windows_per_dispatch: int | None,
        dropout: tuple[tuple[str, ...], Draws | None],
        statistics: tuple[tuple[str, ...], Momentum | None],
        output_shape: tuple[int, ...] | None,
    ) -> None:
        self.strategy = strategy
        self.windows_per_dispatch = windows_per_dispatch or 1
        self.output_shape = output_shape
        self.parameter_names = tuple(named_parameters(module))
        shapes = {name: tuple(p.shape) for name, p in named_parameters(module).items()}
        self._groups = resolve_groups(experiment.optimizer, shapes)
        self._frozen = frozen_names(self._groups)
        self._trained = [index for index, name in enumerate(self.parameter_names) if name not in self._frozen]
        self._adapt = windows_per_dispatch is None
        self._experiment, self._module, self._call = experiment, module, call
        self._precision, self._device = precision, device
        self.dropout_layers, draws = dropout
        self.batch_norm_layers, self._momentum = statistics
        self._randomness = Randomness(int(experiment.seed), device, draws)
        self._losses = tuple(experiment.loss_terms.values())
        self._forward = torch.compile(self._total) if strategy == "compiled" else self._total

    def init(self) -> TrainState:
        return self._state(copy.deepcopy(self._module).train())

    def place(self, stack: WindowStack) -> PlacedWindows:
        return PlacedWindows(stack, self._put(stack.fields), self._put(stack.ragged) if stack.ragged else None)

    def run(self, state: TrainState, placed: PlacedWindows, rates: Rates) -> tuple[TrainState, list[WindowRow]]:
        started, rows = time.perf_counter(), []
        if not state.module.training:  # walking through all submodules takes as long as a small layer
            state.module.train()
        with self._precision.scope(self._device), self._randomness.scope():
            for micro_batches, weights in zip(placed.micro_batches(), placed.stack.weights.tolist(), strict=True):
                if state.failed:
                    break
                if self._momentum is not None:
                    self._momentum.steps = placed.size(len(rows))
                rate = float(rates.values[state.update - rates.first])
                rows.append(
                    run_window(
                        state, micro_batches, self._forward, self._experiment, weights, rate, self._randomness.stamp
                    )
                )
        if self._adapt:
            windows = _SECONDS_PER_RUN * len(rows) / max(time.perf_counter() - started, 1e-9)
            self.windows_per_dispatch = int(max(1, min(windows, _MOST_WINDOWS)))
        return state, rows

    def read(self, results: Sequence[WindowRow]) -> WindowResults:
        totals = torch.stack([total for row in results for total in row.totals]).cpu().double().numpy()
        ends = np.cumsum([len(row.totals) for row in results])[:-1]
        weights = np.array([row.weights for row in results])
        parts = zip(np.split(totals, ends), results, strict=True)
        sums = [(part * row.factors).reshape(-1, weights.shape[1]).sum(axis=0) for part, row in parts]
        share = np.array([row.share for row in results])
        norms = np.zeros((len(results), len(self.parameter_names)))  # of frozen parameters 0
        norms[:, self._trained] = torch.stack([row.norms for row in results]).cpu().double().numpy()
        return WindowResults(
            terms=np.where(weights.sum(axis=1, keepdims=True) > 0, np.array(sums) * share[:, None], np.nan),
            grad_norm=np.array([row.norm for row in results]),
            weights=weights,
            finite=np.array([row.finite for row in results]),
            applied=np.array([row.applied for row in results]),
            gradient_norms=norms * np.array([row.scale for row in results])[:, None],
            loss_scale=np.array([row.loss_scale for row in results]),
        )

    @torch.no_grad()
    def evaluate(
        self, state: TrainState, batch: Mapping[str, np.ndarray], *, ema: bool = False
    ) -> tuple[list[torch.Tensor], list[float]]:
        state.module.eval()
        swapped = exchanged(state.parameters, state.ema) if ema else contextlib.nullcontext()
        with self._precision.scope(self._device), swapped, unchanged(state.buffers):
            tensors = self._put(batch)
            outputs = self._call(state.module, tensors, False)
            sums, known = [], []
            for loss in self._experiment.loss_terms.values():
                total, weight = weighted_sum(loss, outputs, tensors)
                known.append(float(loss.weight_sums(batch, 0) or 0.0) if weight is None else 0.0)
                sums.append((total, torch.zeros_like(total) if weight is None else weight))
            sums += [metric_sum(metric, outputs, tensors) for metric in self._experiment.metrics]
        return [part for pair in sums for part in pair], known

    @torch.no_grad()
    def recompute_statistics(self, state: TrainState, batches: Iterable[Mapping[str, np.ndarray]]) -> TrainState:
        state.module.train()
        with self._precision.scope(self._device), self._randomness.scope(), averaging(state.module) as weigh:
            for index, batch in enumerate(batches):
                weigh(len(next(iter(batch.values()))))
                self._randomness.stamp(state.update, index)
                self._call(state.module, self._put(batch), True)
        return state

    def read_sums(self, sums: Sequence[tuple[list[torch.Tensor], list[float]]]) -> EvaluationSums:
        flat = [torch.cat([part.reshape(-1).double() for part in tensors]) for tensors, _ in sums]
        total = torch.stack(flat).cpu().numpy().sum(axis=0)
        total[1 : 2 * len(self._losses) : 2] += np.sum([known for _, known in sums], axis=0)
        return EvaluationSums.unpack(total, self._experiment)

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
        check_same_names(to_host(named_parameters(self._module)), snapshot.parameters, "the parameters")
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
        factors: np.ndarray,
        *,
        stamp: tuple[int, int, int],
        train: bool = True,
        gradients: bool = True,
        forced: Mapping[tuple[str, int], Forced] | None = None,
    ) -> Trace:
        update, micro_batch, steps = stamp
        if self._momentum is not None:
            self._momentum.steps = steps
        with self._precision.scope(self._device), self._randomness.scope():
            self._randomness.stamp(update, micro_batch)
            return trace_micro_batch(
                state,
                self._call,
                self._losses,
                self._put(batch),
                factors,
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
        return {name: self._precision.to_device(array, self._device) for name, array in fields.items()}

    def _total(self, module: torch.nn.Module, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Each term's sum of weighted losses over a micro-batch, and that of its weights where only the loss knows."""
        outputs = self._call(module, batch, True)
        if len(self._losses) == 1:  # the usual case, without lists of pairs: 2 % of a tiny model's micro-batch
            total, weight = weighted_sum(self._losses[0], outputs, batch)
            return [total], weight
        return [weighted_sum(loss, outputs, batch)[0] for loss in self._losses], None
