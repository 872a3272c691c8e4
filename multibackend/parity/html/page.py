"""The page: `page.html.jinja` filled with a result, in the order in which a reader asks for it."""

from __future__ import annotations

import numpy as np

from multibackend.pages import writing
from multibackend.pages.plots import Plot
from multibackend.parity.findings import STAGES
from multibackend.parity.html.divergence import divergence_words, verdict_figures, verdict_sentence
from multibackend.parity.html.layers import Heat, by_layer
from multibackend.parity.html.plots import difference_plot, heat_plot, heat_words, loss_plot
from multibackend.parity.html.tables import evaluation_rows, heat_rows, loss_rows, parameter_rows, unpaired
from multibackend.parity.result import ComparisonResult

__all__ = ["render"]

FILTER_FROM = 8  # parameters, from where on a filter helps


def render(result: ComparisonResult, plotly: str, command: str | None = None) -> str:
    """Return the whole page.

    Args:
        result: what to show.
        plotly: its JavaScript, packed.
        command: the command line that made the result; else the page shows the call in Python.
    """
    heat = _heat(result)
    plots = _plots(result, heat)
    divergence = result.first_divergence
    return writing.render(
        "multibackend.parity.html",
        "page.html.jinja",
        plotly,
        result=result,
        sections=_sections(result, heat),
        verdict=verdict_sentence(divergence),
        verdict_figures=verdict_figures(result),
        words=None if divergence is None else divergence_words(divergence),
        stages=STAGES,
        plots=plots,
        losses=loss_rows(result),
        heat_words="" if heat is None else heat_words(heat),
        layers=[] if heat is None else heat_rows(heat),
        parameters=parameter_rows(result),
        unpaired=unpaired(result),
        filtered=len(result.parameter_differences) >= FILTER_FROM,
        evaluation=evaluation_rows(result),
        call=_call(result) if command is None else command,
    )


def _sections(result: ComparisonResult, heat: Heat | None) -> dict[str, str]:
    """Headings by anchor of the sections that have something to show, in their order."""
    sections = {"divergence": "First divergence", "run": "What was run"}
    if len(result.histories[0]):
        sections["losses"] = "Losses"
        sections["differences"] = "Difference per update"
    if heat is not None:
        sections["layers"] = "Layers by update" if not result.matches else "Layers"
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
    # of two runs that match a map would show the pattern of rounding, which looks like a finding
    if heat is not None and not result.matches:
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
