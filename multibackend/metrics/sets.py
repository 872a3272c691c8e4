"""Metrics that are no mean of values: of counts, of sums by bin, of an order among all scores.

Outputs come to the host batch by batch. All arithmetic is numpy's in float64, so that neither the backend nor the
batch size shows; counts and sums are kept where they are exact, scores and labels where they must be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.extras import import_extra
from multibackend.core.paths import is_array
from multibackend.core.validation import Problems
from multibackend.errors import DataError
from multibackend.losses import Batch
from multibackend.metrics.base import Collector, Labelled, Weighed, check_same_shape

__all__ = ["F1", "R2", "ROCAUC", "CalibrationError"]

AVERAGES = ("macro", "micro", "weighted", "binary")
MULTICLASS = ("ovr", "ovo")


@dataclass(frozen=True, kw_only=True)
class _Scored(Weighed, Labelled):
    """A metric of labels and scores: logits by class, or one logit for each label 0 or 1."""

    @property
    def over_set(self) -> bool:
        return True

    def check_outputs(self, outputs: Any, batch: Batch) -> None:
        if is_array(outputs) and outputs.shape == np.shape(batch[self.target]):
            return  # one logit for each label
        super().check_outputs(outputs, batch)

    def read(self, outputs: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return logits [n] or [n, classes] of the labels that count, those labels [n] and their weights [n]."""
        self.check_outputs(outputs, batch)
        labels = np.asarray(batch[self.target]).astype(np.int64)
        logits = np.asarray(outputs, np.float64)
        used = labels != self.ignore_index
        weights = self.weights_of(batch, labels.shape)
        used &= weights > 0
        classes = 2 if logits.ndim == labels.ndim else logits.shape[-1]
        labels, logits, weights = labels[used], logits[used], weights[used]
        outside = labels[(labels < 0) | (labels >= classes)]
        if outside.size:
            raise DataError(
                f"{self.title}: label {int(outside[0])} in {self.target!r} is outside [0, {classes}) and is not "
                f"ignore_index={self.ignore_index}"
            )
        return logits, labels, weights


