"""The plots as plotly's own dictionaries. A string "--name" is a colour of page.css."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.pages.figures import (
    MOST_MARKED,
    Figure,
    falls_far,
    finite,
    layout,
    mode,
    power,
    tail,
    without_markup,
)
from multibackend.pages.words import relative
from multibackend.parity.html.layers import Heat

__all__ = ["FIRST", "SECOND", "LogAxis", "difference_figure", "heat_figure", "loss_figure"]

FIRST = "--first"
SECOND = "--second"
LONGEST_LABEL = 34  # characters of a layer's name beside the heat map
LONGEST_NARROW_LABEL = 16  # the same on a phone, where it would leave the map no room
# steps of equal decades; page.css has them for light and for dark, each even in lightness
_HEAT = ("--heat-0", "--heat-1", "--heat-2", "--heat-3", "--heat-4", "--heat-5")


def loss_figure(updates: np.ndarray, losses: Mapping[str, np.ndarray], divergence: int | None) -> Figure:
    """Draw both loss curves: the reference wide, the other narrow and dashed on top, so that both show."""
    wide = {
        "line": {"color": FIRST, "width": 6},
        "marker": {"color": FIRST, "size": 9, "symbol": "circle"},
    }
    narrow = {
        "line": {"color": SECOND, "width": 2.5, "dash": "dash"},
        "marker": {"color": SECOND, "size": 6, "symbol": "diamond"},
    }
    traces = []
    for backend, style in zip(losses, (wide, narrow), strict=True):
        name = without_markup(backend)
        trace = {
            "type": "scatter",
            "mode": mode(updates),
            "name": name,
            "x": updates.tolist(),
            "y": finite(losses[backend]),
            "hovertemplate": f"update %{{x}}<br>{name} %{{y:.9g}}<extra></extra>",
        }
        traces.append(trace | style)
    frame = _marked(layout("loss", updates), divergence)
    if falls_far(np.concatenate(list(losses.values()))):
        frame["yaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {"data": traces, "layout": frame}


class LogAxis:
    """A log axis on which zero and infinity have their own places, below and above all numbers.

    Args:
        values: what is drawn.
        bounds: what should be seen beside them, such as a tolerance.

    >>> axis = LogAxis(np.array([0.0, 1e-8, 2e-3]), (1e-4,))
    >>> axis.place(0.0), axis.place(1e-8), axis.labels[0], axis.labels[-1]
    (-9.0, -8.0, '0', '1e-02')
    """

    def __init__(self, values: np.ndarray, bounds: Sequence[float] = ()) -> None:
        shown = np.concatenate([np.ravel(values), np.ravel(np.array(bounds, np.float64))])
        sizes = np.log10(shown[np.isfinite(shown) & (shown > 0)])
        self.has_zero = bool((np.asarray(values) == 0).any())
        self.has_infinity = bool(np.isinf(values).any())
        self.low = -16  # where there is no number at all: float64's rounding
        self.high = 0
        if sizes.size:
            # log10 rounds: 1e-8 may come out a little below -8, and would take a whole decade more
            self.low = math.floor(sizes.min() + 1e-9)
            self.high = math.ceil(sizes.max() - 1e-9)
        self.high = max(self.high, self.low + 1)
        self.zero = float(self.low - 1)
        self.infinity = float(self.high + 1)

    def place(self, value: float) -> float:
        """Return where a difference is drawn: its log10, or the place of zero or infinity."""
        if value == 0:
            return self.zero
        if not math.isfinite(value):
            return self.infinity
        return math.log10(value)

    @property
    def range(self) -> tuple[float, float]:
        """From end to end, with some room."""
        low = self.zero if self.has_zero else self.low
        high = self.infinity if self.has_infinity else self.high
        return low - 0.4, high + 0.4

    @property
    def ticks(self) -> list[float]:
        """At most about eight decades, and the places of zero and infinity where they are used."""
        stride = max(1, math.ceil((self.high - self.low) / 8))
        # counted from above, where the differences are that matter
        decades = [float(decade) for decade in range(self.high, self.low - 1, -stride)]
        decades.reverse()
        return [self.zero] * self.has_zero + decades + [self.infinity] * self.has_infinity

    @property
    def labels(self) -> list[str]:
        """What is written at `ticks`."""
        special = {self.zero: "0", 0.0: "1", self.infinity: "∞"}
        return [special.get(tick) or power(tick) for tick in self.ticks]


def difference_figure(
    updates: np.ndarray,
    differences: np.ndarray,
    tolerance: float,
    divergence: int | None,
    rounding: np.ndarray | None = None,
) -> Figure:
    """Draw the relative difference of the losses on a log axis; zeros are hollow, at its foot.

    Args:
        updates: [points] their numbers.
        differences: [points].
        tolerance: up to which two runs match; the band below it is shaded.
        divergence: the update at which the runs part.
        rounding: [points] what rounding alone makes, where it was measured.
    """
    bounds = [tolerance]
    if rounding is not None:
        bounds += rounding.tolist()
    axis = LogAxis(differences, bounds)
    traces = _difference_traces(updates, differences, axis)
    if rounding is not None:
        traces += _rounding_traces(updates, rounding, axis)
    frame = _marked(layout("relative difference", updates), divergence)
    frame["yaxis"] |= {"range": axis.range, "tickvals": axis.ticks, "ticktext": axis.labels}
    if math.isfinite(tolerance) and tolerance > 0:
        _shade(frame, axis.range[0], tolerance)
        traces.append(_tolerance_trace(frame, tolerance))
    frame["showlegend"] = len(traces) > 1
    return {"data": traces, "layout": frame}


def _difference_traces(updates: np.ndarray, differences: np.ndarray, axis: LogAxis) -> list[dict[str, Any]]:
    """Draw the differences as a line, and those that are exactly zero as hollow points."""
    sizes = differences.tolist()
    common = {"type": "scatter", "x": updates.tolist(), "text": [relative(size) for size in sizes]}
    line: dict[str, Any] = {
        **common,
        "mode": mode(updates),
        "name": "difference",
        # None breaks the line: joined to the zeros it would fall to the foot and rise again
        "y": [axis.place(size) if size != 0 else None for size in sizes],
        "line": {"color": "--difference", "width": 2.5},
        "marker": {"color": "--difference", "size": 8},
        "hovertemplate": "update %{x}<br>difference %{text}<extra></extra>",
    }
    if not axis.has_zero:
        return [line]
    diameter = 8 if len(updates) <= MOST_MARKED else 5
    hollow = {
        **common,
        "mode": "markers",
        "name": "no difference at all",
        "y": [axis.zero if size == 0 else None for size in sizes],
        "marker": {"color": "--difference", "size": diameter, "symbol": "circle-open", "line": {"width": 2}},
        "hovertemplate": "update %{x}<br>no difference: all bits are equal<extra></extra>",
    }
    return [line, hollow]


def _rounding_traces(updates: np.ndarray, rounding: np.ndarray, axis: LogAxis) -> list[dict[str, Any]]:
    """Draw what rounding alone makes as a line with the band below it."""
    sizes = rounding.tolist()
    common = {"type": "scatter", "mode": "lines", "x": updates.tolist(), "connectgaps": True}
    # without a line or a name: "tonexty" fills from the line down to the trace before it
    foot = {
        **common,
        "y": [axis.range[0]] * len(updates),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    line = {
        **common,
        "name": "rounding alone",
        "y": [axis.place(size) if size > 0 else None for size in sizes],
        "text": [relative(size) for size in sizes],
        "line": {"color": "--muted", "width": 2, "dash": "dot"},
        "fill": "tonexty",
        "fillcolor": "--rounding",
        "hovertemplate": "update %{x}<br>rounding alone %{text}<extra></extra>",
    }
    return [foot, line]


def _shade(frame: dict[str, Any], low: float, tolerance: float) -> None:
    """Shade the band in which two runs match."""
    band = {"type": "rect", "layer": "below", "fillcolor": "--band", "line": {"width": 0}}
    band |= {"xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": math.log10(tolerance)}
    frame["shapes"].append(band)


def _tolerance_trace(frame: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Draw the upper edge of that band, named in the legend, where it hides no point."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"tolerance {relative(tolerance)}",
        "x": frame["xaxis"]["range"],
        "y": [math.log10(tolerance)] * 2,
        "line": {"color": "--good", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def heat_figure(heat: Heat, precision: str, divergence: tuple[str, int] | None) -> Figure:
    """Draw a map of layers by updates; the colour is log10 of the difference.

    Args:
        heat: what to show.
        precision: of the runs; float64's scale begins at 1e-16, that of the others at 1e-8.
        divergence: the row and the update where the runs first part.
    """
    # one scale for all reports, so that two pages can be held side by side
    low = {"float64": -16.0}.get(precision, -8.0)
    traces = [_heat_trace(heat, low)]
    if divergence is not None and divergence[0] in heat.rows:
        traces.append(_ring(heat, *divergence))
    rows = len(heat.rows)
    frame = layout("", heat.updates)
    # 20 pixels a row: the names stay readable, and a model of three layers has a map too
    frame["height"] = max(220, 110 + 20 * rows)
    frame["xaxis"] |= {"showgrid": False, "range": [0.5, float(heat.updates[-1]) + 0.5]}
    frame["yaxis"] |= {
        "range": [rows - 0.5, -0.5],  # the model's first layer at the top
        "tickvals": list(range(rows)),
        "ticktext": [tail(row, LONGEST_LABEL) for row in heat.rows],
        "showgrid": False,
    }
    # what page.js changes on a phone: shorter names, and the colour bar above the map
    narrow = {
        "layout.yaxis.ticktext": [tail(row, LONGEST_NARROW_LABEL) for row in heat.rows],
        "layout.height": frame["height"] + 60,
        "layout.margin.t": 10,
        "data.0.xgap": 0,
        "data.0.colorbar.tickvals": [-0.5 + low, low / 2, 0.0],
        "data.0.colorbar.ticktext": ["0", power(low / 2), "1"],
        "data.0.colorbar.orientation": "h",
        "data.0.colorbar.y": 1,
        "data.0.colorbar.yanchor": "bottom",
    }
    return {"data": traces, "layout": frame, "narrow": narrow}


def _ring(heat: Heat, row: str, update: int) -> dict[str, Any]:
    """Mark a row at the column that stands for an update."""
    column = int(heat.updates[heat.updates <= update].max(initial=heat.updates[0]))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [column],
        "y": [heat.rows.index(row)],
        "marker": {"size": 15, "symbol": "circle-open", "color": "--bad", "line": {"width": 3}},
        "hoverinfo": "skip",
        "showlegend": False,
        "cliponaxis": False,
    }


def _heat_trace(heat: Heat, low: float) -> dict[str, Any]:
    """Draw the map itself; what lies below 10^low, zero too, is shown one decade below it."""
    sizes = np.nan_to_num(heat.differences, nan=np.inf)  # NaN on one side is the worst difference
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(sizes), low - 1, 0.0)
    decades = [low + step * (-low / 4) for step in range(5)]
    labels = [power(decade) for decade in decades[:-1]]
    # page.js writes each cell's text from its row and its column: here they would be most of the page
    rows = zip(heat.rows, heat.worst, strict=True)
    texts = [
        f"{without_markup(row)}<br>update {{x}}: {{text}}<br>most in {without_markup(worst)}" for row, worst in rows
    ]
    return {
        "type": "heatmap",
        "x": heat.updates.tolist(),
        "y": list(range(len(heat.rows))),
        "z": np.round(logs, 2).tolist(),
        "text": [[relative(size) for size in row] for row in sizes.tolist()],
        "meta": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "zmin": low - 1,
        "zmax": 0.0,
        "xgap": 1 if len(heat.updates) <= MOST_MARKED else 0,
        "ygap": 1,
        "colorscale": [[index / (len(_HEAT) - 1), color] for index, color in enumerate(_HEAT)],
        "colorbar": {"tickvals": [low - 1, *decades], "ticktext": ["0", *labels, "1"], "thickness": 14},
    }


def _marked(frame: dict[str, Any], update: int | None) -> dict[str, Any]:
    """Draw a line at the update where the runs part, if they do, and say so at its top."""
    if update is None:
        return frame
    line = {"type": "line", "line": {"color": "--bad", "width": 1.5, "dash": "dot"}}
    line |= {"x0": update, "x1": update, "yref": "paper", "y0": 0, "y1": 1}
    frame["shapes"].append(line)
    label = {"text": f"parts at {update}", "font": {"color": "--bad"}, "bgcolor": "--paper"}
    label |= {"x": update, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "top"}
    frame["annotations"].append({**label, "xshift": 4, "showarrow": False})
    return frame
