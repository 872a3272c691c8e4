"""Metrics of an evaluation, of the whole evaluation set and of every backend alike.

Most are a weighted mean, or a function of one:

    metric = finish(sum(w * value) / sum(w))   over every element of every batch

A ragged last batch or padded elements (weight 0) therefore cannot shift the result, and what the model runs on adds
them up. A metric whose value is an array, such as `ConfusionMatrix`, has a `shape` and gives its own sums.

The others are no mean: `F1`, `ROCAUC`, `R2`, `CalibrationError`, `Custom(..., over="set")`. The outputs that they pick
come to the host, where counts or sums by class or bin are kept (`F1`, `R2`, `CalibrationError`), or scores and labels
where nothing less will do (`ROCAUC`), in float64 and independent of the batch size.
"""

from multibackend.metrics.base import Collector, Metric
from multibackend.metrics.custom import Custom
from multibackend.metrics.means import (
    RMSE,
    Accuracy,
    ConfusionMatrix,
    MeanAbsoluteError,
    MeanSquaredError,
    Perplexity,
    TopKAccuracy,
)
from multibackend.metrics.sets import F1, R2, ROCAUC, CalibrationError

__all__ = [
    "F1",
    "R2",
    "RMSE",
    "ROCAUC",
    "Accuracy",
    "CalibrationError",
    "Collector",
    "ConfusionMatrix",
    "Custom",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Perplexity",
    "TopKAccuracy",
]
