"""What the plots of every page are made of, as plotly's own dictionaries. A string "--name" is a colour of page.css."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["Figure", "falls_far", "finite", "layout", "mode", "power", "tail", "without_markup"]

Figure = dict[str, Any]

MOST_MARKED = 40  # more points than that are drawn as a line only
_FEW = 5  # updates, of which each has a tick
_FAR = 100.0  # a loss that falls by more than this factor is drawn on a log scale


def mode(updates: np.ndarray) -> str:
    """Choose how a curve of so many points is drawn."""
    if len(updates) > MOST_MARKED:
        return "lines"
    return "lines+markers"


def layout(values: str, updates: np.ndarray) -> dict[str, Any]:
    """Lay out what all plots share: the axis of updates, and one that is called `values`."""
    ends = [0.0, 1.0]
    ticks = {}
    if len(updates):
        # plotly's own range would cut the points at the ends
        room = 0.5 + 0.01 * float(updates[-1] - updates[0])
        ends = [float(updates[0]) - room, float(updates[-1]) + room]
        if updates[-1] - updates[0] < _FEW:
            ticks = {"dtick": 1}  # there is nothing between two updates
    axis = {"gridcolor": "--rule", "linecolor": "--rule", "zeroline": False, "automargin": True, "fixedrange": False}
    return {
        "height": 340,
        "margin": {"l": 10, "r": 16, "t": 36, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",  # the page's own colour shows, light or dark
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--ink", "size": 14},
        "hoverlabel": {"bgcolor": "--panel", "bordercolor": "--rule", "font": {"color": "--ink"}},
        "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": "update"}, "tickformat": "d", "range": ends, **ticks},
        "yaxis": {**axis, "title": {"text": values}},
        "shapes": [],
        "annotations": [],
    }


def falls_far(losses: np.ndarray) -> bool:
    """Whether the end of a curve would lie on the foot of a linear axis."""
    numbers = losses[np.isfinite(losses)]
    return bool(numbers.size > 0 and numbers.min() > 0 and numbers.max() > _FAR * numbers.min())


def power(exponent: float) -> str:
    """Write a power of ten: "1e-08"."""
    return f"1e{int(exponent):+03d}"


def finite(values: np.ndarray) -> list[float | None]:
    """Return numbers that JSON has: None for NaN and infinity, where plotly leaves a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]


def without_markup(text: str) -> str:
    """Escape a name for a hover text, in which plotly reads a few tags, and "%{x}" too."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def tail(name: str, longest: int) -> str:
    """Return the end of a name, where names of layers differ, if possible from a dot on."""
    if len(name) <= longest:
        return without_markup(name)
    end = name[1 - longest :]
    if "." in end.strip("."):
        end = end[end.index(".") + 1 :]
    return without_markup(f"…{end}")
