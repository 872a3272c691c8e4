"""The page of runs: `runs.html.jinja` filled, several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.core.words import duration
from multibackend.pages.plots import Plot
from multibackend.pages.runs.plots import column_plot, metric_names, metric_plot, speed_plot
from multibackend.pages.runs.run_log import RunLog, labels, read_run
from multibackend.pages.writing import packed_plotly, prepare, render

__all__ = ["render_runs", "write_report"]

_MOST_ROWS = 200  # of a table, so that the page stays small


@dataclass(frozen=True)
class Setting:
    """A setting of all runs side by side; `differs` where they are not all the same."""

    name: str
    values: tuple[str, ...]
    differs: bool


def write_report(
    directories: Sequence[str | Path],
    path: str | Path,
    *,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    command: str = "",
) -> Path:
    """Write one page of a run or several, from their logs; returns its path.

    Args:
        directories: of the runs.
        path: of the page; its directory is made if need be.
        settings: more of them, by directory as it is given and by name.
        command: the command line that makes the page, for its last section.

    Raises:
        PackageNotInstalledError: plotly or Jinja2 is not installed.
        ConfigurationError: no file can be written there.
        DataError, FileError: a directory has no log of a run.

    >>> write_report(["runs/a", "runs/b"], "report.html")           # doctest: +SKIP
    PosixPath('report.html')
    """
    prepare(path, "report")
    runs = [read_run(directory) for directory in directories]
    for directory, run in zip(directories, runs, strict=True):
        run.settings |= (settings or {}).get(str(directory), {})
    target = Path(path)
    target.write_text(render_runs(runs, packed_plotly(), command), encoding="utf-8")
    return target


def render_runs(runs: Sequence[RunLog], plotly: str, command: str = "") -> str:
    """Return the whole page; `plotly` is its JavaScript, packed."""
    metrics = {f"metric-{index}-plot": name for index, name in enumerate(metric_names(runs))}
    plots = _plots(runs, metrics)
    return render(
        "multibackend.pages.runs",
        "runs.html.jinja",
        plotly,
        runs=list(zip(labels(runs), runs, strict=True)),
        rows=[_summary(run) for run in runs],
        sections=_sections(runs, plots, command),
        title=_title(runs),
        metrics=metrics,
        settings=settings_side_by_side(runs),
        evaluated=_by_run(runs, [run.evaluations for run in runs]),
        skipped=_by_run(runs, [run.skipped for run in runs]),
        most_rows=_MOST_ROWS,
        command=command,
        plots=plots,
    )


def _title(runs: Sequence[RunLog]) -> str:
    return ", ".join(dict.fromkeys(run.experiment for run in runs))


def _plots(runs: Sequence[RunLog], metrics: Mapping[str, str]) -> list[Plot]:
    plots = []
    if any(run.updates for run in runs):
        plots.append(column_plot(runs, "loss", "loss"))
        plots.append(column_plot(runs, "learning_rate", "learning rate", linear=True))
        plots.append(column_plot(runs, "grad_norm", "gradient norm"))
    if any(len(run.speeds()[0]) for run in runs):
        plots.append(speed_plot(runs))
    return plots + [metric_plot(runs, name, anchor) for anchor, name in metrics.items()]


def _sections(runs: Sequence[RunLog], plots: Sequence[Plot], command: str) -> dict[str, str]:
    """Headings by anchor of the sections that have something to show, in their order."""
    drawn = {plot.anchor for plot in plots}
    sections = {"runs": "The run" if len(runs) == 1 else "The runs"}
    if "loss-plot" in drawn:
        sections["loss"] = "Loss"
    if any(run.evaluations for run in runs):
        sections["evaluations"] = "Evaluations"
    if "loss-plot" in drawn:
        sections |= {"rate": "Learning rate", "norm": "Gradient norm"}
    if "speed-plot" in drawn:
        sections["speed"] = "Examples per second"
    if any(run.skipped for run in runs):
        sections["skipped"] = "Skipped windows"
    sections["settings"] = "Settings" if len(runs) == 1 else "Settings side by side"
    if command:
        sections["again"] = "How to make this page again"
    return sections


def _summary(run: RunLog) -> tuple[str, ...]:
    """The cells of a run in the first table, behind its name."""
    losses = run.columns["loss"]
    known = losses[np.isfinite(losses)]
    loss = f"{known[0]:.4g} to {known[-1]:.4g}" if len(known) else "–"
    skipped = str(len(run.skipped))
    seconds = duration(run.seconds) if run.seconds else "–"
    return run.experiment, ", then ".join(run.backends), str(run.updates), loss, seconds, skipped, run.ending


def settings_side_by_side(runs: Sequence[RunLog]) -> list[Setting]:
    """All settings of any run, those that differ first."""
    tables = [_settings_of(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    settings = []
    for name in names:
        values = tuple(table.get(name, "–") for table in tables)
        settings.append(Setting(name, values, differs=len(set(values)) > 1))
    return sorted(settings, key=lambda setting: not setting.differs)  # sorting keeps the order otherwise


def _settings_of(run: RunLog) -> dict[str, str]:
    return {"backend": ", then ".join(run.backends), "device": ", then ".join(run.places), **run.settings}


def _by_run(runs: Sequence[RunLog], items: Sequence[Sequence[Any]]) -> list[tuple[str, Any]]:
    """All items of all runs, each with the name of its run."""
    return [(name, item) for name, own in zip(labels(runs), items, strict=True) for item in own]
