"""The values that cross the port, in canonical names and layouts where they hold a model's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays, Fields
from multibackend.core.history import term_name
from multibackend.core.precision import LossScale
from multibackend.experiment import Experiment

__all__ = [
    "MOST_UNREAD_WINDOWS",
    "EvaluationSums",
    "Execution",
    "NativeArrays",
    "PartialWindow",
    "Position",
    "Rates",
    "Snapshot",
    "WindowResults",
    "WindowStack",
    "inverse",
    "is_native_slot",
]


# windows that a trainer hands to the device before it reads what they measured
MOST_UNREAD_WINDOWS = 256


@dataclass(frozen=True)
class Execution:
    """How a program executes windows; never visible in the result.

    Attributes:
        device: a name from the backend's devices; None for its first one.
        mode: one of the backend's execution modes, or "auto".
        windows_per_dispatch: windows handed to the device at once; None lets the backend choose.
        layout: how the run is spread over devices; None for one device.
    """

    device: str | None = None
    mode: str = "auto"
    windows_per_dispatch: int | None = None
    layout: None = None


@dataclass(frozen=True)
class Position:
    """The place in the data: the next example is number `offset` of the order of epoch `epoch`."""

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class WindowStack:
    """One or more consecutive windows of an epoch.

    Attributes:
        fields: arrays [room, steps, micro-batch, ...] with room for at least `windows` windows;
            what lies past `windows` and `counts` is unspecified.
        counts: int32 [windows], how many full micro-batches of `fields` each window has.
        divisors: float64 [windows, steps, terms], what the weighted sum of a micro-batch's losses
            is divided by, for each term of the loss: `multibackend.training.input.divisors` has the
            formula. Where `weighed_by_model`, the weights are left out of it, and the backend
            divides by what the loss gave besides.
        ragged: the last micro-batch of the last window, arrays [r, ...] with r less than a
            micro-batch; else None.
        ragged_divisors: float64 [terms], its divisors.
        weights: float64 [windows, terms], the sum of the weights of each window; NaN where
            `weighed_by_model`.
        examples: int64 [windows].
        weighed_by_model: whether the weights are known only once the model has run. Then there
            is one term.
        start, stop: the position before the first and after the last window.
    """

    fields: Fields
    counts: np.ndarray
    divisors: np.ndarray
    ragged: Fields | None
    ragged_divisors: np.ndarray
    weights: np.ndarray
    examples: np.ndarray
    weighed_by_model: bool
    start: Position
    stop: Position

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [windows], how many micro-batches each window has, the ragged one included."""
        sizes = self.counts.astype(np.int64)
        sizes[-1] += self.ragged is not None
        return sizes

    def micro_batches(self, window: int) -> Iterator[tuple[Fields, np.ndarray]]:
        """The micro-batches of one window, each with its divisors [terms], the ragged one last."""
        # views, no copies
        for step in range(self.counts[window]):
            yield {name: array[window, step] for name, array in self.fields.items()}, self.divisors[window, step]
        if self.ragged is not None and window == len(self) - 1:
            yield self.ragged, self.ragged_divisors


@dataclass(frozen=True)
class Rates:
    """Learning rates by update index: `values[i]` belongs to the update with index `first + i`.

    A table rather than one number, because only the device knows whether the window
    before was skipped.
    """

    first: int
    values: np.ndarray

    @staticmethod
    def room(windows_per_dispatch: int) -> int:
        """How many rates a trainer hands over at least, a constant of the run because programs are compiled for it:
        those of two dispatches, and of all windows whose results may be unread.
        """
        return 2 * windows_per_dispatch + MOST_UNREAD_WINDOWS


