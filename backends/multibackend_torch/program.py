"""An experiment made executable in torch on one device."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multibackend.experiment import Experiment
from multibackend.names import check_same_names, check_same_slots
from multibackend.protocol import EvaluationSums, Rates, Snapshot, WindowResults
from multibackend.windows import WindowStack
from multibackend_torch.dropout import Draws
from multibackend_torch.losses import metric_sum, weighted_sum
from multibackend_torch.models import Call
from multibackend_torch.names import load_tensors, named_parameters, to_host
from multibackend_torch.norm import Momentum, averaging
from multibackend_torch.optimizers import build_optimizer, read_slots, slot_names, write_slots
from multibackend_torch.precision import Precision
from multibackend_torch.randomness import Randomness
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
                factors.append(self.stack.ragged_factor)
            yield zip(batches, factors, strict=True)


class TorchProgram:
    """See `multibackend.protocol.Program`."""

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
        self._adapt = windows_per_dispatch is None
        self._experiment, self._module, self._call = experiment, module, call
        self._precision, self._device = precision, device
        self.dropout_layers, draws = dropout
        self.batch_norm_layers, self._momentum = statistics
        self._randomness = Randomness(int(experiment.seed), device, draws)
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
            for micro_batches, weight in zip(placed.micro_batches(), placed.stack.weights.tolist(), strict=True):
                if state.failed:
                    break
                if self._momentum is not None:
                    self._momentum.steps = placed.size(len(rows))
                rate = float(rates.values[state.update - rates.first])
                rows.append(
                    run_window(
                        state, micro_batches, self._forward, self._experiment, weight, rate, self._randomness.stamp
                    )
                )
        if self._adapt:
            windows = _SECONDS_PER_RUN * len(rows) / max(time.perf_counter() - started, 1e-9)
            self.windows_per_dispatch = int(max(1, min(windows, _MOST_WINDOWS)))
        return state, rows

    def read(self, results: Sequence[WindowRow]) -> WindowResults:
        totals = torch.stack([total for row in results for total in row.totals]).cpu().double().numpy()
        ends = np.cumsum([len(row.totals) for row in results])[:-1]
        sums = [part @ np.array(row.factors) for part, row in zip(np.split(totals, ends), results, strict=True)]
        weight = np.array([row.weight for row in results])
        scale = np.array([row.scale for row in results])
        norms = torch.stack([row.norms for row in results]).cpu().double().numpy()
        return WindowResults(
            loss=np.where(weight > 0, np.array(sums) * scale, np.nan),
            grad_norm=np.array([row.norm for row in results]),
            weight=weight,
            finite=np.array([row.finite for row in results]),
            applied=np.array([row.applied for row in results]),
            gradient_norms=norms * scale[:, None],
        )

    @torch.no_grad()
    def evaluate(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[list[torch.Tensor], float | None]:
        state.module.eval()
        with self._precision.scope(self._device):
            tensors = self._put(batch)
            outputs = self._call(state.module, tensors, False)
            total, weight = weighted_sum(self._experiment.loss_spec, outputs, tensors)
            known = self._experiment.loss_spec.weight_sums(batch, 0) if weight is None else None
            sums = [(total, torch.zeros_like(total) if weight is None else weight)]
            sums += [metric_sum(metric, outputs, tensors) for metric in self._experiment.metrics]
        return [part for pair in sums for part in pair], None if known is None else float(known)

    @torch.no_grad()
    def recompute_statistics(self, state: TrainState, batches: Iterable[Mapping[str, np.ndarray]]) -> TrainState:
        state.module.train()
        with self._precision.scope(self._device), self._randomness.scope(), averaging(state.module) as weigh:
            for index, batch in enumerate(batches):
                weigh(len(next(iter(batch.values()))))
                self._randomness.stamp(state.update, index)
                self._call(state.module, self._put(batch), True)
        return state

    def read_sums(self, sums: Sequence[tuple[list[torch.Tensor], float | None]]) -> EvaluationSums:
        names = ["loss", *(metric.name for metric in self._experiment.metrics)]
        parts = torch.stack([torch.stack([p.double() for p in tensors]) for tensors, _ in sums]).cpu().numpy()
        parts = parts.sum(axis=0).reshape(len(names), 2)
        parts[0, 1] += sum(known or 0.0 for _, known in sums)
        return EvaluationSums(dict(zip(names, parts[:, 0], strict=True)), dict(zip(names, parts[:, 1], strict=True)))

    def snapshot(self, state: TrainState) -> Snapshot:
        slots = read_slots(state.optimizer, state.parameters)
        return Snapshot(
            parameters=to_host(state.parameters),
            model_state=to_host(state.model_state),
            optimizer={slot: to_host(tensors) for slot, tensors in slots.items()},
            update=state.update,
        )

    def restore(self, snapshot: Snapshot) -> TrainState:
        check_same_names(to_host(named_parameters(self._module)), snapshot.parameters, "the parameters")
        state = self.init()
        check_same_names(to_host(state.model_state), snapshot.model_state, "the model's state")
        load_tensors(state.parameters, snapshot.parameters)
        load_tensors(state.model_state, snapshot.model_state)
        if snapshot.optimizer:
            check_same_slots(slot_names(state.optimizer), snapshot.optimizer)
            write_slots(state.optimizer, state.parameters, snapshot.optimizer, snapshot.update)
        state.update = snapshot.update
        return state

    def compilations(self) -> int:
        return 0

    def _state(self, module: torch.nn.Module) -> TrainState:
        return TrainState(module, build_optimizer(self._experiment.optimizer, named_parameters(module).values()))

    def _put(self, fields: Mapping[str, np.ndarray]) -> Batch:
        return {name: self._precision.to_device(array, self._device) for name, array in fields.items()}

    def _total(self, module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sum of a micro-batch's weighted losses, and of its weights where only the loss knows them."""
        return weighted_sum(self._experiment.loss_spec, self._call(module, batch, True), batch)
