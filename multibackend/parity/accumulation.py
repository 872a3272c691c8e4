"""Do k micro-batches equal one large batch, for this model and this loss? And if not, why?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.experiment import Experiment
from multibackend.losses import Batch, Custom
from multibackend.optimizers import SGD
from multibackend.parity.dropout import dropout_layers
from multibackend.protocol import Execution
from multibackend.protocol.registry import load_backend
from multibackend.training.auto_batch_size import resolve
from multibackend.training.input.order import order_of
from multibackend.training.trainer import Trainer

__all__ = ["AccumulationReport", "check_accumulation"]

_TOLERANCE = 1e-10  # float64 gradients of one window, relative to the largest; sums in another order differ by 1e-15


@dataclass(frozen=True)
class AccumulationReport:
    """What `check_accumulation` found.

    Attributes:
        backend, micro_batch_size, steps: what was compared with one batch of micro_batch_size * steps examples.
        differences: for each parameter, max|g_k - g_1| relative to the largest gradient of the model.
        tolerance: what counts as equal.
        reasons: sentences that say why the two differ; empty where they match.
    """

    backend: str
    micro_batch_size: int
    steps: int
    differences: Mapping[str, float]
    tolerance: float
    reasons: tuple[str, ...]

    @property
    def matches(self) -> bool:
        return self.max_relative_difference <= self.tolerance

    @property
    def max_relative_difference(self) -> float:
        return max(self.differences.values())


@dataclass(frozen=True)
class _Window:
    """What one window did: its gradient, and which model state it changed."""

    gradient: dict[str, np.ndarray]
    changed_state: tuple[str, ...]


def check_accumulation(experiment: Experiment, backend: str) -> AccumulationReport:
    """Compare the gradient of one window of k micro-batches with that of the same examples as one batch, in float64.

    Where they differ, dropout, batch statistics and the loss are each tested on their own.

    >>> report = check_accumulation(experiment, backend="jax")   # doctest: +SKIP
    >>> report.matches, report.reasons                           # doctest: +SKIP
    (False, ("batch statistics: ...",))
    """
    experiment, _ = resolve(experiment, load_backend(backend), Execution())
    size, steps = int(experiment.micro_batch_size), max(2, experiment.accumulation.steps(0))
    order = order_of(experiment.train_data, seed=int(experiment.seed), shuffle=experiment.shuffle)
    window = _one_window(experiment, order.take(0, 0, order.available(0, 0, size * steps)))
    small = window.replace(micro_batch_size=size, gradient_accumulation_steps=steps)
    large = window.replace(micro_batch_size=size * steps, gradient_accumulation_steps=1)
    trainer = Trainer(large, backend)
    start = trainer.parameters()
    whole, parts = _run(large, backend, start), _run(small, backend, start)
    differences = _differences(whole.gradient, parts.gradient)
    reasons: tuple[str, ...] = ()
    if max(differences.values()) > _TOLERANCE:
        reasons = _reasons(small, large, trainer, start, whole)
    return AccumulationReport(backend, size, steps, differences, _TOLERANCE, reasons)


def _one_window(experiment: Experiment, data: Mapping[str, np.ndarray]) -> Experiment:
    """The experiment reduced to one plain window: its update is the gradient itself."""
    return experiment.replace(
        train_data=data,
        eval_data=None,
        shuffle=False,
        drop_last=False,
        optimizer=SGD(learning_rate=1.0),
        lr_scaling=None,
        base_batch_size=None,
        max_grad_norm=None,
        precision="float64",
        on_nonfinite="raise",
    )


def _run(experiment: Experiment, backend: str, start: Mapping[str, np.ndarray]) -> _Window:
    trainer = Trainer(experiment, backend)
    trainer.load_parameters(start)
    before = trainer.snapshot().model_state
    trainer.fit(updates=1)
    after = trainer.snapshot()
    changed = [name for name, array in after.model_state.items() if not np.array_equal(array, before[name])]
    return _Window({name: start[name] - array for name, array in after.parameters.items()}, tuple(changed))


def _differences(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, float]:
    largest = max(float(np.abs(gradient).max(initial=0.0)) for gradient in first.values()) or 1.0
    return {name: float(np.abs(first[name] - second[name]).max(initial=0.0)) / largest for name in first}


def _reasons(small: Experiment, large: Experiment, trainer: Trainer, start: Any, whole: _Window) -> tuple[str, ...]:
    """Test one suspect after the other."""
    reasons, backend, probe = [], trainer.backend, trainer.program.info.output_shape is not None
    other_seed = _run(large.replace(seed=int(large.seed) + 1), backend, start)
    random = max(_differences(whole.gradient, other_seed.gradient).values()) > _TOLERANCE
    if random:
        reasons.append(_dropout_reason(small, dropout_layers(trainer)))
    if whole.changed_state:
        shown = ", ".join(whole.changed_state[:3]) + (", ..." if len(whole.changed_state) > 3 else "")
        reasons.append(
            f"batch statistics: training changes {shown}, so a layer such as BatchNorm normalises each micro-batch of "
            f"{small.micro_batch_size} by its own statistics. Use LayerNorm or GroupNorm, larger micro-batches, or "
            'batch_statistics="frozen"'
        )
    if probe and not reasons:
        plain = [_run(e.replace(loss=Custom(_sum_of_squares)), backend, start) for e in (small, large)]
        if max(_differences(plain[1].gradient, plain[0].gradient).values()) > _TOLERANCE:
            reasons.append("the model: what it computes for an example depends on the others in its micro-batch")
        elif small.normalize == "microbatch":
            reasons.append('normalize="microbatch": the mean of means differs where micro-batches weigh unequally')
        else:
            reasons.append("the loss: its value for an example depends on the others in its micro-batch")
    return tuple(reasons)


def _dropout_reason(experiment: Experiment, layers: tuple[str, ...]) -> str:
    listed = ", ".join(map(repr, layers[:3])) + (", ..." if len(layers) > 3 else "")
    if experiment.dropout == "portable" and layers:
        return (
            f"portable dropout in {listed}: a mask is a function of (seed, update, micro-batch, layer, element), so k "
            "micro-batches have other masks than one batch, the same on every backend; equal in expectation only"
        )
    return (
        f"dropout or other randomness{f' ({listed})' if layers else ''}: the gradient depends on the seed, and k "
        "micro-batches draw other numbers than one batch; equal in expectation only"
    )


def _sum_of_squares(xp: Any, outputs: Any, batch: Batch) -> Any:
    """A loss that treats every example alone."""
    return outputs * outputs
