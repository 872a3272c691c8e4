"""Do k micro-batches equal one large batch, for this model and this loss? And if not, why?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.paths import arrays_by_path
from multibackend.core.text import Block, Line, Readable
from multibackend.core.validation import Problems
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

# float64 gradients of one window, relative to the largest: sums in another order differ by 1e-15
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class AccumulationReport(Readable):
    """What `check_accumulation` found; `print(report)` says it in words.

    Attributes:
        backend, micro_batch_size, steps: compared with one batch of micro_batch_size * steps.
        differences: for each parameter, max|g_k - g_1| relative to the model's largest gradient.
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
        """Whether every difference is within the tolerance."""
        return self.max_relative_difference <= self.tolerance

    @property
    def max_relative_difference(self) -> float:
        """The largest of the differences."""
        return max(self.differences.values())

    def blocks(self) -> Sequence[Block]:
        """Whether k micro-batches equal one batch, and why not."""
        sizes = f"{self.steps} × {self.micro_batch_size}"
        whole = f"one batch of {self.steps * self.micro_batch_size}"
        verdict = "equal" if self.matches else "do NOT equal"
        sentence = (
            f"{self.backend}: {sizes} micro-batches {verdict} {whole}: largest gradient difference "
            f"{self.max_relative_difference:.1e}, tolerance {self.tolerance:.0e} (float64)"
        )
        reasons = [Line(f"  - {reason}") for reason in self.reasons]
        return [Line(sentence, "good" if self.matches else "bad"), *reasons]


@dataclass(frozen=True)
class _Window:
    """The effect of one window: its gradient, and the names of the model state that it changed."""

    gradient: dict[str, np.ndarray]
    changed_state: tuple[str, ...]


def check_accumulation(experiment: Experiment, backend: str) -> AccumulationReport:
    """Compare the gradient of k micro-batches with that of one batch of them, in float64.

    Where they differ, dropout, batch statistics and the loss are each tested on their own.

    >>> report = check_accumulation(experiment, backend="jax")   # doctest: +SKIP
    >>> report.matches, report.reasons                           # doctest: +SKIP
    (False, ("batch statistics: ...",))
    """
    problems = Problems("check_accumulation")
    problems.instance("experiment", experiment, Experiment, "a multibackend.Experiment")
    problems.raise_if_any()
    experiment, _ = resolve(experiment, load_backend(backend), Execution())
    size = int(experiment.micro_batch_size)
    steps = max(2, experiment.held_steps)  # a single one is one batch already
    window = _one_window(experiment, size * steps)
    small = window.replace(micro_batch_size=size, gradient_accumulation_steps=steps)
    large = window.replace(micro_batch_size=size * steps, gradient_accumulation_steps=1)
    trainer = Trainer(large, backend)
    start = trainer.parameters()
    whole = _run(large, backend, start)
    differences = _differences(whole, _run(small, backend, start))
    reasons: tuple[str, ...] = ()
    if max(differences.values()) > _TOLERANCE:
        reasons = _reasons(small, large, trainer, start, whole)
    return AccumulationReport(backend, size, steps, differences, _TOLERANCE, reasons)


def _one_window(experiment: Experiment, examples: int) -> Experiment:
    """Reduce an experiment to one window of examples, whose update is the gradient itself.

    Clipping and a scaled rate would change it, and a lower precision would hide small differences.
    """
    order = order_of(experiment.train_data, seed=int(experiment.seed), shuffle=experiment.shuffle)
    return experiment.replace(
        train_data=order.take(0, 0, order.available(0, 0, examples)),
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


def _run(experiment: Experiment, backend: str, start: Arrays) -> _Window:
    """Train one window from given parameters."""
    trainer = Trainer(experiment, backend)
    trainer.load_parameters(start)
    before = trainer.snapshot().model_state
    trainer.fit(updates=1, progress=False)
    after = trainer.snapshot()
    # p' = p - g under plain descent at rate 1
    gradient = {name: start[name] - array for name, array in after.parameters.items()}
    changed = [name for name, array in after.model_state.items() if not np.array_equal(array, before[name])]
    return _Window(gradient, tuple(changed))


def _differences(first: _Window, second: _Window) -> dict[str, float]:
    """Measure each difference against the largest gradient of the model, by parameter."""
    largest = max(float(np.abs(gradient).max(initial=0.0)) for gradient in first.gradient.values()) or 1.0
    differences = {}
    for name, gradient in first.gradient.items():
        differences[name] = float(np.abs(gradient - second.gradient[name]).max(initial=0.0)) / largest
    return differences


def _differ(first: _Window, second: _Window) -> bool:
    return max(_differences(first, second).values()) > _TOLERANCE


def _reasons(small: Experiment, large: Experiment, trainer: Trainer, start: Arrays, whole: _Window) -> tuple[str, ...]:
    """Test one suspect after the other."""
    backend = trainer.backend
    reasons = []
    # from the same parameters another seed can only change what is drawn while training
    other_seed = _run(large.replace(seed=int(large.seed) + 1), backend, start)
    if _differ(whole, other_seed):
        reasons.append(_dropout_reason(small, dropout_layers(trainer)))
    if whole.changed_state:
        reasons.append(
            f"batch statistics: training changes {_listed(whole.changed_state)}, so a layer such as BatchNorm "
            f"normalises each micro-batch of {small.micro_batch_size} by its own statistics. Use LayerNorm or "
            'GroupNorm, larger micro-batches, or batch_statistics="frozen"'
        )
    # either of these would make the next runs differ too
    if not reasons:
        reasons.append(_model_or_loss_reason(small, large, backend, start))
    return tuple(reasons)


def _model_or_loss_reason(small: Experiment, large: Experiment, backend: str, start: Arrays) -> str:
    """Tell the model from the loss by a loss that treats every example alone."""
    plain = Custom(_sum_of_squares)
    parts = _run(small.replace(loss=plain), backend, start)
    whole = _run(large.replace(loss=plain), backend, start)
    if _differ(whole, parts):
        return "the model: what it computes for an example depends on the others in its micro-batch"
    if small.normalize == "microbatch":
        return 'normalize="microbatch": the mean of means differs where micro-batches weigh unequally'
    return "the loss: its value for an example depends on the others in its micro-batch"


def _dropout_reason(experiment: Experiment, layers: tuple[str, ...]) -> str:
    listed = _listed([repr(layer) for layer in layers])
    if experiment.dropout == "portable" and layers:
        return (
            f"portable dropout in {listed}: a mask is a function of (seed, update, micro-batch, layer, element), so k "
            "micro-batches have other masks than one batch, the same on every backend; equal in expectation only"
        )
    where = f" ({listed})" if layers else ""
    return (
        f"dropout or other randomness{where}: the gradient depends on the seed, and k micro-batches draw other numbers "
        "than one batch; equal in expectation only"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


def _sum_of_squares(xp: Any, outputs: Any, batch: Batch) -> Any:
    """A loss that treats every example alone, of all outputs that have one entry for each."""
    size = len(next(iter(batch.values())))
    total = 0.0
    for array in arrays_by_path(outputs).values():
        if array.shape[:1] == (size,):
            rows = xp.reshape(array, (size, -1))
            total = total + xp.sum(rows * rows, axis=-1)
    return total
