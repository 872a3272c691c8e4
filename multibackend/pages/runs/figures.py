"""The curves of runs: one colour and one dash for each run, the same in every plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.pages.figures import Figure, falls_far, finite, layout, mode, without_markup

__all__ = ["Curve", "curves_figure", "points_each", "thinned_means"]

MOST_POINTS = 1200  # of all curves of a plot together, so that a page of many runs stays small
_FEWEST_POINTS = 100  # of one of them
_DIGITS = 6  # of a value, more than a plot can show
_COLORS = 6  # of page.css, --run-0 to --run-5
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Curve:
    """One run's values by update; `run` is its index, which decides its colour and its dash."""

    name: str
    run: int
    updates: np.ndarray
    values: np.ndarray
    marked: bool = False


def points_each(curves: int) -> int:
    """How many points each of so many curves has at most."""
    return max(_FEWEST_POINTS, MOST_POINTS // max(curves, 1))


def thinned_means(updates: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches of equal length, so that at most `most` points remain.

    >>> thinned_means(np.arange(1, 5), np.array([1.0, 2.0, 3.0, np.nan]), 2)
    (array([2, 4]), array([1.5, 3. ]))
    """
    stride = -(-len(values) // most)
    if stride <= 1:
        return updates, values
    starts = np.arange(0, len(values), stride)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    lasts = np.append(starts[1:], len(values)) - 1
    return updates[lasts], means


def curves_figure(title: str, curves: Sequence[Curve], *, linear: bool = False) -> Figure:
    """Draw curves over updates: on a log axis where they fall far, on one from zero where it is `linear`."""
    traces = [_trace(curve) for curve in curves]
    ends = [update for curve in curves if len(curve.updates) for update in (curve.updates[0], curve.updates[-1])]
    frame = layout(title, np.array([min(ends), max(ends)]) if ends else np.array([]))
    values = np.concatenate([curve.values for curve in curves]) if curves else np.array([])
    if linear:
        frame["yaxis"] |= {"rangemode": "tozero"}
    elif falls_far(values):
        frame["yaxis"] |= {"type": "log", "exponentformat": "power"}
    frame["showlegend"] = len(traces) > 1
    return {"data": traces, "layout": frame}


def _trace(curve: Curve) -> dict[str, Any]:
    name = without_markup(curve.name)
    return {
        "type": "scatter",
        "mode": "lines+markers" if curve.marked else mode(curve.updates),
        "name": name,
        "x": [int(update) for update in curve.updates],
        "y": [None if value is None else float(f"{value:.{_DIGITS}g}") for value in finite(curve.values)],
        "hovertemplate": f"update %{{x}}<br>{name} %{{y:.6g}}<extra></extra>",
        **style(curve.run),
    }


def style(run: int) -> Mapping[str, Any]:
    """The colour and the dash of a run: where colours come again dashes do not."""
    color = f"--run-{run % _COLORS}"
    dash = _DASHES[(run // _COLORS + run) % len(_DASHES)]
    return {"line": {"color": color, "width": 2, "dash": dash}, "marker": {"color": color, "size": 6}}
