"""The page: what was found, in the order in which a reader asks for it."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

from multibackend.matching.links import Link
from multibackend.parity.findings import Divergence
from multibackend.parity.html.figures import Figure, difference_figure, heat_figure, loss_figure
from multibackend.parity.html.findings import divergence_section, facts, verdict
from multibackend.parity.html.layers import WHOLE, Heat, by_layer, layer_of, thinned
from multibackend.parity.html.markup import Markup, breakable, join, name, prose, script_json, tag
from multibackend.parity.html.tables import (
    evaluation_table,
    heat_table,
    loss_table,
    parameter_table,
    places_table,
    run_table,
)
from multibackend.parity.html.words import relative
from multibackend.parity.report import CompareReport

__all__ = ["render"]

MOST_POINTS = 2000  # of a curve
FILTER_FROM = 8  # parameters, from where on a filter helps
# nothing may be fetched: scripts and styles stand in the page, plotly draws heat maps as data: images
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def render(report: CompareReport, plotly: str, command: str | None = None) -> str:
    """The whole page.

    Args:
        report: what to show.
        plotly: plotly's JavaScript.
        command: the command line that made the report; without it the page shows the call in Python.
    """
    figures: dict[str, Figure] = {}
    sections = _sections(report, figures, command)
    one, other = report.backends
    title = f"{report.experiment}: {one} against {other}"
    head = join(
        Markup('<meta charset="utf-8">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="description", content=report.first_divergence or "The runs match."),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_text("page.css"))),
    )
    links = [tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    header = tag(
        "header",
        tag("p", f"Two runs compared: {one} against {other}", class_="kind"),
        tag("h1", report.experiment),
        verdict(report),
        tag("nav", tag("ul", *links), aria_label="Sections"),
    )
    main = tag("main", *(_section(*section) for section in sections), id="content", tabindex=-1)
    footer = tag("footer", tag("p", "Written by multibackend. This page needs no network."))
    body = join(
        tag("a", "Skip to the findings", href="#content", class_="skip"),
        header,
        main,
        footer,
        tag("script", script_json(figures), type="application/json", id="figures"),
        tag("script", Markup(plotly)),
        tag("script", Markup(_text("page.js"))),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


def _sections(report: CompareReport, figures: dict[str, Figure], command: str | None) -> list[tuple[str, str, Markup]]:
    """Anchor, heading and content of each; their plots go into `figures`."""
    sections = [
        ("divergence", "First divergence", divergence_section(report)),
        ("run", "What was run", _run(report)),
    ]
    if len(report.histories[0]):
        sections.append(("losses", "Losses", _losses(report, figures)))
        sections.append(("differences", "Difference per update", _differences(report, figures)))
    changes = getattr(report, "gradient_differences", None)
    if changes is not None and np.size(changes):
        heat = by_layer(list(report.parameter_differences), np.asarray(changes, np.float64))
        sections.append(("layers", "Layers by update", _layers(report, heat, figures)))
    sections.append(("parameters", "Parameters", _parameters(report)))
    places = getattr(report, "layers", ())
    if places:
        sections.append(("places", "Places that are wrong by themselves", places_table(report, places)))
    if report.evaluations[0]:
        sections.append(("evaluation", "Evaluation", evaluation_table(report)))
    sections.append(("again", "How to run this again", _again(report, command)))
    return sections


def _section(anchor: str, heading: str, content: Markup) -> Markup:
    titled = tag("h2", heading, id=f"{anchor}-heading")
    return tag("section", titled, content, id=anchor, aria_labelledby=f"{anchor}-heading")


def _run(report: CompareReport) -> Markup:
    rows: list[tuple[object, object]] = [
        ("experiment", report.experiment),
        ("precision", report.precision),
        ("updates", report.updates),
        *((term, breakable(value)) for term, value in report.settings.items()),
    ]
    notes = tag("ul", *(tag("li", f"{note}.") for note in report.notes)) if report.notes else ""
    why = tag("p", prose(f"Tolerance in {report.precision}: {report.tolerance.reason}."), class_="note")
    return join(
        facts(rows),
        run_table(report),
        join(tag("h3", "Notes"), notes) if notes else "",
        "" if report.matches else why,
    )


def _plot(anchor: str, caption: str, words: str) -> Markup:
    """A place for a plot; without JavaScript its caption remains."""
    return tag(
        "figure",
        tag("figcaption", prose(caption)),
        tag("noscript", tag("p", "The plot needs JavaScript; the table below has its numbers.", class_="note")),
        tag("div", id=anchor, class_="plot", role="img", aria_label=words),
    )


def _losses(report: CompareReport, figures: dict[str, Figure]) -> Markup:
    one, other = report.backends
    shown = _shown(report)
    updates = report.histories[0]["update"][shown]
    histories = dict(zip(report.backends, report.histories, strict=True))
    losses = {backend: history["loss"][shown] for backend, history in histories.items()}
    figures["loss-plot"] = loss_figure(updates, losses, _parted(report))
    ends = [f"{backend} from {h[0].loss:.6g} to {h[-1].loss:.6g}" for backend, h in histories.items()]
    return join(
        _plot(
            "loss-plot",
            f"The loss of each update, {one} wide and solid, {other} narrow and dashed on top of it.",
            f"Both loss curves over {report.updates} updates: {', '.join(ends)}.",
        ),
        tag("details", tag("summary", "The losses as a table"), loss_table(report)),
    )


def _differences(report: CompareReport, figures: dict[str, Figure]) -> Markup:
    shown = _shown(report)
    gaps, updates = report.loss_differences[shown], report.histories[0]["update"][shown]
    rounding = getattr(report, "rounding", None)
    rounding = None if rounding is None else np.asarray(rounding, np.float64)[shown]
    bound = report.tolerance.loss
    figures["difference-plot"] = difference_figure(updates, gaps, bound, _parted(report), rounding)
    largest, beyond = report.max_loss_difference, int((report.loss_differences > bound).sum())
    zero = int((report.loss_differences == 0).sum())
    words = (
        f"The relative difference of the losses: at most {relative(largest)}, at update "
        f"{int(np.argmax(report.loss_differences)) + 1}; {beyond} of {report.updates} updates are beyond the tolerance "
        f"of {relative(bound)}" + (f", and in {zero} the losses are equal to the last bit." if zero else ".")
    )
    band = "" if rounding is None else " What rounding alone makes lies below the dotted line."
    caption = f"{words} The shaded band is the tolerance.{band}"
    table = tag("p", "The numbers are in ", tag("a", "the table of losses", href="#losses"), ".", class_="note")
    return join(_plot("difference-plot", caption, words), table)


def _layers(report: CompareReport, heat: Heat, figures: dict[str, Figure]) -> Markup:
    parted = _parted_row(report.first_divergence, heat)
    figures["layer-plot"] = heat_figure(heat, report.precision, parted)
    blocks = len(heat.rows)
    grouped = f" {heat.layers} layers are shown as {blocks} blocks, each by its worst layer."
    worst = int(np.argmax(heat.differences.max(axis=1)))
    column = int(np.argmax(heat.differences[worst]))
    caption = (
        "Relative difference of the gradient norms, by layer in the model's order and by update; the darkest (in the "
        "dark the brightest) differ most." + (grouped if heat.layers > blocks else "")
    )
    ring = "" if parted is None else " A ring marks the first divergence."
    words = (
        f"Largest difference: {relative(float(heat.differences[worst, column]))} in {heat.rows[worst]} at update "
        f"{int(heat.updates[column])}."
    )
    return join(
        _plot("layer-plot", f"{caption}{ring} {words}", f"Heat map of layers by updates. {words}"),
        tag("details", tag("summary", "The layers as a table"), heat_table(heat)),
    )


def _parameters(report: CompareReport) -> Markup:
    matching = getattr(report, "matching", None)
    links: dict[str, list[Link]] = {}
    for link in getattr(matching, "links", ()):
        links.setdefault(link.reference, []).append(link)
    field = tag("input", id="filter", type="search", autocomplete="off", aria_describedby="filter-status")
    status = tag("span", id="filter-status", role="status", class_="note")
    label = tag("label", "Show those with", for_="filter")
    box = tag("div", label, field, status, class_="filter", hidden=True)
    table = join(parameter_table(report, links), _alone(report, matching))
    return join(box if len(report.parameter_differences) >= FILTER_FROM else "", table)


def _alone(report: CompareReport, matching: object) -> Markup:
    """What has no partner in the other model, with the reason."""
    found = []
    for backend, field in zip(report.backends, ("reference_only", "other_only"), strict=True):
        found += [(f"{backend} alone: ", key, why) for key, why in getattr(matching, field, {}).items()]
    rows = [tag("li", where, name(key), f": {why}" if why else "") for where, key, why in found]
    return join(tag("h3", "Without a partner"), tag("ul", *rows)) if rows else Markup()


def _again(report: CompareReport, command: str | None) -> Markup:
    if command is not None:
        return tag("pre", tag("code", command))
    call = (
        f"report = mb.compare(experiment, backends={report.backends!r}, updates={report.updates}, "
        f'precision="{report.precision}")\nreport.write_html("parity.html")'
    )
    return tag("pre", tag("code", call))


def _shown(report: CompareReport) -> np.ndarray:
    parted = _parted(report)
    return thinned(report.loss_differences, MOST_POINTS, keep=() if parted is None else (parted - 1,))


def _parted(report: CompareReport) -> int | None:
    return None if report.first_divergence is None else report.first_divergence.update


def _parted_row(divergence: Divergence | None, heat: Heat) -> tuple[str, int] | None:
    """The row of the heat map that holds the layer or the parameter of the first divergence."""
    if divergence is None:
        return None
    for layer in (divergence.what, layer_of(divergence.what)):
        for row in heat.rows:
            if row != WHOLE and (layer == row or layer.startswith(f"{row}.")):
                return row, divergence.update
    return None


@cache
def _text(file: str) -> str:
    return (resources.files("multibackend.parity.html") / file).read_text(encoding="utf-8")
