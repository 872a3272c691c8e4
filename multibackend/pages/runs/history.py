"""A history as one figure of plotly: what `FitResult.plot` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.extras import import_extra
from multibackend.core.history import History
from multibackend.pages.figures import falls_far, finite, mode
from multibackend.pages.runs.figures import points_each, thinned_means

__all__ = ["history_figure"]

_BY = "a figure"  # that needs plotly, for the error that says how to install it
_COLUMNS = {"loss": "loss", "learning_rate": "learning rate", "grad_norm": "gradient norm"}
_COLOR = "#1f77b4"
_EVALUATED = "#b8450a"
_HEIGHT = 230  # pixels of each plot


def history_figure(title: str, history: History, evaluations: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """Draw loss, learning rate, gradient norm and each metric of the evaluations, one below the other.

    Args:
        title: of the figure.
        history: of the run.
        evaluations: (update, value) by metric; the one called "loss" is drawn beside the loss.

    Raises:
        PackageNotInstalledError: plotly is not installed.
    """
    subplots = import_extra("plotly.subplots", "html", by=_BY)
    rows = [*_COLUMNS.values(), *(name for name in evaluations if name != "loss")]
    figure = subplots.make_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.25 / len(rows))
    for row, (column, name) in enumerate(_COLUMNS.items(), start=1):
        updates, values = thinned_means(history["update"], history[column], points_each(1))
        _add(figure, row, name, updates, values, _COLOR, mode(updates))
        if column != "learning_rate" and falls_far(values):
            figure.update_yaxes(type="log", row=row)
    for name, points in evaluations.items():
        row = 1 if name == "loss" else rows.index(name) + 1
        updates, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
        _add(figure, row, f"evaluated {name}", updates, values, _EVALUATED, "lines+markers")
    for row, name in enumerate(rows, start=1):
        figure.update_yaxes(title_text=name, row=row)
    figure.update_xaxes(title_text="update", row=len(rows))
    height = 90 + _HEIGHT * len(rows)
    return figure.update_layout(title=title, height=height, showlegend=bool(evaluations), template="plotly_white")


def _add(figure: Any, row: int, name: str, x: np.ndarray, y: np.ndarray, color: str, drawn: str) -> None:
    trace = {"type": "scatter", "name": name, "x": x.tolist(), "y": finite(y), "mode": drawn}
    figure.add_trace({**trace, "line": {"color": color}, "showlegend": name.startswith("evaluated")}, row=row, col=1)
