"""Reports as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibackend.core.history import UpdateRecord
from multibackend.parity import AccumulationReport, CompareReport
from multibackend.protocol.registry import BackendInfo

__all__ = ["LiveComparison", "print_accumulation", "print_backends", "print_comparison", "print_metrics"]

_WIDTH = 16


class LiveComparison:
    """Prints the losses of both runs as they come, every `every` updates."""

    def __init__(self, console: Console, backends: Sequence[str], every: int) -> None:
        self._console, self._every = console, every
        first, second = backends
        console.print(f"{'update':>8}{first + ' loss':>{_WIDTH}}{second + ' loss':>{_WIDTH}}{'difference':>{_WIDTH}}")

    def __call__(self, first: Sequence[UpdateRecord], second: Sequence[UpdateRecord]) -> None:
        for one, other in zip(first, second, strict=True):
            if one.update == 1 or one.update % self._every == 0:
                gap = abs(one.loss - other.loss) / max(abs(one.loss), abs(other.loss), 1e-300)
                losses = f"{one.loss:>{_WIDTH}.8f}{other.loss:>{_WIDTH}.8f}"
                self._console.print(f"{one.update:>8}{losses}{gap:>{_WIDTH}.1e}", highlight=False)


def print_comparison(console: Console, report: CompareReport) -> None:
    """The table of both runs, the tolerance with its reason, and the verdict."""
    table = Table(title=f"{report.experiment}: {report.updates} updates in {report.precision}", title_justify="left")
    table.add_column("")
    for backend, execution in zip(report.backends, report.execution_modes, strict=True):
        table.add_column(f"{backend} ({execution})", justify="right")
    table.add_column("relative difference", justify="right")
    first, second = report.histories
    table.add_row("first loss", *(f"{h[0].loss:.8f}" for h in (first, second)), f"{report.loss_differences[0]:.1e}")
    table.add_row("last loss", *(f"{h[-1].loss:.8f}" for h in (first, second)), f"{report.loss_differences[-1]:.1e}")
    table.add_row("largest over all losses", "", "", f"{report.max_loss_difference:.1e}")
    table.add_row("largest over all parameters", "", "", f"{report.max_relative_difference:.1e}")
    for name in report.undetermined:
        table.add_row(f"{name} (gradient is rounding)", "", "", f"{report.parameter_differences[name]:.1e}")
    one, other = report.evaluations
    for name, value in one.items():
        sizes = (np.abs(value).max(), np.abs(other[name]).max(), 1e-300)
        gap = np.abs(np.subtract(value, other[name])).max() / max(sizes)
        table.add_row(f"held-out {name}", _shown(value), _shown(other[name]), f"{gap:.1e}")
    table.add_row("seconds, with compilation", *(f"{seconds:.1f}" for seconds in report.seconds), "")
    console.print(table)
    tolerance = report.tolerance
    console.print(
        f"Tolerance in {report.precision}: losses {tolerance.loss:.0e}, parameters {tolerance.parameters:.0e} "
        f"relative. Why: {tolerance.reason}.",
        highlight=False,
    )
    for note in report.notes:
        console.print(f"Note: {note}.", highlight=False, markup=False)
    if report.matches:
        console.print(Text("The runs match.", style="bold green"))
    else:
        console.print(Text(f"The runs do NOT match. First divergence: {report.first_divergence}", style="bold red"))
        first = report.first_divergence
        others = [one for one in report.layers if first is None or (one.name, one.place) != (first.what, first.place)]
        if others:
            console.print("Also wrong by itself, whatever comes before:", highlight=False)
        for finding in others:
            console.print(Text(f"  - {finding}"))


def print_accumulation(console: Console, report: AccumulationReport) -> None:
    """Whether k micro-batches equal one batch, and why not."""
    sizes = f"{report.steps} × {report.micro_batch_size}"
    whole = f"one batch of {report.steps * report.micro_batch_size}"
    verdict = "equal" if report.matches else "do NOT equal"
    console.print(
        Text(
            f"{report.backend}: {sizes} micro-batches {verdict} {whole}: largest gradient difference "
            f"{report.max_relative_difference:.1e}, tolerance {report.tolerance:.0e} (float64)",
            style="bold green" if report.matches else "bold red",
        )
    )
    for reason in report.reasons:
        console.print(Text(f"  - {reason}"))


def print_backends(console: Console, backends: Sequence[BackendInfo]) -> None:
    """The registered backends, installed or not."""
    table = Table("backend", "installed", "versions", "devices", "executions", "capabilities")
    for info in backends:
        installed = "yes" if info.installed else f"no: {info.install}"
        capabilities = ", ".join(sorted(info.capabilities))
        table.add_row(
            info.name, installed, info.version, ", ".join(info.devices), ", ".join(info.execution_modes), capabilities
        )
    console.print(table)


def print_metrics(console: Console, title: str, metrics: Mapping[str, Any]) -> None:
    """Loss and metrics in one line, then those that are arrays."""
    listed = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
    console.print(f"{title}: {listed}", highlight=False)
    for name, value in metrics.items():
        if np.ndim(value):
            console.print(f"{name}:\n{value}", highlight=False, markup=False)


def _shown(value: Any) -> str:
    """A number, or the shape of an array."""
    return f"{value:.4f}" if np.ndim(value) == 0 else f"array {list(np.shape(value))}"
