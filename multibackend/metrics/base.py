"""What every metric has, and what reads a target has besides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from multibackend.core.paths import Shapes, shapes_by_path
from multibackend.core.validation import Problems, is_integer
from multibackend.errors import CapabilityError, DataError
from multibackend.losses import Batch, broadcast_weights, check_labels, check_output, check_weights, picked_shape

__all__ = ["Collector", "Labelled", "Metric", "Targeted", "Weighed", "check_same_shape"]


class Collector(Protocol):
    """What a metric gathers on the host while one evaluation goes through its batches."""

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take a batch in.

        Args:
            outputs: the metric's output as a numpy array; where the path picks several arrays, a dict of
                them by path.
            batch: the fields of the data, numpy arrays.
        """
        ...

    def result(self) -> float:
        """Compute the metric of all that was taken in; NaN where nothing has a weight."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What every metric has.

    Args:
        name: its key in the result of an evaluation.
        output: which of several outputs it is of, a dotted path into the dict, tuple, dataclass or object that
            the model returns: "cls", "heads.0"; None for all that it returns.
    """

    name: str = ""
    output: str | None = None

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        if not isinstance(self.name, str) or not self.name:
            problems.add(f"name must be a string that is not empty, got {self.name!r}", wrong_type=True)
        check_output(problems, self.output)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a subclass's own arguments."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the metric {self.name!r}"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the data that this metric reads."""
        return ()

    @property
    def better(self) -> str:
        """ "min" where a smaller value is the better one, "max" where a larger one is."""
        return "min"

    @property
    def over_set(self) -> bool:
        """Whether it is no mean: then its `collector` sees the outputs of every batch on the host."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the metric's value: () for a number."""
        return ()

    def check_data(self, batch: Batch, shapes: Shapes) -> None:
        """Raise `DataError` where a numpy batch is nothing that this metric can read.

        `shapes` are those of the model's outputs by their paths, for a batch of some other size.
        """

    def check_outputs(self, outputs: Any, batch: Batch) -> None:
        """Raise `DataError` where outputs and batch, of numpy or a framework, do not fit each other."""

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        """Values per element, or (values, weights)."""
        raise NotImplementedError(f"{type(self).__name__} must define its values per element")

    def sums(self, xp: Any, outputs: Any, batch: Batch) -> tuple[Any, Any]:
        """Sum a batch: w * value, of `shape`, and w, a number. Asked for where `shape` is not ()."""
        raise NotImplementedError(f"{type(self).__name__} must define its sums")

    def finish(self, mean: float) -> float:
        """Compute the metric from the weighted mean of its values."""
        return mean

    def result(self, total: Any, weight: float) -> Any:
        """Compute the metric from its sums over the whole evaluation set; NaN if nothing has a weight."""
        return self.finish(float(total / weight)) if weight > 0 else math.nan

    def collector(self) -> Collector:
        """Return what gathers the outputs of one evaluation. Asked for where `over_set`."""
        raise CapabilityError(f"{type(self).__name__} must define its collector")


@dataclass(frozen=True, kw_only=True)
class Targeted(Metric):
    """A metric with a target."""

    target: str

    def _check(self, problems: Problems) -> None:
        problems.field_name("target", self.target)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.target,)


@dataclass(frozen=True, kw_only=True)
class Weighed(Targeted):
    """A metric whose elements may have weights: `weights` names a field [batch, ...] of them."""

    weights: str | None = None

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        if self.weights is not None:
            problems.field_name("weights", self.weights)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.target,) if self.weights is None else (self.target, self.weights)

    def check_data(self, batch: Batch, shapes: Shapes) -> None:
        super().check_data(batch, shapes)
        if self.weights is not None:
            check_weights(self.weights, np.asarray(batch[self.weights]))

    def weights_of(self, batch: Batch, shape: tuple[int, ...]) -> np.ndarray:
        """Return a weight for each element of a target of some shape, float64; 1 where there is no field."""
        if self.weights is None:
            return np.ones(shape)
        weights = broadcast_weights(np.asarray(batch[self.weights], np.float64), shape)
        return np.broadcast_to(weights, shape)


@dataclass(frozen=True, kw_only=True)
class Labelled(Targeted):
    """A metric of integer labels [batch, ...] and logits [batch, ..., classes]."""

    ignore_index: int = -100

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        if not is_integer(self.ignore_index):
            problems.add(f"ignore_index must be an integer, got {self.ignore_index!r}", wrong_type=True)

    def check_data(self, batch: Batch, shapes: Shapes) -> None:
        labels = np.asarray(batch[self.target])
        if labels.dtype.kind not in "iub":
            raise DataError(f"{self.title}: the target {self.target!r} must hold integer labels, got {labels.dtype}")
        shape = shapes.get(self.output or "")
        # of one logit, for two classes, and of outputs that do not fit, the classes are not known here
        if shape and len(shape) == labels.ndim + 1 and shape[-1] > 1:
            check_labels(f"{self.title}: ", self.target, labels, shape[-1], self.ignore_index)

    def check_outputs(self, outputs: Any, batch: Batch) -> None:
        shape = picked_shape(self.title, self.output, _below(self.output, outputs))
        labels = tuple(batch[self.target].shape)
        if shape[:-1] != labels:
            raise DataError(
                f"{self.title}: logits must have the shape of the labels and one more axis, the classes, at the "
                f"end; got logits {shape} and labels {labels}"
            )


def check_same_shape(metric: Targeted, outputs: Any, target: Any) -> None:
    """Raise `DataError` unless outputs and target have one shape: frameworks broadcast in different ways."""
    shape = picked_shape(metric.title, metric.output, _below(metric.output, outputs))
    if shape != tuple(target.shape):
        raise DataError(
            f"{metric.title}: the model's outputs have shape {shape}, the target {metric.target!r} has "
            f"{tuple(target.shape)}; they must be equal. Reshape the one that is wrong, for example "
            "target[:, None] for outputs of shape [batch, 1]"
        )


def _below(output: str | None, picked: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what was picked, by paths from the top of the model's outputs."""
    shapes = shapes_by_path(picked)
    if output is None:
        return shapes
    return {f"{output}.{path}" if path else output: shape for path, shape in shapes.items()}
