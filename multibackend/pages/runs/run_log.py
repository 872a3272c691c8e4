"""A run as its log tells it: what was made, measured, evaluated and skipped, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.errors import DataError
from multibackend.loggers.jsonl import read_log

__all__ = ["Evaluated", "RunLog", "SkippedLine", "labels", "read_run"]

COLUMNS = ("update", "loss", "grad_norm", "learning_rate", "examples", "epoch", "time")
_MOST_SPEEDS = 50  # points of the curve of examples per second


@dataclass(frozen=True)
class Evaluated:
    """One evaluation; `ema` where it was the moving average that was evaluated."""

    update: int
    metrics: Mapping[str, Any]
    ema: bool


@dataclass(frozen=True)
class SkippedLine:
    """A window that made no update."""

    update: int
    epoch: int
    offset: int
    reason: str


@dataclass
class RunLog:
    """What a log tells.

    Attributes:
        name: of the run: its directory's.
        experiment: its name.
        backends: of the calls of `fit`, each once, in their order; a run may change its framework.
        places: device and execution mode of them.
        columns: arrays [updates]: those of a history, and "time", when an update was heard of, in
            seconds since 1970. NaN where the log has no number.
        evaluations, skipped: in their order.
        settings: what the run says of itself.
        starts: the index of the first update of each call of `fit`, and what was made last there.
        ending: how the last call of `fit` ended, in words.
        seconds: of all calls of `fit` that ended.
        remarks: of the calls of `fit`.
    """

    name: str
    experiment: str = ""
    backends: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    evaluations: list[Evaluated] = field(default_factory=list)
    skipped: list[SkippedLine] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    ending: str = "cut off: the log ends inside it"
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def updates(self) -> int:
        """How many updates the log has."""
        return len(self.columns["update"])

    def speeds(self) -> tuple[np.ndarray, np.ndarray]:
        """(the updates, examples per second up to each), what was heard first of a call of `fit` left out.

        What is before the first news of a call went into compiling as well.
        """
        updates: list[float] = []
        speeds: list[float] = []
        stops = [*self.starts[1:], self.updates]
        for start, stop in zip(self.starts, stops, strict=True):
            times = self.columns["time"][start:stop]
            ends = _ends_of_stretches(times)
            examples = np.cumsum(self.columns["examples"][start:stop])
            durations = np.diff(times[ends])
            whole = durations > 0
            updates += self.columns["update"][start:stop][ends][1:][whole].tolist()
            speeds += (np.diff(examples[ends])[whole] / durations[whole]).tolist()
        return np.array(updates), np.array(speeds)


def _ends_of_stretches(times: np.ndarray) -> np.ndarray:
    """Indices at which stretches of about the same time end; none where all was heard of at once.

    Updates are heard of in bunches, so a speed can only be that from the end of one to that of a later one.
    """
    bunches = np.flatnonzero(np.diff(times) > 0)
    if len(bunches) == 0:
        return bunches
    bunches = np.append(bunches, len(times) - 1)
    stretch = (times[bunches[-1]] - times[bunches[0]]) / _MOST_SPEEDS
    ends = [bunches[0]]
    for bunch in bunches[1:]:
        if times[bunch] - times[ends[-1]] >= stretch:
            ends.append(bunch)
    return np.array(ends)


def read_run(directory: str | Path) -> RunLog:
    """Read a run's log.

    Raises:
        DataError: there is no such directory, or the log is not that of a run.
        FileError: there is no log, or it cannot be read.
    """
    path = Path(directory)
    if not path.is_dir():
        raise DataError(f"there is no directory {str(directory)!r}; give the run_dir of a Trainer, or of `train`")
    lines = read_log(path)
    reader = _Reader(RunLog(path.resolve().name))
    try:
        for line in lines:
            reader.enter(line)
        return reader.whole()
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # lines that are not ours
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"the log.jsonl of {str(directory)!r} is not that of a run: {problem}") from error


class _Reader:
    """Goes through the events of a log in order."""

    def __init__(self, run: RunLog) -> None:
        self._run = run
        self._rows: list[list[float]] = []

    def enter(self, line: Mapping[str, Any]) -> None:
        run = self._run
        match line["event"]:
            case "RunDescribed":
                run.settings |= {str(name): str(value) for name, value in line["settings"].items()}
            case "FitStarted":
                self._begin(line)
            case "UpdateFinished":
                record = {**line["record"], "time": line["time"]}
                self._rows.append([_number(record[name]) for name in COLUMNS])
            case "WindowSkipped":
                window = line["skipped"]
                run.skipped.append(SkippedLine(*(window[name] for name in ("update", "epoch", "offset", "reason"))))
            case "EvaluationFinished":
                run.evaluations.append(Evaluated(line["update"], dict(line["metrics"]), bool(line["ema"])))
            case "Remark":
                run.remarks.append(str(line["message"]))
            case "FitFinished":
                run.seconds += float(line["seconds"])
                stopped = line["stopped"]
                run.ending = "finished" if stopped is None else f"stopped: {stopped}"
            case "FitFailed":
                run.ending = f"failed: {line['error']}"
            case _:  # events that a page does not show, or of a later version
                pass

    def _begin(self, line: Mapping[str, Any]) -> None:
        run = self._run
        first = int(line["update"])
        # a run that was killed goes on from its last checkpoint: what came after that is made again
        self._rows = [row for row in self._rows if row[0] <= first]
        run.evaluations = [evaluated for evaluated in run.evaluations if evaluated.update <= first]
        run.skipped = [window for window in run.skipped if window.update <= first + 1]
        run.starts = [start for start in run.starts if start < len(self._rows)]
        run.starts.append(len(self._rows))
        run.experiment = str(line["experiment"])
        for listed, value in ((run.backends, line["backend"]), (run.places, f"{line['device']}, {line['execution']}")):
            if value not in listed:
                listed.append(str(value))
        run.ending = "cut off: the log ends inside it"

    def whole(self) -> RunLog:
        if not self._run.starts:
            raise ValueError("no call of fit is in it")
        table = np.array(self._rows, np.float64).reshape(-1, len(COLUMNS))
        self._run.columns = {name: table[:, index] for index, name in enumerate(COLUMNS)}
        return self._run


def _number(value: Any) -> float:
    """A number; NaN for null, which stands for what JSON has no number for."""
    return float("nan") if value is None else float(value)


def labels(runs: Sequence[RunLog]) -> list[str]:
    """A name for each run, told apart by a number where directories are called alike."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]
