"""Losses from recorded outputs and labels: reduction, smoothing, ignored labels, meaning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.parity.causes.formulas import Difference, Formula, explain
from multibackend.parity.causes.functions import log_softmax, softplus

__all__ = ["RecordedLoss", "loss_difference"]

Traits = Mapping[str, Any]

_SMOOTHINGS = (0.0, 0.1, 0.05, 0.2, 0.01, 0.02, 0.15, 0.3)
_REDUCTIONS = ("mean", "sum", "mean over examples of sums")
# of labels with a second axis; with one label per example these are the mean or the sum once more
_REDUCTIONS_OF_SEQUENCES = (
    "mean",
    "sum",
    "sum over examples' means",
    "mean over examples of sums",
    "mean over all",
    "mean of means",
)
_REDUCTIONS_OF_LABELS = ("mean", "sum", "mean over all")


@dataclass(frozen=True)
class RecordedLoss:
    """What one side knows when it computes a loss.

    Attributes:
        outputs: of the model, for one or several micro-batches.
        batches: their fields.
        losses: the loss of each.
        smoothings, ignored: values to try, for example those in the experiment's loss.
    """

    outputs: Sequence[Array]
    batches: Sequence[Arrays]
    losses: Sequence[float]
    smoothings: Sequence[float] = ()
    ignored: Sequence[int] = ()


def loss_difference(sides: tuple[RecordedLoss, RecordedLoss]) -> Difference | None:
    """The formulas of the two losses, where each gives the recorded values of all micro-batches."""
    first, second = sides
    targets = (np.asarray(first.losses, np.float64), np.asarray(second.losses, np.float64))
    for formulas_of in (_cross_entropies, _regressions, _binaries):
        difference = explain(formulas_of(first), list(formulas_of(second)), targets)
        if difference is not None:
            return difference
    return None


def _each(side: RecordedLoss, formula: Callable[[Array, Arrays, Traits], float], traits: Traits) -> Array:
    """A formula on every micro-batch: an array with an entry for each."""
    pairs = zip(side.outputs, side.batches, strict=True)
    return np.array([formula(np.asarray(output, np.float64), batch, traits) for output, batch in pairs])


def _cross_entropies(side: RecordedLoss) -> Iterator[Formula]:
    smoothings = dict.fromkeys([*side.smoothings, *_SMOOTHINGS])
    # -100 is torch's label that does not count; 0 and -1 are what padding is
    ignored_labels = dict.fromkeys(["none", *side.ignored, -100, 0, -1])
    meanings = ("logits", "logits that went through softmax", "probabilities", "log-probabilities")
    for field in _label_fields(side):
        reductions = _REDUCTIONS_OF_LABELS
        if np.ndim(side.batches[0][field]) > 1:
            reductions = _REDUCTIONS_OF_SEQUENCES
        for smoothing, ignored, meaning, reduction in itertools.product(
            smoothings, ignored_labels, meanings, reductions
        ):
            traits = {
                "label": field,
                "reduction": reduction,
                "label smoothing": smoothing,
                "ignored label": ignored,
                "outputs taken for": meaning,
            }
            yield Formula("cross entropy", traits, partial(_each, side, _cross_entropy, traits))


def _cross_entropy(z: Array, batch: Arrays, traits: Traits) -> float:
    labels = np.asarray(batch[traits["label"]])
    if z.ndim == 0 or z.size == 0 or z.shape[:-1] != labels.shape:
        return float("nan")
    logs = _log_probabilities(z, traits["outputs taken for"])
    inside = (labels >= 0) & (labels < z.shape[-1])
    of_labels = np.take_along_axis(logs, np.where(inside, labels, 0)[..., None], -1)[..., 0]
    smoothing = traits["label smoothing"]
    values = -(1 - smoothing) * of_labels - smoothing * logs.mean(-1)
    ignored = traits["ignored label"]
    weights = inside if ignored == "none" else inside & (labels != ignored)
    return _reduced(values, weights.astype(np.float64), traits["reduction"])


def _log_probabilities(z: Array, meaning: str) -> Array:
    if meaning == "logits":
        return log_softmax(z)
    if meaning == "logits that went through softmax":
        return log_softmax(np.exp(log_softmax(z)))
    return np.log(z) if meaning == "probabilities" else z


def _reduced(values: Array, weights: Array, reduction: str) -> float:
    """One number of weighted values, the first axis counting examples."""
    axes = tuple(range(1, values.ndim))
    sums = (weights * values).sum(axes)
    total = (weights * values).sum()
    # an example all of whose labels are ignored has no mean: NaN, which fits nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / weights.sum(axes)
        table = {
            "mean": total / weights.sum(),
            "sum": total,
            "sum over examples' means": means.sum(),
            "mean of means": means.mean(),
            "mean over examples of sums": total / sums.size,
            "mean over all": total / values.size,
        }
    return float(table[reduction])


def _regressions(side: RecordedLoss) -> Iterator[Formula]:
    errors = ("squared", "half squared", "absolute", "Huber 1")
    for field, error, reduction in itertools.product(_target_fields(side), errors, _REDUCTIONS):
        traits = {"target": field, "reduction": reduction, "error": error}
        yield Formula("regression loss", traits, partial(_each, side, _regression, traits))


def _regression(y: Array, batch: Arrays, traits: Traits) -> float:
    difference = y - np.asarray(batch[traits["target"]], np.float64).reshape(y.shape)
    size = np.abs(difference)
    values = {
        "squared": difference**2,
        "half squared": difference**2 / 2,
        "absolute": size,
        "Huber 1": np.where(size <= 1, difference**2 / 2, size - 0.5),
    }[traits["error"]]
    return _reduced(values, np.ones_like(values), traits["reduction"])


def _binaries(side: RecordedLoss) -> Iterator[Formula]:
    meanings = ("logits", "probabilities")
    for field, meaning, reduction in itertools.product(_target_fields(side), meanings, _REDUCTIONS):
        traits = {"target": field, "reduction": reduction, "outputs taken for": meaning}
        yield Formula("binary cross entropy", traits, partial(_each, side, _binary, traits))


def _binary(z: Array, batch: Arrays, traits: Traits) -> float:
    y = np.asarray(batch[traits["target"]], np.float64).reshape(z.shape)
    logits = z if traits["outputs taken for"] == "logits" else np.log(z / (1 - z))
    # softplus(z) - y z is the entropy of sigmoid(z), finite where sigmoid(z) rounds to 0 or 1
    return _reduced(softplus(logits) - y * logits, np.ones_like(logits), traits["reduction"])


def _label_fields(side: RecordedLoss) -> list[str]:
    """Fields of whole numbers that have the outputs' shape but for its last axis."""
    shape = np.shape(side.outputs[0])[:-1]
    names = []
    for name, array in side.batches[0].items():
        if np.asarray(array).dtype.kind in "iu" and np.shape(array) == shape:
            names.append(name)
    return names


def _target_fields(side: RecordedLoss) -> list[str]:
    """Fields as large as the outputs."""
    size = np.size(side.outputs[0])
    return [name for name, array in side.batches[0].items() if np.size(array) == size]
