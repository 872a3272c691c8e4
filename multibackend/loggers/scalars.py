"""A run as named numbers by update, which is what TensorBoard, Weights & Biases and MLflow keep.

| name | of |
| --- | --- |
| `train/loss`, `train/grad_norm`, `train/learning_rate` | each update |
| `train/examples_per_second` | the updates since the last such number, at least a second of them |
| `train/skipped_windows` | the run so far, where a window is skipped |
| `evaluation/loss`, `evaluation/<metric>` | each evaluation; `evaluation_ema/...` where it is the moving average's |

The step is always the number of the update. Metrics that are arrays are left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from multibackend.core.history import UpdateRecord
from multibackend.core.validation import Problems
from multibackend.events import (
    EvaluationFinished,
    Event,
    FitFailed,
    FitFinished,
    FitStarted,
    UpdateFinished,
    WindowSkipped,
)

__all__ = ["ScalarLog", "describe_run"]

_SECONDS_PER_SPEED = 1.0  # results arrive in bunches: over less, the speed would jump


def describe_run(event: FitStarted) -> dict[str, str]:
    """Say what a run's service may be asked to sort or group runs by."""
    return {"backend": event.backend, "device": event.device, "execution": event.execution}


class ScalarLog:
    """A listener that turns events into numbers by update; a subclass says where they go.

    Args:
        every: write the numbers of every so many updates only; evaluations are always written.

    Attributes:
        failed: whether the last `fit` ended with an error.
    """

    def __init__(self, *, every: int = 1) -> None:
        problems = Problems(type(self).__name__)
        problems.integer("every", every, minimum=1)
        problems.raise_if_any()
        self._every = int(every)
        self.failed = False
        self._examples = 0  # since the last speed
        self._since = time.perf_counter()
        self._skipped = 0
        self._update = 0

    def write(self, update: int, numbers: Mapping[str, float]) -> None:
        """Keep numbers of an update."""
        raise NotImplementedError(f"{type(self).__name__} must say where numbers go")

    def begin(self, event: FitStarted) -> None:
        """Take note that a call of `fit` begins; the first one, or a later one that goes on."""

    def flush(self) -> None:
        """Make sure that what was written can be read."""

    def close(self) -> None:
        """End the run; nothing is written any more."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        match event:
            case FitStarted(update=update):
                # the time between two calls of `fit` would count as slowness
                self._examples = 0
                self._since = time.perf_counter()
                self._update = update
                self.failed = False
                self.begin(event)
            case UpdateFinished(record=record):
                self._enter(record)
            case WindowSkipped(skipped=skipped):
                self._skipped += 1
                # the update that it would have made is made by a later window, or never
                self.write(skipped.update - 1, {"train/skipped_windows": self._skipped})
            case EvaluationFinished(update=update, metrics=metrics, ema=ema):
                group = "evaluation_ema" if ema else "evaluation"
                self.write(update, {f"{group}/{name}": float(v) for name, v in metrics.items() if np.ndim(v) == 0})
                self.flush()
            case FitFinished() | FitFailed():
                self.failed = isinstance(event, FitFailed)
                if self._examples:  # of the last, unfinished second: all there are of a short run
                    self.write(self._update, self._speed())
                self.flush()
            case _:
                pass

    def _enter(self, record: UpdateRecord) -> None:
        self._examples += record.examples
        self._update = record.update
        numbers: dict[str, float] = {}
        if record.update % self._every == 0:
            numbers = {f"train/{name}": getattr(record, name) for name in ("loss", "grad_norm", "learning_rate")}
        if time.perf_counter() - self._since >= _SECONDS_PER_SPEED:
            numbers |= self._speed()
        if numbers:
            self.write(record.update, numbers)

    def _speed(self) -> dict[str, Any]:
        """Compute the examples per second since the last call."""
        now = time.perf_counter()
        speed = self._examples / max(now - self._since, 1e-9)
        self._examples = 0
        self._since = now
        return {"train/examples_per_second": speed}
