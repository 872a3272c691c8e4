"""The results as a table and as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.timing import OURS, Measurement
from benchmarks.workloads import Workload

__all__ = ["Result", "as_json", "as_table"]

_DISTRIBUTIONS = ("multibackend", "numpy", "torch", "jax", "jaxlib", "flax", "optax")


@dataclass(frozen=True)
class Result:
    """One workload on one framework. `details` says how this library executed it."""

    workload: Workload
    framework: str
    measurement: Measurement
    details: str


def as_table(results: list[Result]) -> Table:
    """A row per contender: microseconds per micro-batch, and the throughput ratio in the row of this library."""
    table = Table(title="throughput beside hand-written loops, medians of interleaved rounds")
    for heading in ("workload", "loop"):
        table.add_column(heading, no_wrap=True)
    for heading in ("µs/micro-batch", "ours/best", "min … max"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        measured = result.measurement
        titles = iter((result.workload.title, result.framework))
        for name in sorted(measured.seconds, key=lambda name: (name != OURS, measured.median(name))):
            cells = [f"{1e6 * measured.median(name):.1f}", "", ""]
            label = name + " *" * (name == measured.best)
            if name == OURS:
                ratios = measured.ratios
                cells[1:] = f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} … {max(ratios):.3f}"
                label = f"{name} ({result.details})"
            table.add_row(next(titles, ""), label, *cells)
        table.add_section()
    table.caption = "* the best hand-written loop. A ratio above 1 means that this library is faster."
    return table


def as_json(
    results: list[Result], *, rounds: int, launches: int, slice_seconds: float, one_process: bool
) -> dict[str, Any]:
    """Everything that was measured, and where."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.system(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
        "rounds": rounds,
        "launches": launches,
        "slice_seconds": slice_seconds,
        "one_process": one_process,
        "rows": [_row(result) for result in results],
    }


def _row(result: Result) -> dict[str, Any]:
    measured, ratios = result.measurement, result.measurement.ratios
    return {
        "workload": result.workload.name,
        "title": result.workload.title,
        "framework": result.framework,
        "execution": result.details,
        "best_hand_written": measured.best,
        "throughput_ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "ratios": ratios,
        "seconds_per_micro_batch": {name: measured.median(name) for name in measured.seconds},
    }
