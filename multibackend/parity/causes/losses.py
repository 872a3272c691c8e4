"""Losses from recorded outputs and labels: reduction, smoothing, ignored labels, what the outputs are taken for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.functions import log_softmax, softplus
from multibackend.parity.causes.laws import Difference, Law, explain

__all__ = ["LossSide", "loss_difference"]


SMOOTHINGS = (0.0, 0.1, 0.05, 0.2, 0.01, 0.02, 0.15, 0.3)


@dataclass(frozen=True)
class LossSide:
    """What one side knows when it computes a loss.

    Attributes:
        outputs: of the model, for one or several micro-batches.
        batches: their fields.
        losses: the loss of each.
        smoothings, ignored: values to try, for example those in the experiment's loss.
    """

    outputs: Sequence[Array]
    batches: Sequence[Mapping[str, Array]]
    losses: Sequence[float]
    smoothings: Sequence[float] = ()
    ignored: Sequence[int] = ()


def loss_difference(sides: tuple[LossSide, LossSide]) -> Difference | None:
    """The laws of the two losses, where each gives the recorded values of all micro-batches."""
    targets = tuple(np.asarray(side.losses, np.float64) for side in sides)
    for make in (_cross_entropies, _regressions, _binaries):
        laws = [list(make(side)) for side in sides]
        found = explain(laws[0], laws[1], (targets[0], targets[1]))
        if found is not None:
            return found
    return None


class _Each:
    """A formula on every micro-batch: an array with an entry for each."""

    def __init__(self, side: LossSide, formula: Callable[..., float], *arguments: object) -> None:
        self._side, self._formula, self._arguments = side, formula, arguments

    def __call__(self) -> Array:
        pairs = zip(self._side.outputs, self._side.batches, strict=True)
        return np.array([self._formula(np.asarray(o, np.float64), b, *self._arguments) for o, b in pairs])


def _cross_entropies(side: LossSide) -> Iterator[Law]:
    smoothings = dict.fromkeys([*side.smoothings, *SMOOTHINGS])
    counted = dict.fromkeys([None, *side.ignored, -100, 0, -1])
    meanings = ("logits", "logits that went through softmax", "probabilities", "log-probabilities")
    for field in _labels(side):
        shape = np.shape(side.batches[0][field])
        reductions = [
            "mean",
            "sum",
            "sum over examples' means",
            "mean over examples of sums",
            "mean over all",
            "mean of means",
        ]
        for smoothing, ignored, meaning, reduction in itertools.product(smoothings, counted, meanings, reductions):
            if len(shape) == 1 and reduction in (
                "sum over examples' means",
                "mean over examples of sums",
                "mean of means",
            ):
                continue
            traits = {
                "label": field,
                "reduction": reduction,
                "label smoothing": smoothing,
                "ignored label": "none" if ignored is None else ignored,
                "outputs taken for": meaning,
            }
            yield Law(
                "cross entropy", traits, _Each(side, _cross_entropy, field, smoothing, ignored, meaning, reduction)
            )


def _cross_entropy(
    z: Array,
    batch: Mapping[str, Array],
    field: str,
    smoothing: float,
    ignored: int | None,
    meaning: str,
    reduction: str,
) -> float:
    labels = np.asarray(batch[field])
    if z.shape[:-1] != labels.shape:
        return float("nan")
    logs = {
        "logits": lambda: log_softmax(z),
        "logits that went through softmax": lambda: log_softmax(np.exp(log_softmax(z))),
        "probabilities": lambda: np.log(z),
        "log-probabilities": lambda: z,
    }[meaning]()
    inside = (labels >= 0) & (labels < z.shape[-1])
    picked = np.take_along_axis(logs, np.where(inside, labels, 0)[..., None], -1)[..., 0]
    values = -(1 - smoothing) * picked - smoothing * logs.mean(-1)
    weights = inside if ignored is None else inside & (labels != ignored)
    return _reduced(values, weights.astype(np.float64), reduction)


def _reduced(values: Array, weights: Array, reduction: str) -> float:
    total, axes = float((weights * values).sum()), tuple(range(1, values.ndim))
    sums, counts = (weights * values).sum(axes), weights.sum(axes)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
    table = {
        "mean": total / weights.sum(),
        "sum": total,
        "sum over examples' means": means.sum(),
        "mean of means": means.mean(),
        "mean over examples of sums": total / len(values),
        "mean over all": total / values.size,
    }
    return float(table[reduction])


def _regressions(side: LossSide) -> Iterator[Law]:
    reductions = ("mean", "sum", "mean over examples of sums")
    forms = ("squared", "half squared", "absolute", "Huber 1")
    for field, (form, reduction) in itertools.product(_targets(side), itertools.product(forms, reductions)):
        traits = {"target": field, "reduction": reduction, "error": form}
        yield Law("regression loss", traits, _Each(side, _regression, field, form, reduction))


def _regression(y: Array, batch: Mapping[str, Array], field: str, form: str, reduction: str) -> float:
    error = y - np.asarray(batch[field], np.float64).reshape(y.shape)
    size = np.abs(error)
    values = {
        "squared": error**2,
        "half squared": error**2 / 2,
        "absolute": size,
        "Huber 1": np.where(size <= 1, error**2 / 2, size - 0.5),
    }[form]
    return _reduced(values, np.ones_like(values), reduction)


def _binaries(side: LossSide) -> Iterator[Law]:
    for field, (meaning, reduction) in itertools.product(
        _targets(side), itertools.product(("logits", "probabilities"), ("mean", "sum", "mean over examples of sums"))
    ):
        traits = {"target": field, "reduction": reduction, "outputs taken for": meaning}
        yield Law("binary cross entropy", traits, _Each(side, _binary, field, meaning, reduction))


def _binary(z: Array, batch: Mapping[str, Array], field: str, meaning: str, reduction: str) -> float:
    y = np.asarray(batch[field], np.float64).reshape(z.shape)
    z = z if meaning == "logits" else np.log(z / (1 - z))
    return _reduced(softplus(z) - y * z, np.ones_like(z), reduction)


def _labels(side: LossSide) -> list[str]:
    """Fields of whole numbers that have the outputs' shape but for its last axis."""
    shape = np.shape(side.outputs[0])[:-1]
    return [n for n, a in side.batches[0].items() if np.asarray(a).dtype.kind in "iu" and np.shape(a) == shape]


def _targets(side: LossSide) -> list[str]:
    """Fields as large as the outputs."""
    size = np.size(side.outputs[0])
    return [name for name, array in side.batches[0].items() if np.size(array) == size]
