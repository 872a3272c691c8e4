"""Interleaved timing: every round runs a slice of each contender, and ratios are taken within a round.

A machine's speed drifts; two slices that lie next to each other share the drift, so their ratio does not see it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["OURS", "Contender", "Measurement", "Timed", "measure"]

OURS = "multibackend"


@dataclass
class Contender:
    """One way to train a workload.

    Attributes:
        name: `OURS` for this library, else what kind of hand-written loop it is.
        train: make that many more updates and return their losses, waiting for the device only to read them.
        granularity: `train` takes multiples of this.
        details: for the report.
    """

    name: str
    train: Callable[[int], np.ndarray]
    granularity: int = 1
    details: str = ""

    def seconds(self, updates: int) -> float:
        """How long so many more updates take."""
        gc.collect()
        started = time.perf_counter()
        losses = self.train(updates)
        seconds = time.perf_counter() - started
        if losses.shape != (updates,) or not np.isfinite(losses).all():
            raise RuntimeError(f"{self.name} did not train: {len(losses)} losses for {updates} updates, {losses}")
        return seconds


class Timed(Protocol):
    """What `measure` needs of a contender."""

    name: str
    granularity: int

    def seconds(self, updates: int) -> float: ...


@dataclass(frozen=True)
class Measurement:
    """Seconds per micro-batch of each contender in each round."""

    seconds: dict[str, list[float]]

    @classmethod
    def joined(cls, parts: Sequence[Measurement]) -> Measurement:
        """The rounds of all `parts`."""
        return cls({name: [s for part in parts for s in part.seconds[name]] for name in parts[0].seconds})

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    @property
    def best(self) -> str:
        """The fastest hand-written loop, by median."""
        return min((name for name in self.seconds if name != OURS), key=self.median)

    @property
    def ratios(self) -> list[float]:
        """Of each round, the throughput of this library / that of the best hand-written loop."""
        return [theirs / ours for theirs, ours in zip(self.seconds[self.best], self.seconds[OURS], strict=True)]


def measure(contenders: Sequence[Timed], *, steps: int, rounds: int, slice_seconds: float) -> Measurement:
    """Warm each contender up, which compiles what it compiles, then time `rounds` rounds.

    A slice is as many updates as take about `slice_seconds`. Each round begins with another contender, so that none
    always follows the same one.
    """
    updates = {contender.name: _calibrate(contender, slice_seconds) for contender in contenders}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        shift = index % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            count = updates[contender.name]
            seconds[contender.name].append(contender.seconds(count) / (count * steps))
    return Measurement(seconds)


def _calibrate(contender: Timed, slice_seconds: float) -> int:
    """The number of updates of a slice, found on runs that also serve as warm-up."""
    count = contender.granularity
    contender.seconds(count)
    while True:
        seconds = contender.seconds(count)
        if seconds > slice_seconds / 4:
            return max(1, round(slice_seconds / seconds * count / contender.granularity)) * contender.granularity
        count *= 2
