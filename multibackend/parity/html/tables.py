"""The rows of the page's tables, as plain values: the templates say how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.core.history import UpdateRecord
from multibackend.matching.links import Link
from multibackend.pages.words import number, shape
from multibackend.parity.html.layers import Heat
from multibackend.parity.html.plots import shown_updates
from multibackend.parity.result import ComparisonResult

__all__ = ["evaluation_rows", "heat_rows", "loss_rows", "parameter_rows", "unpaired"]

MOST_UPDATES = 200  # rows of the table of losses, so that the page stays small


@dataclass(frozen=True)
class LayoutChange:
    """One array of the other model: the change of its layout, its evidence, the shapes of both."""

    change: str
    evidence: str
    shapes: str


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the reference at the end.

    Attributes:
        name: in the reference.
        partners: its names in the other model, where they are others.
        difference: relative, beside the bound that it must keep.
        undetermined: whether its gradient is nothing but rounding.
        layouts: one for each array of the other model that holds a part of it.
    """

    name: str
    partners: tuple[str, ...]
    difference: float
    bound: float
    undetermined: bool
    layouts: tuple[LayoutChange, ...]


def loss_rows(result: ComparisonResult) -> list[tuple[UpdateRecord, UpdateRecord, float]]:
    """Give both records of an update and the difference of the losses; of many, the worst of each stretch."""
    first, second = result.histories
    shown = shown_updates(result, MOST_UPDATES).tolist()
    return [(first[index], second[index], float(result.loss_differences[index])) for index in shown]


def heat_rows(heat: Heat) -> list[tuple[str, float, int, str]]:
    """Give each layer's largest difference, worst first: (layer, difference, update, parameter)."""
    rows = []
    for layer, differences, parameter in zip(heat.rows, heat.differences, heat.worst, strict=True):
        column = int(np.argmax(differences))
        rows.append((layer, float(differences[column]), int(heat.updates[column]), parameter))
    return sorted(rows, key=lambda row: -row[1])


def parameter_rows(result: ComparisonResult) -> list[ParameterRow]:
    """Give a row for each parameter of the reference, worst first, the undetermined ones last."""
    links: dict[str, list[Link]] = {}
    for link in result.matching.links:
        links.setdefault(link.reference, []).append(link)
    differences = result.parameter_differences
    undetermined = set(result.undetermined)
    worst_first = sorted(differences, key=lambda name: (name in undetermined, -differences[name]))
    return [_parameter_row(result, name, name in undetermined, links.get(name, [])) for name in worst_first]


def _parameter_row(result: ComparisonResult, name: str, undetermined: bool, links: Sequence[Link]) -> ParameterRow:
    tolerance = result.tolerance
    return ParameterRow(
        name=name,
        partners=tuple(link.other for link in links if link.other != name),
        difference=result.parameter_differences[name],
        bound=tolerance.undetermined if undetermined else tolerance.parameters,
        undetermined=undetermined,
        layouts=tuple(_layout_change(link) for link in links),
    )


def _layout_change(link: Link) -> LayoutChange:
    shapes = shape(link.reference_shape)
    if tuple(link.reference_shape) != tuple(link.other_shape):
        shapes = f"{shapes} to {shape(link.other_shape)}"
    # that two names are the same needs no evidence beside them
    evidence = "" if link.evidence == "name" else link.evidence
    return LayoutChange(link.change, evidence, shapes)


def unpaired(result: ComparisonResult) -> list[tuple[str, str, str]]:
    """List what has no partner in the other model: (its backend, its name, the reason)."""
    reference, other = result.backends
    matching = result.matching
    rows = [(reference, name, reason) for name, reason in matching.reference_only.items()]
    return rows + [(other, name, reason) for name, reason in matching.other_only.items()]


def evaluation_rows(result: ComparisonResult) -> list[tuple[str, str, str, float]]:
    """Give the loss and each metric on the evaluation data: (name, both values, difference)."""
    first, second = result.evaluations
    rows = []
    for metric, value in first.items():
        partner = second[metric]
        rows.append((metric, _metric_value(value), _metric_value(partner), relative_difference(value, partner)))
    return rows


def _metric_value(value: Any) -> str:
    if np.ndim(value) == 0:
        return number(float(value))
    return f"array {shape(np.shape(value))}"
