"""Metrics of an evaluation, each a weighted mean over the whole evaluation set.

    metric = finish(sum(w * value) / sum(w))   over every element of every batch

Each is written once against the array API standard; `xp` is the backend's array namespace. A ragged last batch or
padded elements (weight 0) therefore cannot shift the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from multibackend.losses import Batch, check_function
from multibackend.validation import Problems

__all__ = ["Accuracy", "Custom", "MeanAbsoluteError", "Metric", "Perplexity", "TopKAccuracy"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What every metric has. `name` is its key in the result of an evaluation."""

    name: str = ""

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        if not isinstance(self.name, str):
            problems.add(f"name must be a string, got {self.name!r}", wrong_type=True)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a subclass's own arguments."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the data that this metric reads."""
        return ()

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        """Values per element, or (values, weights)."""
        raise NotImplementedError(f"{type(self).__name__} must define its values per element")

    def finish(self, mean: float) -> float:
        """The metric from the weighted mean of its values."""
        return mean


@dataclass(frozen=True, kw_only=True)
class _Targeted(Metric):
    target: str

    def _check(self, problems: Problems) -> None:
        problems.field_name("target", self.target)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.target,)


@dataclass(frozen=True, kw_only=True)
class _Labelled(_Targeted):
    ignore_index: int = -100

    def _labels(self, xp: Any, batch: Batch) -> Any:
        """The labels in a type that also holds `ignore_index`: in uint8 156 and -100 have the same bits."""
        return xp.astype(batch[self.target], xp.int32)

    def _weights(self, xp: Any, labels: Any, like: Any) -> Any:
        return xp.astype(labels != self.ignore_index, like.dtype)

    def _at_labels(self, xp: Any, scores: Any, labels: Any) -> Any:
        """The score [batch, ...] of each element's label, out of [batch, ..., classes]; any for ignored ones."""
        # ignore_index is no class: look class 0 up instead, as the weight is 0; in the namespace's own index dtype
        index = xp.where(labels == self.ignore_index, xp.zeros_like(labels), labels)
        index = xp.astype(index, xp.argmax(scores, axis=-1).dtype)
        return xp.take_along_axis(scores, index[..., None], axis=-1)


@dataclass(frozen=True, kw_only=True)
class Accuracy(_Labelled):
    """The share of labels [batch, ...] whose class has the largest logit of [batch, ..., classes]."""

    name: str = "accuracy"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        hits = xp.argmax(outputs, axis=-1) == labels
        return xp.astype(hits, outputs.dtype), self._weights(xp, labels, outputs)


@dataclass(frozen=True, kw_only=True)
class TopKAccuracy(_Labelled):
    """The share of labels whose class has fewer than `k` classes with a larger logit."""

    name: str = "top_k_accuracy"
    k: int = 5

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.integer("k", self.k, minimum=1)

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        chosen = self._at_labels(xp, outputs, labels)
        larger = xp.sum(xp.astype(outputs > chosen, xp.int32), axis=-1)
        return xp.astype(larger < self.k, outputs.dtype), self._weights(xp, labels, outputs)


@dataclass(frozen=True, kw_only=True)
class Perplexity(_Labelled):
    """exp of the mean cross entropy between logits [batch, ..., classes] and labels [batch, ...]."""

    name: str = "perplexity"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        labels = self._labels(xp, batch)
        shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
        log_normaliser = xp.log(xp.sum(xp.exp(shifted), axis=-1))
        chosen = self._at_labels(xp, shifted, labels)[..., 0]
        return log_normaliser - chosen, self._weights(xp, labels, outputs)

    def finish(self, mean: float) -> float:
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError(_Targeted):
    """The mean of |output - target| over every scalar; both of one shape."""

    name: str = "mean_absolute_error"

    def values(self, xp: Any, outputs: Any, batch: Batch) -> Any:
        return xp.abs(outputs - batch[self.target])


@dataclass(frozen=True, kw_only=True)
class Custom(Metric):
    """A metric written by the user: `(xp, outputs, batch) -> values` or `(values, weights)`.

    `function` may also map backend names to native functions `(outputs, batch) -> ...`.

    >>> Custom(name="bias", function=lambda xp, outputs, batch: outputs - batch["y"]).name
    'bias'
    """

    function: Callable[..., Any] | Mapping[str, Callable[..., Any]]

    def _check(self, problems: Problems) -> None:
        if not self.name:
            problems.add("name must be given for a custom metric: it is the key of the result")
        check_function(problems, "function", self.function)
