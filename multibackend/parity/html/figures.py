"""The plots as plotly's own dictionaries. A string "--name" stands for the page's colour of that name (page.css)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.parity.html.layers import Heat
from multibackend.parity.html.words import relative

__all__ = ["FIRST", "SECOND", "Figure", "LogAxis", "difference_figure", "heat_figure", "loss_figure"]

Figure = dict[str, Any]

FIRST, SECOND = "--first", "--second"
MOST_MARKED = 40  # more points than that are drawn as a line only
LONGEST_LABEL, LONGEST_NARROW_LABEL = 34, 16
_HEAT = ("--heat-0", "--heat-1", "--heat-2", "--heat-3", "--heat-4", "--heat-5")
_FAR = 100.0  # a loss that falls by more than this factor is drawn on a log scale


def loss_figure(updates: np.ndarray, losses: Mapping[str, np.ndarray], parted: int | None) -> Figure:
    """Both loss curves: the reference wide and solid, the other narrow, dashed and on top, so that both are seen."""
    styles = (
        {"line": {"color": FIRST, "width": 6}, "marker": {"color": FIRST, "size": 9, "symbol": "circle"}},
        {
            "line": {"color": SECOND, "width": 2.5, "dash": "dash"},
            "marker": {"color": SECOND, "size": 6, "symbol": "diamond"},
        },
    )
    traces = [
        {
            "type": "scatter",
            "mode": _mode(updates),
            "name": _plain(backend),
            "x": updates.tolist(),
            "y": _finite(values),
            "hovertemplate": f"update %{{x}}<br>{_plain(backend)} %{{y:.9g}}<extra></extra>",
            **style,
        }
        for (backend, values), style in zip(losses.items(), styles, strict=True)
    ]
    together = np.concatenate(list(losses.values()))
    together = together[np.isfinite(together)]
    far = together.size > 0 and together.min() > 0 and together.max() > _FAR * together.min()
    layout = _layout("loss", updates, parted)
    layout["yaxis"] |= {"type": "log", "dtick": 1, "exponentformat": "power"} if far else {}
    return {"data": traces, "layout": layout}


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
        low = math.floor(sizes.min() + 1e-9) if sizes.size else -16
        high = math.ceil(sizes.max() - 1e-9) if sizes.size else 0
        self.low, self.high = low, max(high, low + 1)
        self.zero, self.infinity = float(low - 1), float(self.high + 1)

    def place(self, value: float) -> float:
        """Where a difference is drawn: its log10, or the place of zero or infinity."""
        if value == 0:
            return self.zero
        return math.log10(value) if math.isfinite(value) else self.infinity

    @property
    def range(self) -> tuple[float, float]:
        """From end to end, with some room."""
        low, high = self.zero if self.has_zero else self.low, self.infinity if self.has_infinity else self.high
        return low - 0.4, high + 0.4

    @property
    def ticks(self) -> list[float]:
        """At most about eight decades, and the places of zero and infinity where they are used."""
        stride = max(1, math.ceil((self.high - self.low) / 8))
        decades = [float(decade) for decade in range(self.high, self.low - 1, -stride)][::-1]
        return [self.zero] * self.has_zero + decades + [self.infinity] * self.has_infinity

    @property
    def labels(self) -> list[str]:
        """What is written at `ticks`."""
        special = {self.zero: "0", 0.0: "1", self.infinity: "∞"}
        return [special.get(tick) or f"1e{int(tick):+03d}" for tick in self.ticks]


def difference_figure(
    updates: np.ndarray,
    differences: np.ndarray,
    tolerance: float,
    parted: int | None,
    rounding: np.ndarray | None = None,
) -> Figure:
    """The relative difference of the losses on a log axis; zeros are hollow, in a place of their own at the foot.

    Args:
        updates: [points] their numbers.
        differences: [points].
        tolerance: up to which two runs match; the band below it is shaded.
        parted: the update at which the runs part.
        rounding: [points] what rounding alone makes, where it was measured.
    """
    axis = LogAxis(differences, [tolerance, *(() if rounding is None else rounding.tolist())])
    traces = _difference_traces(updates, differences, axis)
    if rounding is not None:
        traces += _rounding_traces(updates, rounding, axis)
    layout = _layout("relative difference", updates, parted)
    layout["yaxis"] |= {"range": axis.range, "tickvals": axis.ticks, "ticktext": axis.labels}
    if math.isfinite(tolerance) and tolerance > 0:
        _shade(layout, axis.range[0], tolerance)
        traces.append(_tolerance_trace(layout, tolerance))
    layout["showlegend"] = len(traces) > 1
    return {"data": traces, "layout": layout}


def _difference_traces(updates: np.ndarray, differences: np.ndarray, axis: LogAxis) -> list[dict[str, Any]]:
    """The differences as a line, and those that are exactly zero as hollow points."""
    zero = differences == 0
    common = {
        "type": "scatter",
        "x": updates.tolist(),
        "text": [relative(float(difference)) for difference in differences],
    }
    traces: list[dict[str, Any]] = [
        {
            **common,
            "mode": _mode(updates),
            "name": "difference",
            "y": [None if absent else axis.place(float(d)) for d, absent in zip(differences, zero, strict=True)],
            "line": {"color": "--difference", "width": 2.5},
            "marker": {"color": "--difference", "size": 8},
            "hovertemplate": "update %{x}<br>difference %{text}<extra></extra>",
        }
    ]
    if zero.any():
        size = 8 if len(updates) <= MOST_MARKED else 5
        traces.append(
            {
                **common,
                "mode": "markers",
                "name": "no difference at all",
                "y": [axis.zero if absent else None for absent in zero],
                "marker": {"color": "--difference", "size": size, "symbol": "circle-open", "line": {"width": 2}},
                "hovertemplate": "update %{x}<br>no difference: all bits are equal<extra></extra>",
            }
        )
    return traces


def _rounding_traces(updates: np.ndarray, rounding: np.ndarray, axis: LogAxis) -> list[dict[str, Any]]:
    """What rounding alone makes, as a line with the band below it."""
    common = {"type": "scatter", "mode": "lines", "x": updates.tolist(), "connectgaps": True}
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
        "y": [axis.place(float(size)) if size > 0 else None for size in rounding],
        "text": [relative(float(size)) for size in rounding],
        "line": {"color": "--muted", "width": 2, "dash": "dot"},
        "fill": "tonexty",
        "fillcolor": "--rounding",
        "hovertemplate": "update %{x}<br>rounding alone %{text}<extra></extra>",
    }
    return [foot, line]


def _shade(layout: dict[str, Any], low: float, tolerance: float) -> None:
    """The band in which two runs match."""
    band = {"type": "rect", "layer": "below", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": math.log10(tolerance)}
    layout["shapes"].append({**band, "fillcolor": "--band", "line": {"width": 0}})


def _tolerance_trace(layout: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The upper edge of that band, named in the legend, where it hides no point."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"tolerance {relative(tolerance)}",
        "x": layout["xaxis"]["range"],
        "y": [math.log10(tolerance)] * 2,
        "line": {"color": "--good", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }


def heat_figure(heat: Heat, precision: str, parted: tuple[str, int] | None) -> Figure:
    """Rows are layers, columns updates, the colour is log10 of the difference, on the same scale for every report.

    Args:
        heat: what to show.
        precision: of the runs; float64's scale begins at 1e-16, that of the others at 1e-8.
        parted: the row and the update where the runs first part.
    """
    low = -16.0 if precision == "float64" else -8.0
    traces = [_heat_trace(heat, low)]
    if parted is not None and parted[0] in heat.rows:
        column = int(heat.updates[heat.updates <= parted[1]].max(initial=heat.updates[0]))
        ring = {"size": 15, "symbol": "circle-open", "color": "--bad", "line": {"width": 3}}
        point = {"type": "scatter", "mode": "markers", "x": [column], "y": [heat.rows.index(parted[0])]}
        traces.append({**point, "marker": ring, "hoverinfo": "skip", "showlegend": False, "cliponaxis": False})
    rows = len(heat.rows)
    layout = _layout("", heat.updates, None)
    layout["height"] = max(220, 110 + 20 * rows)
    layout["xaxis"] |= {"showgrid": False, "range": [0.5, float(heat.updates[-1]) + 0.5]}
    layout["yaxis"] |= {
        "range": [rows - 0.5, -0.5],
        "tickvals": list(range(rows)),
        "ticktext": [_tail(row, LONGEST_LABEL) for row in heat.rows],
        "showgrid": False,
    }
    narrow = {
        "layout.yaxis.ticktext": [_tail(row, LONGEST_NARROW_LABEL) for row in heat.rows],
        "layout.height": layout["height"] + 60,
        "layout.margin.t": 10,
        "data.0.xgap": 0,
        "data.0.colorbar.tickvals": [-0.5 + low, low / 2, 0.0],
        "data.0.colorbar.ticktext": ["0", f"1e{int(low / 2):+03d}", "1"],
        "data.0.colorbar.orientation": "h",
        "data.0.colorbar.y": 1,
        "data.0.colorbar.yanchor": "bottom",
    }
    return {"data": traces, "layout": layout, "narrow": narrow}


def _heat_trace(heat: Heat, low: float) -> dict[str, Any]:
    sizes = np.nan_to_num(heat.differences, nan=np.inf)
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(sizes), low - 1, 0.0)
    decades = [low + step * (-low / 4) for step in range(5)]
    labels = [f"1e{int(decade):+03d}" for decade in decades[:-1]]
    text = []
    for row, worst, line in zip(heat.rows, heat.worst, sizes, strict=True):
        ends = f"{_plain(row)}<br>update ", f"<br>most in {_plain(worst)}"
        pairs = zip(heat.updates, line, strict=True)
        text.append([f"{ends[0]}{update}: {relative(float(size))}{ends[1]}" for update, size in pairs])
    return {
        "type": "heatmap",
        "x": heat.updates.tolist(),
        "y": list(range(len(heat.rows))),
        "z": logs.tolist(),
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "zmin": low - 1,
        "zmax": 0.0,
        "xgap": 1 if len(heat.updates) <= MOST_MARKED else 0,
        "ygap": 1,
        "colorscale": [[index / (len(_HEAT) - 1), color] for index, color in enumerate(_HEAT)],
        "colorbar": {"tickvals": [low - 1, *decades], "ticktext": ["0", *labels, "1"], "thickness": 14},
    }


def _mode(updates: np.ndarray) -> str:
    return "lines+markers" if len(updates) <= MOST_MARKED else "lines"


def _layout(values: str, updates: np.ndarray, parted: int | None) -> dict[str, Any]:
    """What all plots share; `parted` draws a line at the update where the runs part."""
    room = 0.5 + 0.01 * len(updates)
    ends = [float(updates[0]) - room, float(updates[-1]) + room] if len(updates) else [0.0, 1.0]
    axis = {"gridcolor": "--rule", "linecolor": "--rule", "zeroline": False, "automargin": True, "fixedrange": False}
    layout: dict[str, Any] = {
        "height": 340,
        "margin": {"l": 10, "r": 16, "t": 36, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--ink", "size": 14},
        "hoverlabel": {"bgcolor": "--panel", "bordercolor": "--rule", "font": {"color": "--ink"}},
        "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": "update"}, "tickformat": "d", "range": ends},
        "yaxis": {**axis, "title": {"text": values}},
        "shapes": [],
        "annotations": [],
    }
    if parted is not None:
        line = {"color": "--bad", "width": 1.5, "dash": "dot"}
        layout["shapes"].append(
            {"type": "line", "x0": parted, "x1": parted, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        )
        layout["annotations"].append(
            {
                "x": parted, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "top", "xshift": 4,
                "text": f"parts at {parted}", "showarrow": False, "font": {"color": "--bad"}, "bgcolor": "--paper",
            }
        )  # fmt: skip
    return layout


def _finite(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON has."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _plain(text: str) -> str:
    """A name in a hover text: plotly reads a few tags there, so that there may be none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def _tail(text: str, longest: int) -> str:
    """The end of a name, where names of layers differ."""
    if len(text) > longest:
        text = text[1 - longest :]
        text = "…" + (text[text.index(".") + 1 :] if "." in text.strip(".") else text)
    return _plain(text)
