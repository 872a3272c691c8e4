"""The tables of the page: rows with a header each, a caption, and a box of their own that scrolls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.matching.links import Link
from multibackend.parity.html.layers import Heat, thinned
from multibackend.parity.html.markup import Markup, join, name, tag
from multibackend.parity.html.words import number, relative, shape
from multibackend.parity.report import CompareReport

__all__ = ["evaluation_table", "heat_table", "loss_table", "parameter_table", "places_table", "run_table", "table"]

MOST_UPDATES = 200  # rows of the table of losses


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    **box: object,
) -> Markup:
    """A table whose first column heads its rows; `numbers` are the columns that stand to the right.

    Args:
        caption: what the table holds; also the name of its box, which the keyboard can scroll.
        columns: their headings.
        rows: cells, each text or markup.
        numbers: indices of columns.
        box: attributes of the box.
    """

    def of(column: int) -> str | None:
        return "number" if column in numbers else None

    head = [tag("th", heading, scope="col", class_=of(index)) for index, heading in enumerate(columns)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=of(0)),
            *(tag("td", cell, class_=of(index)) for index, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    content = tag("table", tag("caption", tag("span", caption)), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", content, **{"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": caption, **box})


def run_table(report: CompareReport) -> Markup:
    """How each backend ran."""
    ran = zip(report.backends, report.execution_modes, report.seconds, strict=True)
    rows = [(backend, execution, f"{seconds:.1f}") for backend, execution, seconds in ran]
    columns = ("backend", "execution", "seconds")
    return table("How each backend ran; seconds include compilation", columns, rows, numbers=(2,))


def loss_table(report: CompareReport) -> Markup:
    """Losses, gradient norms and differences of the updates; of very many, the worst of each stretch."""
    first, second = report.histories
    parted = report.first_divergence
    keep = () if parted is None else (parted.update - 1,)
    shown = thinned(report.loss_differences, MOST_UPDATES, keep=keep)
    losses = [history["loss"][shown] for history in (first, second)]
    norms = [history["grad_norm"][shown] for history in (first, second)]
    columns = zip(first["update"][shown], *losses, report.loss_differences[shown], *norms, strict=True)
    rows = []
    for update, *pair, gap, one, other in columns:
        rows.append(
            (int(update), *map(number, pair), _within(gap, report.tolerance.loss), f"{one:.4g}", f"{other:.4g}")
        )
    left_out = len(first) - len(shown)
    caption = "Losses and gradient norms by update" + (f", {left_out} updates left out" if left_out else "")
    one, other = report.backends
    headings = (
        "update",
        f"{one} loss",
        f"{other} loss",
        "difference",
        f"{one} gradient norm",
        f"{other} gradient norm",
    )
    return table(caption, headings, rows, numbers=range(6), class_="scroll tall")


def heat_table(heat: Heat) -> Markup:
    """For each row of the heat map, its largest difference, when, and of which parameter."""
    order = np.argsort(-heat.differences.max(axis=1, initial=0.0), kind="stable")
    rows = [
        (
            name(heat.rows[row]),
            relative(float(heat.differences[row].max())),
            int(heat.updates[int(np.argmax(heat.differences[row]))]),
            name(heat.worst[row]),
        )
        for row in order
    ]
    columns = ("layer", "largest difference", "at update", "of the parameter")
    return table("Largest difference of each layer, worst first", columns, rows, numbers=(1, 2), class_="scroll tall")


def parameter_table(report: CompareReport, links: Mapping[str, Sequence[Link]]) -> Markup:
    """Every parameter of the reference with its partner, worst first.

    Args:
        report: with the differences.
        links: the links of a parameter of the reference, by its name.
    """
    differences, undetermined = report.parameter_differences, set(report.undetermined)
    worst_first = sorted(differences, key=lambda key: (key in undetermined, -differences[key]))
    rows = []
    for key in worst_first:
        found = links.get(key, ())
        partners = [link.other for link in found if link.other != key]
        shown = join(name(key), *(tag("span", "↔ ", name(partner), class_="partner") for partner in partners))
        bound = report.tolerance.undetermined if key in undetermined else report.tolerance.parameters
        size = _within(differences[key], bound)
        if key in undetermined:
            size = join(size, tag("span", "gradient is rounding", class_="partner"))
        changes = join(*(_change(link) for link in found)) if found else "–"
        shapes = join(*(tag("div", _shapes(link)) for link in found)) if found else "–"
        rows.append((shown, size, changes, shapes)[: 4 if links else 2])
    one, other = report.backends
    headings = ("parameter", "difference", f"layout, {one} to {other}", "shape")
    caption = (
        f"{len(rows)} parameters at the end, worst first; names as in {one}, those of {other} below where they differ"
    )
    shown_headings = headings if links else headings[:2]
    return table(caption, shown_headings, rows, numbers=(1,), class_="scroll tall", id="parameter-table")


def places_table(report: CompareReport, places: Sequence[Any]) -> Markup:
    """Every place of the second model that makes other arrays of the reference's arrays, in the model's order."""
    kinds = {
        "layer": "right inputs, wrong outputs",
        "wiring": "something else arrives here",
        "loss": "a term of the loss differs",
    }
    rows = []
    for place in places:
        partner = (
            tag("span", "↔ ", name(place.partner), class_="partner") if place.partner not in ("", place.name) else ""
        )
        where = tag("span", place.place, class_="partner") if place.place else ""
        rounding = "–" if place.rounding is None else relative(place.rounding)
        values = [number(float(value)) for value in place.values]
        shown = join(name(place.name) if place.name else "the model's outputs", partner, where)
        rows.append((shown, kinds.get(place.kind, place.kind), relative(place.difference), rounding, *values))
    one, other = report.backends
    columns = ("layer", "what is wrong", "difference", "rounding alone", f"value in {one}", f"value in {other}")
    caption = f"Each was given what the same place got in {one}, so that one mistake does not hide another"
    return table(caption, columns, rows, numbers=(2, 3, 4, 5))


def evaluation_table(report: CompareReport) -> Markup:
    """Loss and metrics on the evaluation data at the end."""
    first, second = report.evaluations
    rows = []
    for metric, value in first.items():
        rows.append(
            (metric, _shown(value), _shown(second[metric]), relative(relative_difference(value, second[metric])))
        )
    one, two = report.backends
    return table("On the evaluation data, after the last update", ("", one, two, "difference"), rows, numbers=(1, 2, 3))


def _change(link: Link) -> Markup:
    """The change of layout, and below it how the partner was found where a name alone did not tell."""
    evidence = getattr(link, "evidence", "")
    found = "" if evidence in ("", "name") else tag("span", f"evidence: {evidence}", class_="partner")
    return tag("div", getattr(link, "change", "") or "as it is", found)


def _shapes(link: Link) -> str:
    here, there = link.reference_shape, getattr(link, "other_shape", link.rearrangement.shape)
    return shape(here) if tuple(here) == tuple(there) else f"{shape(here)} to {shape(there)}"


def _within(difference: float, bound: float) -> Markup:
    """A difference, marked in words where it is beyond the bound."""
    if difference <= bound:
        return join(relative(difference))
    return tag("span", relative(difference), " ✗", class_="beyond", title="beyond the tolerance")


def _shown(value: Any) -> str:
    return number(float(value)) if np.ndim(value) == 0 else f"array {shape(np.shape(value))}"
