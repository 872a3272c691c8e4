"""A comparison in words and a table, as the command line prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.core.text import Block, Line, Table
from multibackend.parity.result import ComparisonResult

__all__ = ["comparison_blocks"]


def comparison_blocks(result: ComparisonResult) -> list[Block]:
    """The table of both runs, the tolerance with its reason, the notes, and the verdict last."""
    tolerance = result.tolerance
    blocks: list[Block] = [
        _table(result),
        Line(
            f"Tolerance in {result.precision}: losses {tolerance.loss:.0e}, parameters {tolerance.parameters:.0e} "
            f"relative. Why: {tolerance.reason}."
        ),
    ]
    blocks += [Line(f"Note: {note}.") for note in result.notes]
    if result.matches:
        blocks.append(Line("The runs match.", "good"))
        return blocks
    blocks.append(Line(f"The runs do NOT match. First divergence: {result.first_divergence}", "bad"))
    blocks += _other_findings(result)
    return blocks


def _table(result: ComparisonResult) -> Table:
    backends = zip(result.backends, result.execution_modes, strict=True)
    runs = [f"{backend} ({execution})" for backend, execution in backends]
    return Table(
        columns=("", *runs, "relative difference"),
        rows=tuple(_rows(result)),
        title=f"{result.experiment}: {result.updates} updates in {result.precision}",
        numbers=(1, 2, 3),
    )


def _rows(result: ComparisonResult) -> Iterator[tuple[str, ...]]:
    if len(result.loss_differences):  # a run whose windows were all skipped has no losses
        for title, index in (("first loss", 0), ("last loss", -1)):
            first, second = (f"{history[index].loss:.8f}" for history in result.histories)
            yield title, first, second, f"{result.loss_differences[index]:.1e}"
    yield "largest over all losses", "", "", f"{result.max_loss_difference:.1e}"
    yield "largest over all parameters", "", "", f"{result.max_relative_difference:.1e}"
    for name in result.undetermined:
        yield f"{name} (gradient is rounding)", "", "", f"{result.parameter_differences[name]:.1e}"
    reference, other = result.evaluations
    for name, value in reference.items():
        difference = relative_difference(value, other[name])
        yield f"held-out {name}", _number(value), _number(other[name]), f"{difference:.1e}"
    first, second = (f"{seconds:.1f}" for seconds in result.seconds)
    yield "seconds, with compilation", first, second, ""


def _other_findings(result: ComparisonResult) -> list[Line]:
    """The places that are wrong by themselves, but for the first divergence, told already."""
    findings = list(result.layers)
    first = result.first_divergence
    if first is not None:
        findings = [finding for finding in findings if (finding.name, finding.place) != (first.what, first.place)]
    if not findings:
        return []
    return [
        Line("Also wrong by itself, whatever comes before:"),
        *(Line(f"  - {finding}") for finding in findings),
    ]


def _number(value: Any) -> str:
    """Write a number, or the shape of an array."""
    return f"{value:.4f}" if np.ndim(value) == 0 else f"array {list(np.shape(value))}"
