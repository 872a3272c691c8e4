"""The data over which `Trainer.recompute_statistics` averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from multibackend.data import Source, Stream, as_source
from multibackend.errors import CapabilityError, ConfigurationError
from multibackend.experiment import Experiment
from multibackend.protocol import Program, RecomputesStatistics
from multibackend.training.input.order import order_of

__all__ = ["check_recomputable", "cut"]


def check_recomputable(experiment: Experiment, backend: str, program: Program, data: Any) -> Source | Stream:
    """The data to average over; `ConfigurationError` or `CapabilityError` where there is nothing to recompute."""
    if not isinstance(program, RecomputesStatistics):
        raise CapabilityError(f"the backend {backend!r} cannot recompute batch statistics")
    if not program.info.batch_norm_layers:
        raise ConfigurationError("recompute_statistics", ["the model has no layers with running statistics"])
    if experiment.batch_statistics == "frozen":
        problem = "batch_statistics='frozen' keeps the statistics as they are; use 'microbatch' or 'window'"
        raise ConfigurationError("recompute_statistics", [problem])
    return experiment.train_data if data is None else as_source(data)


def cut(source: Source | Stream, size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """All of the data in order, in batches of a size; a last single example joins the batch before it."""
    order, offset = order_of(source, seed=0, shuffle=False), 0
    while count := order.available(0, offset, size + 2):
        count = count if count == size + 1 else min(count, size)  # one example has no variance
        yield order.take(0, offset, count)
        offset += count
