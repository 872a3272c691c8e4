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

__all__ = ["as_recomputable", "batches_of"]


def as_recomputable(
    experiment: Experiment, backend: str, program: Program, data: Any
) -> tuple[Source | Stream, RecomputesStatistics]:
    """The data to average over and the program that does it.

    Raises:
        CapabilityError: the backend cannot do it.
        ConfigurationError: there is nothing to recompute.
    """
    if not isinstance(program, RecomputesStatistics):
        raise CapabilityError(f"the backend {backend!r} cannot recompute batch statistics")
    if not program.info.batch_norm_layers:
        problem = "the model has no layers with running statistics"
        raise ConfigurationError("recompute_statistics", [problem])
    if experiment.batch_statistics == "frozen":
        problem = "batch_statistics='frozen' keeps the statistics as they are"
        raise ConfigurationError("recompute_statistics", [f"{problem}; use 'microbatch' or 'window'"])
    if data is None:
        return experiment.train_data, program
    return as_source(data), program


def batches_of(source: Source | Stream, size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the data in order, in batches; a last single example joins the batch before it."""
    order = order_of(source, seed=0, shuffle=False)
    offset = 0
    while count := order.available(0, offset, size + 2):
        if count != size + 1:  # one example by itself has no variance
            count = min(count, size)
        yield order.take(0, offset, count)
        offset += count