@dataclass(frozen=True)
class WindowResults:
    """What `run` measured, one entry per window, on the host.

    Attributes:
        terms: float64 [windows, terms], scale * weighted mean of each term of the loss; 0 where its
            weights sum to 0, NaN where those of all do and the window is finite.
        grad_norm: float64 [windows], the global norm after normalisation and before clipping.
        weights: float64 [windows, terms], the sums of the weights.
        finite: bool [windows], whether both the gradient and every term of the loss were finite.
        applied: bool [windows], whether the window made an update.
        gradient_norms: float64 [windows, parameters], in the order of `Program.parameter_names`;
            normalised as `grad_norm` is.
        loss_scale: float64 [windows], what the gradients were computed with; 1 but for fp16. A
            gradient that is not finite at a scale above 1, of a loss that is, is an overflow, which
            never fails a run.
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
        finite_loss = np.isfinite(self.terms).all(axis=1)
        return ~self.finite & finite_loss & (self.loss_scale > LossScale.smallest)


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over batches, by name: weighted values and weights. One entry per metric, and "loss", or "loss/NAME" for
    each of several terms, without its scale.

    A value is a number, or an array of the metric's `shape`.

    Attributes:
        values, weights: of the terms of the loss and of `Experiment.summed_metrics`.
        collected: for each batch what `Experiment.collected_outputs` pick, `multibackend.core.paths.collect`.
    """

    values: Mapping[str, Any]
    weights: Mapping[str, float]
    collected: Sequence[Mapping[str, Arrays]] = ()

    @classmethod
    def unpack(
        cls, flat: np.ndarray, experiment: Experiment, collected: Sequence[Mapping[str, Arrays]] = ()
    ) -> EvaluationSums:
        """Read one float64 array: for each term of the loss, then each metric, its flattened value and its weight."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name in experiment.loss_terms:
            shapes[term_name(name, len(experiment.loss_terms))] = ()
        for metric in experiment.summed_metrics:
            shapes[metric.name] = metric.shape
        values, weights = {}, {}
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            values[name] = flat[start:stop].reshape(shape)[()]  # a number where the shape is ()
            weights[name] = float(flat[stop])
            start = stop + 1
        return cls(values, weights, collected)

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        """Add the batches of both; what they collected is not kept."""
        values = {name: value + other.values[name] for name, value in self.values.items()}
        weights = {name: weight + other.weights[name] for name, weight in self.weights.items()}
        return EvaluationSums(values, weights)


@dataclass(frozen=True)
class Snapshot:
    """A training state on the host, in canonical names and layouts: what crosses between frameworks.

    Attributes:
        parameters: float arrays.
        model_state: BatchNorm statistics and other state that is no parameter.
        optimizer: by slot (torch's names: "momentum_buffer", "exp_avg", "exp_avg_sq"),
            then by parameter. Those of a framework's own optimizer have a dot in their name.
        update: updates made.
        loss_scale: of an fp16 run; None in other precisions.
        ema: the moving average of the parameters, by their names; empty where none is kept. A state
            that is restored without it begins the average at its parameters.
    """

    parameters: Arrays
    model_state: Arrays = field(default_factory=dict)
    optimizer: Mapping[str, Arrays] = field(default_factory=dict)
    update: int = 0
    loss_scale: LossScale | None = None
    ema: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class PartialWindow:
    """A window of which some micro-batches have run, on the host, in canonical names and layouts.

    The `Snapshot` beside it is the state before the window.

    Attributes:
        done: micro-batches that have run.
        accumulator: the sum of their gradients by parameter, times the loss scale in fp16; a
            parameter that none of them used may be absent.
        model_state: BatchNorm statistics and the like as those micro-batches left them.
        totals: [rows, terms], weighted sums of losses, each to be divided by its divisor and then
            added. A backend that adds on the device has one row, another one a row per micro-batch.
        inverse_divisors: float64 [rows, terms], 1 / divisor.
        weights: float64 [rows, terms], the sums of the weights that only the model's run told; [0,
            terms] where they are known from the data.
    """

    done: int
    accumulator: Arrays
    model_state: Arrays
    totals: np.ndarray
    inverse_divisors: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class NativeArrays:
    """Translates between canonical arrays and those of one model's own framework. `ProgramInfo.native_arrays`.

    Attributes:
        to_native: parameters and model state by canonical name as the framework's own arrays by its
            own names; one that the framework lists several times (tied weights) comes as often.
        to_canonical: the inverse. Names that the model does not have stay as they are, so that
            they are reported.
    """

    to_native: Callable[[Arrays], dict[str, np.ndarray]]
    to_canonical: Callable[[Arrays], dict[str, np.ndarray]]


def is_native_slot(slot: str) -> bool:
    """Whether a slot of an optimizer is one framework's own: of any shape, and of no use to another.

    >>> is_native_slot("exp_avg"), is_native_slot("torch.prev")
    (False, True)
    """
    return "." in slot


def inverse(divisors: np.ndarray) -> np.ndarray:
    """1 / divisors, which backends multiply by; 0 where a divisor is 0, because nothing weighs there.

    >>> inverse(np.array([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    return np.divide(1.0, divisors, out=np.zeros(np.shape(divisors)), where=divisors != 0)
