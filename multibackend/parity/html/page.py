"""The page: `page.html.jinja` filled with a result, in the order in which a reader asks for it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from multibackend.loggers.scalars import import_extra
from multibackend.parity.findings import STAGES
from multibackend.parity.html.divergence import divergence_words, verdict_figures, verdict_sentence
from multibackend.parity.html.layers import Heat, by_layer
from multibackend.parity.html.plots import Plot, difference_plot, heat_plot, loss_plot
from multibackend.parity.html.tables import evaluation_rows, heat_rows, loss_rows, parameter_rows, unpaired
from multibackend.parity.html.words import code_pieces, name_pieces, number, prose_pieces, relative
from multibackend.parity.result import ComparisonResult

__all__ = ["BY", "environment", "render"]

BY = "a page of HTML"  # that needs plotly and Jinja2, for the error that says how to install them
FILTER_FROM = 8  # parameters, from where on a filter helps


def render(result: ComparisonResult, plotly: str, command: str | None = None) -> str:
    """Return the whole page.

    Args:
        result: what to show.
        plotly: plotly's JavaScript.
        command: the command line that made the result; else the page shows the call in Python.
    """
    heat = _heat(result)
    plots = _plots(result, heat)
    divergence = result.first_divergence
    template = environment().get_template("page.html.jinja")
    return template.render(
        result=result,
        sections=_sections(result, heat),
        verdict=verdict_sentence(divergence),
        verdict_figures=verdict_figures(result),
        words=None if divergence is None else divergence_words(divergence),
        stages=STAGES,
        plots={plot.anchor: plot for plot in plots},
        figures={plot.anchor: plot.figure for plot in plots},
        losses=loss_rows(result),
        layers=[] if heat is None else heat_rows(heat),
        parameters=parameter_rows(result),
        unpaired=unpaired(result),
        filtered=len(result.parameter_differences) >= FILTER_FROM,
        evaluation=evaluation_rows(result),
        call=_call(result) if command is None else command,
        style=_text("page.css"),
        script=_text("page.js"),
        plotly=plotly,
    )


@cache
def environment() -> Any:
    """Return the page's environment of Jinja2: it escapes every text, and a missing name is an error.

    `import_extra` and not an import, because only a page needs Jinja2.
    """
    jinja2 = import_extra("jinja2", "html", by=BY)
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("multibackend.parity.html", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON has neither NaN nor infinity: refuse them here rather than in the browser
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.filters |= {
        "code_pieces": code_pieces,
        "name_pieces": name_pieces,
        "number": number,
        "prose_pieces": prose_pieces,
        "relative": relative,
    }
    return made


def _sections(result: ComparisonResult, heat: Heat | None) -> dict[str, str]:
    """Headings by anchor of the sections that have something to show, in their order."""
    sections = {"divergence": "First divergence", "run": "What was run"}
    if len(result.histories[0]):
        sections["losses"] = "Losses"
        sections["differences"] = "Difference per update"
    if heat is not None:
        sections["layers"] = "Layers by update"
    sections["parameters"] = "Parameters"
    if result.layers:
        sections["places"] = "Places that are wrong by themselves"
    if result.evaluations[0]:
        sections["evaluation"] = "Evaluation"
    sections["again"] = "How to run this again"
    return sections


def _plots(result: ComparisonResult, heat: Heat | None) -> list[Plot]:
    """Draw what there is: a run whose windows were all skipped has no curve."""
    plots = []
    if len(result.histories[0]):
        plots += [loss_plot(result), difference_plot(result)]
    if heat is not None:
        plots.append(heat_plot(result, heat))
    return plots


def _heat(result: ComparisonResult) -> Heat | None:
    """Gather the differences of the gradients by layer; None where none were recorded."""
    differences = result.gradient_differences
    if differences is None or not np.size(differences):
        return None
    return by_layer(list(result.parameter_differences), np.asarray(differences, np.float64))


def _call(result: ComparisonResult) -> str:
    """Write the call in Python that makes such a page."""
    return (
        f"report = mb.compare(experiment, backends={result.backends!r}, updates={result.updates}, "
        f'precision="{result.precision}")\nreport.write_html("parity.html")'
    )


@cache
def _text(file: str) -> str:
    return (resources.files("multibackend.parity.html") / file).read_text(encoding="utf-8")
