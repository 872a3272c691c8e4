"""Reports as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibackend.core.differences import relative_difference
from multibackend.core.history import UpdateRecord
from multibackend.parity import AccumulationReport, CompareReport
from multibackend.protocol.registry import BackendInfo

__all__ = ["LiveComparison", "print_accumulation", "print_backends", "print_comparison", "print_metrics"]

_WIDTH = 16


class LiveComparison:
    """A listener to a comparison that prints the losses of both runs, every `every` updates."""

    def __init__(self, console: Console, backends: Sequence[str], every: int) -> None:
        self._console = console
        self._every = every
        titles = [f"{backend} loss" for backend in backends]
        console.print(f"{'update':>8}{titles[0]:>{_WIDTH}}{titles[1]:>{_WIDTH}}{'difference':>{_WIDTH}}")

    def __call__(self, first: Sequence[UpdateRecord], second: Sequence[UpdateRecord]) -> None:
        for reference, other in zip(first, second, strict=True):
            if reference.update == 1 or reference.update % self._every == 0:
                # columns of a fixed width rather than a table, which would wait for its last row
                losses = f"{reference.loss:>{_WIDTH}.8f}{other.loss:>{_WIDTH}.8f}"
                difference = relative_difference(reference.loss, other.loss)
                self._console.print(f"{reference.update:>8}{losses}{difference:>{_WIDTH}.1e}", highlight=False)


def print_comparison(console: Console, report: CompareReport) -> None:
    """Print the table of both runs, the tolerance with its reason, and the verdict."""
    console.print(_comparison_table(report))
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
        _print_other_findings(console, report)


def _comparison_table(report: CompareReport) -> Table:
    table = Table(title=f"{report.experiment}: {report.updates} updates in {report.precision}", title_justify="left")
    table.add_column("")
    for backend, execution in zip(report.backends, report.execution_modes, strict=True):
        table.add_column(f"{backend} ({execution})", justify="right")
    table.add_column("relative difference", justify="right")
    for title, index in (("first loss", 0), ("last loss", -1)):
        losses = [f"{history[index].loss:.8f}" for history in report.histories]
        table.add_row(title, *losses, f"{report.loss_differences[index]:.1e}")
    table.add_row("largest over all losses", "", "", f"{report.max_loss_difference:.1e}")
    table.add_row("largest over all parameters", "", "", f"{report.max_relative_difference:.1e}")
    for name in report.undetermined:
        table.add_row(f"{name} (gradient is rounding)", "", "", f"{report.parameter_differences[name]:.1e}")
    reference, other = report.evaluations
    for name, value in reference.items():
        difference = relative_difference(value, other[name])
        table.add_row(f"held-out {name}", _number(value), _number(other[name]), f"{difference:.1e}")
    table.add_row("seconds, with compilation", *(f"{seconds:.1f}" for seconds in report.seconds), "")
    return table


def _print_other_findings(console: Console, report: CompareReport) -> None:
    """Print the places that are wrong by themselves, but for the first divergence, told already."""
    findings = list(report.layers)
    first = report.first_divergence
    if first is not None:
        findings = [finding for finding in findings if (finding.name, finding.place) != (first.what, first.place)]
    if findings:
        console.print("Also wrong by itself, whatever comes before:", highlight=False)
    for finding in findings:
        console.print(Text(f"  - {finding}"))


def print_accumulation(console: Console, report: AccumulationReport) -> None:
    """Print whether k micro-batches equal one batch, and why not."""
    sizes = f"{report.steps} × {report.micro_batch_size}"
    whole = f"one batch of {report.steps * report.micro_batch_size}"
    verdict = "equal" if report.matches else "do NOT equal"
    # a `Text`, here and above, since brackets in names and messages would be taken for markup
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
    """Print the registered backends, installed or not."""
    table = Table("backend", "installed", "versions", "devices", "executions", "capabilities")
    for info in backends:
        table.add_row(
            info.name,
            "yes" if info.installed else f"no: {info.install}",
            info.version,
            ", ".join(info.devices),
            ", ".join(info.execution_modes),
            ", ".join(sorted(info.capabilities)),
        )
    console.print(table)


def print_metrics(console: Console, title: str, metrics: Mapping[str, Any]) -> None:
    """Print loss and metrics in one line, then those that are arrays."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if np.ndim(value) == 0)
    console.print(f"{title}: {numbers}", highlight=False)
    for name, value in metrics.items():
        if np.ndim(value):
            console.print(f"{name}:\n{value}", highlight=False, markup=False)


def _number(value: Any) -> str:
    """Write a number, or the shape of an array."""
    return f"{value:.4f}" if np.ndim(value) == 0 else f"array {list(np.shape(value))}"