@dataclass(frozen=True, kw_only=True)
class F1(_Scored):
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), over the whole evaluation set.

    Outputs are logits [batch, ..., classes], of which the largest is the prediction, or one logit for each label
    0 or 1, predicted 1 above `threshold`. As `sklearn.metrics.f1_score`; only counts by class are kept.

    Args:
        target: field of integer labels [batch, ...]; `ignore_index` is not counted.
        average: "macro", the mean over the classes that occur as a label or a prediction; "weighted", that mean
            weighted by how many labels each has; "micro", of the counts of all classes; "binary", of class 1.
        threshold: of the single logit; 0 is a probability of 1/2.
        weights: field [batch, ...] of weights, for example 0 for padding.

    >>> F1(target="label", average="binary").better
    'max'
    """

    name: str = "f1"
    average: str = "macro"
    threshold: float = 0.0

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.choice("average", self.average, AVERAGES)
        problems.number("threshold", self.threshold, minimum=-math.inf)

    @property
    def better(self) -> str:
        return "max"

    def collector(self) -> Collector:
        return _Counts(self)


class _Counts:
    """For each class the weight of true positives, of predictions and of labels."""

    def __init__(self, metric: F1) -> None:
        self._metric = metric
        self._counts = np.zeros((3, 2))

    def add(self, outputs: Any, batch: Batch) -> None:
        logits, labels, weights = self._metric.read(outputs, batch)
        if logits.ndim == 1:
            classes = 2
            predicted = (logits > self._metric.threshold).astype(np.int64)
        else:
            classes = logits.shape[-1]
            predicted = logits.argmax(axis=-1)
        if self._metric.average == "binary" and classes != 2:
            raise DataError(
                f"{self._metric.title}: average='binary' is for two classes, the outputs have {classes}; pass "
                "average='macro', 'weighted' or 'micro'"
            )
        hits = np.where(predicted == labels, weights, 0)
        rows = [np.bincount(labels, hits, classes)]
        rows += [np.bincount(classified, weights, classes) for classified in (predicted, labels)]
        missing = max(0, classes - self._counts.shape[1])
        self._counts = np.pad(self._counts, ((0, 0), (0, missing))) + np.stack(rows)

    def result(self) -> float:
        hits, predicted, labels = self._counts
        if labels.sum() == 0:
            return math.nan
        if self._metric.average == "micro":
            return float(2 * hits.sum() / (predicted.sum() + labels.sum()))
        occur = predicted + labels > 0
        scores = np.divide(2 * hits, predicted + labels, out=np.zeros_like(hits), where=occur)
        if self._metric.average == "binary":
            return float(scores[1])
        if self._metric.average == "weighted":
            return float(scores @ labels / labels.sum())
        return float(scores[occur].mean())


@dataclass(frozen=True, kw_only=True)
class ROCAUC(_Scored):
    """The area under the ROC curve: how often a positive example scores higher than a negative one.

    Outputs are one logit or probability for each label 0 or 1, logits [batch, ..., 2], or logits
    [batch, ..., classes] of more classes, whose softmax is scored one class against the rest ("ovr") or against
    each other one ("ovo"), and averaged over classes. `sklearn.metrics.roc_auc_score` computes it: install
    `multibackend[metrics]`. The scores and labels of the whole set are kept until then.

    Args:
        target: field of integer labels [batch, ...]; `ignore_index` is not counted.
        multiclass: "ovr" or "ovo"; of two classes there is one area.
        weights: field [batch, ...] of weights; of several classes only with "ovr".

    Raises:
        DataError: a class has no label in the evaluation set, so that there is no area.
        PackageNotInstalledError: scikit-learn is missing; told when the metric is made.
    """

    name: str = "roc_auc"
    multiclass: str = "ovr"

    def __post_init__(self) -> None:
        import_extra("sklearn.metrics", "metrics", by="ROCAUC")
        super().__post_init__()

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.choice("multiclass", self.multiclass, MULTICLASS)

    @property
    def better(self) -> str:
        return "max"

    def collector(self) -> Collector:
        return _Scores(self)


class _Scores:
    """Keeps the scores and labels that count."""

    def __init__(self, metric: ROCAUC) -> None:
        self._metric = metric
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, outputs: Any, batch: Batch) -> None:
        logits, labels, weights = self._metric.read(outputs, batch)
        if logits.ndim == 2:
            logits = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else _softmax(logits)
        self._kept.append((logits, labels, weights))

    def result(self) -> float:
        scores, labels, weights = (np.concatenate(arrays) for arrays in zip(*self._kept, strict=True))
        if labels.size == 0:
            return math.nan
        classes = 2 if scores.ndim == 1 else scores.shape[1]
        missing = sorted(set(range(classes)) - set(np.unique(labels).tolist()))
        if missing:
            raise DataError(
                f"{self._metric.title}: the evaluation set has no label {missing[0]} in {self._metric.target!r}, and "
                "an area under the curve needs examples of every class; evaluate on more data"
            )
        options: dict[str, Any] = {"sample_weight": None if self._metric.weights is None else weights}
        if classes > 2:
            options["multi_class"] = self._metric.multiclass
        return float(import_extra("sklearn.metrics", "metrics", by="ROCAUC").roc_auc_score(labels, scores, **options))


@dataclass(frozen=True, kw_only=True)
class CalibrationError(_Scored):
    """The expected calibration error: how far confidence is from accuracy, over `bins` bins of confidence.

        ECE = sum over bins b of (n_b / n) * |accuracy_b - confidence_b|

    Confidence is the probability of the predicted class: of the softmax of logits [batch, ..., classes], or of the
    sigmoid of one logit for each label 0 or 1. Bins are (0, 1/bins], (1/bins, 2/bins], ...; n counts labels, or
    their weights. Source: Guo et al. 2017. Only sums by bin are kept.

    Args:
        target: field of integer labels [batch, ...]; `ignore_index` is not counted.
        bins: how many, of equal width.
        weights: field [batch, ...] of weights, for example 0 for padding.
    """

    name: str = "calibration_error"
    bins: int = 15

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.integer("bins", self.bins, minimum=1)

    def collector(self) -> Collector:
        return _Bins(self)


class _Bins:
    """For each bin the weight of its labels, of its hits, and its weighted confidence."""

    def __init__(self, metric: CalibrationError) -> None:
        self._metric = metric
        self._sums = np.zeros((3, int(metric.bins)))

    def add(self, outputs: Any, batch: Batch) -> None:
        logits, labels, weights = self._metric.read(outputs, batch)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=-1)
        probabilities = _softmax(logits)
        predicted = probabilities.argmax(axis=-1)
        confidence = probabilities.max(axis=-1, initial=0.0)
        bins = len(self._sums[0])
        # the upper edge belongs to the bin; rounding must not lift a confidence of 1 out of the last
        index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        hits = weights * (predicted == labels)
        self._sums += np.stack([np.bincount(index, row, bins) for row in (weights, hits, weights * confidence)])

    def result(self) -> float:
        weights, hits, confidence = self._sums
        if weights.sum() == 0:
            return math.nan
        return float(np.abs(hits - confidence).sum() / weights.sum())


@dataclass(frozen=True, kw_only=True)
class R2(Weighed):
    """The coefficient of determination: 1 - sum w (y - output)^2 / sum w (y - mean of y)^2.

    Outputs and target have one shape, [batch] or [batch, ..., columns]; of several columns the mean of theirs, as
    `sklearn.metrics.r2_score`. A column whose target is constant counts 1 where it is met exactly, else 0. Only
    sums are kept, about a mean that moves with them, so that a large mean of the target costs no digits.

    `weights` names a field [batch, ...] of weights, for example 0 for padding.
    """

    name: str = "r2"

    @property
    def better(self) -> str:
        return "max"

    @property
    def over_set(self) -> bool:
        return True

    def collector(self) -> Collector:
        return _Moments(self)


class _Moments:
    """For each column the weight, the mean of the target, and the squares about it and about the outputs."""

    def __init__(self, metric: R2) -> None:
        self._metric = metric
        self._weight: Any = 0.0
        self._mean: Any = 0.0
        self._about_mean: Any = 0.0
        self._residual: Any = 0.0

    def add(self, outputs: Any, batch: Batch) -> None:
        metric = self._metric
        target = np.asarray(batch[metric.target], np.float64)
        check_same_shape(metric, outputs, target)
        weights = metric.weights_of(batch, target.shape)
        y, w, predicted = (_columns(array) for array in (target, weights, np.asarray(outputs, np.float64)))
        weight = w.sum(axis=0)
        mean = np.divide((w * y).sum(axis=0), weight, out=np.zeros_like(weight), where=weight > 0)
        # sums about two means become sums about the mean of both (Chan, Golub and LeVeque 1983)
        total = self._weight + weight
        part = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        shift = mean - self._mean
        self._about_mean = self._about_mean + (w * (y - mean) ** 2).sum(axis=0) + shift**2 * self._weight * part
        self._mean = self._mean + shift * part
        self._weight = total
        self._residual = self._residual + (w * (y - predicted) ** 2).sum(axis=0)

    def result(self) -> float:
        if not np.all(np.asarray(self._weight) > 0):
            return math.nan
        exact = np.where(self._residual == 0, 1.0, 0.0)
        varies = self._about_mean > 0
        scores = 1 - np.divide(self._residual, self._about_mean, out=np.zeros_like(self._residual), where=varies)
        return float(np.where(varies, scores, exact).mean())


def _columns(array: np.ndarray) -> np.ndarray:
    """[batch] as one column, [batch, ..., columns] as rows of columns."""
    return array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
