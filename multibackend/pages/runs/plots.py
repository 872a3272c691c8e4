"""The plots of the page of runs, each with its caption and with words for whoever cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multibackend.pages.plots import Plot
from multibackend.pages.runs.figures import Curve, curves_figure, points_each, thinned_means
from multibackend.pages.runs.run_log import RunLog, labels

__all__ = ["column_plot", "metric_names", "metric_plot", "speed_plot"]


def column_plot(runs: Sequence[RunLog], column: str, title: str, *, linear: bool = False) -> Plot:
    """Plot a column of the history of every run."""
    most = points_each(len(runs))
    curves = []
    for index, (name, run) in enumerate(zip(labels(runs), runs, strict=True)):
        curves.append(Curve(name, index, *thinned_means(run.columns["update"], run.columns[column], most)))
    caption = f"The {title} of each update."
    longest = max(run.updates for run in runs)
    if longest > most:
        caption = f"The {title}; a point is the mean of up to {-(-longest // most)} updates."
    return _plot(f"{column}-plot", title, caption, curves, linear=linear)


def speed_plot(runs: Sequence[RunLog]) -> Plot:
    """Plot the examples per second of every run."""
    curves = []
    for index, (name, run) in enumerate(zip(labels(runs), runs, strict=True)):
        curves.append(Curve(name, index, *run.speeds()))
    caption = "What comes before the first results of a call of fit is left out: it went into compiling."
    known = [curve for curve in curves if len(curve.values)]
    return _plot("speed-plot", "examples per second", caption, known, linear=True)


def metric_names(runs: Sequence[RunLog]) -> list[str]:
    """The metrics that are numbers, of the evaluations of any run, in their order."""
    names: dict[str, None] = {}
    for run in runs:
        for evaluated in run.evaluations:
            names |= {name: None for name, value in evaluated.metrics.items() if not isinstance(value, list)}
    return list(names)


def metric_plot(runs: Sequence[RunLog], metric: str, anchor: str) -> Plot:
    """Plot a metric of the evaluations of every run; the moving average's as a curve of its own."""
    curves = []
    for index, (name, run) in enumerate(zip(labels(runs), runs, strict=True)):
        for ema in (False, True):
            points = [item for item in run.evaluations if item.ema == ema and metric in item.metrics]
            if not points:
                continue
            values = [np.nan if item.metrics[metric] is None else float(item.metrics[metric]) for item in points]
            updates = np.array([item.update for item in points])
            title = f"{name} (average)" if ema else name
            curves.append(Curve(title, index, updates, np.array(values), marked=True))
    return _plot(anchor, metric, f"{metric} on the evaluation data.", curves)


def _plot(anchor: str, title: str, caption: str, curves: Sequence[Curve], *, linear: bool = False) -> Plot:
    ends = []
    for curve in curves:
        known = curve.values[np.isfinite(curve.values)]
        if len(known):
            ends.append(f"{curve.name} from {known[0]:.4g} to {known[-1]:.4g}")
    label = f"Curves of the {title} by update: {', '.join(ends)}."
    return Plot(anchor, curves_figure(title, curves, linear=linear), caption, label)
