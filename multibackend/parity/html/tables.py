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
from multibackend.parity.native_layouts import NativeLayout
from multibackend.parity.result import ComparisonResult

__all__ = ["evaluation_rows", "heat_rows", "loss_rows", "parameter_rows", "unpaired"]

MOST_UPDATES = 200  # rows of the table of losses, so that the page stays small


@dataclass(frozen=True)
class Pair:
    """One array of the other model that holds a parameter or a part of it, as both frameworks keep them.

    Attributes:
        reference, other: name, where it is another than the canonical one, and shape.
        change: between the two, in words.
        evidence: why these two.
    """

    reference: str
    other: str
    change: str
    evidence: str


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of the reference at the end.

    Attributes:
        name: in the reference.
        partners: its names in the other model, where they are others.
        difference: relative, beside the bound that it must keep.
        undetermined: whether its gradient is nothing but rounding.
        pairs: one for each array of the other model that holds a part of it.
    """

    name: str
    partners: tuple[str, ...]
    difference: float
    bound: float
    undetermined: bool
    pairs: tuple[Pair, ...]


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
        pairs=tuple(_pair(result, link) for link in links),
    )


def _pair(result: ComparisonResult, link: Link) -> Pair:
    first, second = result.native
    reference = first.get(link.reference)
    other = second.get(link.other)
    change = link.change
    # links speak of canonical layouts, which are alike although the frameworks' own are not
    if change == "as it is" and reference and other and reference.canonical != other.canonical:
        change = "each in its framework's layout"
    # that two names are the same needs no evidence beside them
    evidence = "" if link.evidence == "name" else link.evidence
    kept = _kept(reference, link.reference, link.reference_shape), _kept(other, link.other, link.other_shape)
    return Pair(*kept, change, evidence)


def _kept(layout: NativeLayout | None, name: str, canonical_shape: tuple[int, ...]) -> str:
    """Say how a framework keeps an array: its own name where it has one, and the shape."""
    if layout is None:
        return shape(canonical_shape)
    if layout.name == name:
        return shape(layout.shape)
    return f"{layout.name} {shape(layout.shape)}"


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
