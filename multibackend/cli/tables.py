"""What the commands print besides the reports, which say themselves what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.core.history import UpdateRecord
from multibackend.core.text import Block, Line, Table
from multibackend.protocol.registry import BackendInfo

__all__ = ["LiveComparison", "backend_blocks", "metric_blocks"]

_WIDTH = 16


class LiveComparison:
    """A listener to a comparison that prints the losses of both runs, every `every` updates."""

    def __init__(self, backends: Sequence[str], every: int) -> None:
        self._every = every
        titles = [f"{backend} loss" for backend in backends]
        print(f"{'update':>8}{titles[0]:>{_WIDTH}}{titles[1]:>{_WIDTH}}{'difference':>{_WIDTH}}", flush=True)

    def __call__(self, first: Sequence[UpdateRecord], second: Sequence[UpdateRecord]) -> None:
        for reference, other in zip(first, second, strict=True):
            if reference.update == 1 or reference.update % self._every == 0:
                # columns of a fixed width rather than a table, which would wait for its last row
                losses = f"{reference.loss:>{_WIDTH}.8f}{other.loss:>{_WIDTH}.8f}"
                difference = relative_difference(reference.loss, other.loss)
                print(f"{reference.update:>8}{losses}{difference:>{_WIDTH}.1e}", flush=True)


def backend_blocks(backends: Sequence[BackendInfo]) -> list[Block]:
    """Tell the registered backends, installed or not, and what installs those that are missing."""
    rows = []
    for info in backends:
        installed = "yes" if info.installed else "no"
        modes = ", ".join(info.execution_modes)
        capabilities = ", ".join(sorted(info.capabilities))
        rows.append((info.name, installed, info.version, modes, capabilities))
    table = Table(("backend", "installed", "versions", "executions", "capabilities"), rows)
    # on lines of their own, so that no column cuts a command that is to be copied
    missing = [info for info in backends if not info.installed]
    return [table, *(Line(f"{info.name} is not installed; run: {info.install}") for info in missing)]


def prediction_blocks(title: str, arrays: Mapping[str, np.ndarray]) -> list[Block]:
    """The shape of each array that was predicted, and between which values it lies."""
    rows = []
    for name, array in arrays.items():
        values = f"{array.min():.4g} to {array.max():.4g}" if array.size else ""
        rows.append((name, str([*array.shape]), str(array.dtype), values))
    return [Table(("output", "shape", "type", "values"), rows, title=title)]


def metric_blocks(title: str, metrics: Mapping[str, Any]) -> list[Block]:
    """Tell loss and metrics in one line, then those that are arrays."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
    arrays = [Line(f"{name}:\n{value}") for name, value in metrics.items() if np.ndim(value)]
    return [Line(f"{title}: {numbers}"), *arrays]
