"""The regression problem as single examples and as batches, and an experiment on the numpy stub."""

from __future__ import annotations

from typing import Any

import numpy as np
from multibackend_stub.backend import Linear

import multibackend as mb
from multibackend.testing.conformance.problems import regression

__all__ = ["examples", "experiment", "in_batches"]


def examples(count: int) -> list[dict[str, Any]]:
    data = regression(count)
    return [{"x": data["x"][i], "y": data["y"][i], "id": i} for i in range(count)]


def in_batches(items: list[dict[str, Any]], size: int) -> list[dict[str, np.ndarray]]:
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [{name: np.stack([item[name] for item in part]) for name in part[0]} for part in parts]


def experiment(data: Any, **options: Any) -> mb.Experiment:
    arguments: dict[str, Any] = {
        "model": mb.Model(stub=lambda: Linear(3, 2), inputs="x"),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.SGD(learning_rate=0.1),
        "train_data": data,
        "micro_batch_size": 3,
        "precision": "float64",
        "shuffle": False,
    }
    return mb.Experiment(**{**arguments, **options})
