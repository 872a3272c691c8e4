"""Metrics that are a weighted mean over the whole evaluation set, or a function of one.

Each is written once against the array API standard; `xp` is the backend's array namespace. Their sums are taken
where the model runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.validation import Problems
from multibackend.errors import DataError
from multibackend.losses import Batch
from multibackend.metrics.base import Labelled, Weighed, check_same_shape

__all__ = ["RMSE", "Accuracy", "ConfusionMatrix", "MeanAbsoluteError", "MeanSquaredError", "Perplexity", "TopKAccuracy"]


_MOST_CLASSES = 2**14  # the counts of a confusion matrix of so many take 2 GiB


@dataclass(frozen=True, kw_only=True)
class _Labelled(Labelled):
    """What reads labels in a framework's own arrays."""

    def _labels(self, xp: Any, batch: Batch) -> Any:
        """Return the labels in a type that holds `ignore_index`: in uint8, -100 has the bits of 156."""
        return xp.astype(batch[self.target], xp.int32)

    def _weights(self, xp: Any, labels: Any, like: Any) -> Any:
        return xp.astype(labels != self.ignore_index, like.dtype)

    def _at_labels(self, xp: Any, scores: Any, labels: Any) -> Any:
        """Pick each label's score [batch, ..., 1] out of [batch, ..., classes]."""
        # ignore_index is no class and would be out of bounds: class 0 instead, as its weight is 0.
        index = xp.where(labels == self.ignore_index, xp.zeros_like(labels), labels)
        # In the namespace's own dtype of indices, which argmax has: torch takes int64 only.
        index = xp.astype(index, xp.argmax(scores, axis=-1).dtype)
        return xp.take_along_axis(scores, index[..., None], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Labelled):
    """The share of labels [batch, ...] whose class has the largest logit [batch, ..., classes]."""

    name: str = "accuracy"

    @property
    def better(self) -> str:
        return "max"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        hits = xp.argmax(outputs, axis=-1) == labels
        return xp.astype(hits, outputs.dtype), self._weights(xp, labels, outputs)


@dataclass(frozen=True, kw_only=True)
class TopKAccuracy(_Labelled):
    """The share of labels whose class has fewer than `k` classes with a larger logit."""

    name: str = "top_k_accuracy"
    k: int = 5

    @property
    def better(self) -> str:
        return "max"

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.integer("k", self.k, minimum=1)

    def check_outputs(self, outputs: Any, batch: Batch) -> None:
        super().check_outputs(outputs, batch)
        classes = int(outputs.shape[-1])
        if self.k > classes:
            raise DataError(f"{self.title}: k={self.k} of {classes} classes is always right; take a smaller k")

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        chosen = self._at_labels(xp, outputs, labels)
        # Counting the larger ones needs no sort, and leaves nothing to an order among equals.
        larger = xp.sum(xp.astype(outputs > chosen, xp.int32), axis=-1)
        return xp.astype(larger < self.k, outputs.dtype), self._weights(xp, labels, outputs)


@dataclass(frozen=True, kw_only=True)
class Perplexity(_Labelled):
    """exp of the mean cross entropy of logits [batch, ..., classes] and labels [batch, ...]."""

    name: str = "perplexity"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        # Softmax does not change with a constant; without the largest logit exp cannot overflow.
        shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
        log_normaliser = xp.log(xp.sum(xp.exp(shifted), axis=-1))
        chosen = self._at_labels(xp, shifted, labels)[..., 0]
        return log_normaliser - chosen, self._weights(xp, labels, outputs)

    def finish(self, mean: float) -> float:
        # exp overflows a float64 at 709.8, where math.exp raises.
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix(_Labelled):
    """How often each class was taken for each, over the whole evaluation set.

        M[i, j] = number of labels i [batch, ...] whose class j has the largest logit

    int64 [classes, classes] from logits [batch, ..., classes]: rows are labels, columns
    predictions, as in `sklearn.metrics.confusion_matrix`; `ignore_index` is not counted.

    Raises:
        DataError: the logits are of another number of classes, or a label is no class.

    >>> ConfusionMatrix(target="label", classes=10).shape
    (10, 10)
    """

    name: str = "confusion_matrix"
    classes: int

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.integer("classes", self.classes, minimum=2, maximum=_MOST_CLASSES)

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.classes), int(self.classes))

    def sums(self, xp: Any, outputs: Any, batch: Batch) -> tuple[Any, Any]:
        if outputs.shape[-1] != self.classes:
            raise DataError(
                f"metric {self.name!r}: the outputs {tuple(outputs.shape)} have "
                f"{outputs.shape[-1]} classes on their last axis, the metric classes={self.classes}; "
                f"pass classes={outputs.shape[-1]}"
            )
        labels = self._labels(xp, batch)
        predicted = xp.astype(xp.argmax(outputs, axis=-1), xp.int32)
        # Counts as a product of two one-hot matrices: exact in float32 up to 2^24 in a batch, and
        # without a scatter, which the array API lacks.
        # 0, 1, 2, ... on the device of the outputs, which arange() would have to be told.
        row = xp.ones_like(outputs[(0,) * (outputs.ndim - 1)], dtype=xp.int32)
        classes = xp.cumulative_sum(row, dtype=xp.int32) - 1
        rows = xp.astype(xp.reshape(labels, (-1, 1)) == classes, xp.float32)
        columns = xp.astype(xp.reshape(predicted, (-1, 1)) == classes, xp.float32)
        used = xp.astype(xp.reshape(labels, (-1, 1)) != self.ignore_index, xp.float32)
        return xp.matmul((rows * used).T, columns), xp.sum(used)

    def result(self, total: Any, weight: float) -> np.ndarray:
        counts = np.rint(total).astype(np.int64)
        # A label that is no class has a row of zeros: it is in the weight and in no count.
        expected = round(weight)
        if counts.sum() != expected:
            raise DataError(
                f"metric {self.name!r}: {expected - counts.sum()} of {expected} labels of "
                f"{self.target!r} are outside [0, {self.classes}) and not ignore_index={self.ignore_index}"
            )
        return counts


@dataclass(frozen=True, kw_only=True)
class _Residual(Weighed):
    def check_outputs(self, outputs: Any, batch: Batch) -> None:
        check_same_shape(self, outputs, batch[self.target])

    def _weighted(self, values: Any, batch: Batch) -> Any:
        return values if self.weights is None else (values, batch[self.weights])


@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError(_Residual):
    """The mean of |output - target| over every scalar; both of one shape.

    `weights` names a field [batch, ...] of weights, for example 0 for padding.
    """

    name: str = "mean_absolute_error"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        return self._weighted(xp.abs(outputs - batch[self.target]), batch)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(_Residual):
    """The mean of (output - target)^2 over every scalar; both of one shape.

    `weights` names a field [batch, ...] of weights, for example 0 for padding.
    """

    name: str = "mean_squared_error"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        return self._weighted((outputs - batch[self.target]) ** 2, batch)


@dataclass(frozen=True, kw_only=True)
class RMSE(_Residual):
    """The square root of the mean of (output - target)^2 over every scalar of the whole evaluation set.

    `weights` names a field [batch, ...] of weights, for example 0 for padding.

    >>> RMSE(target="y", output="reg").name
    'rmse'
    """

    name: str = "rmse"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        return self._weighted((outputs - batch[self.target]) ** 2, batch)

    def finish(self, mean: float) -> float:
        return math.sqrt(mean)
