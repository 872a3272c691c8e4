"""Logs of runs, written by hand, for the tests of the page of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_log(
    directory: Path, *, updates: int = 300, backend: str = "torch", peak: float = 0.1, text: str = "", ends: bool = True
) -> Path:
    """A run that is evaluated every hundredth update and skips one window; `text` in what a user can choose."""
    directory.mkdir(parents=True)
    log = Log(directory, f"{text}digits", backend)
    log.add("FitStarted", update=0, updates=updates, device="cpu", execution="eager")
    log.add("RunDescribed", settings={"optimizer": f"{text}SGD(learning_rate={peak})", "seed": "0"})
    log.add("Remark", message="the schedule is longer than the run")
    log.later(20.0)  # compiles
    log.updates(1, updates)
    log.add("WindowSkipped", skipped={"update": updates, "epoch": 3, "offset": 64, "reason": f"{text}nonfinite"})
    if ends:
        log.add("FitFinished", update=updates, seconds=25.0, stopped=None, saved=None)
    return log.write()


class Log:
    """Lines of a log, told at a time that passes as the run goes on."""

    def __init__(self, directory: Path, experiment: str, backend: str) -> None:
        self._directory = directory
        self._common = {"experiment": experiment, "backend": backend}
        self._lines: list[dict[str, Any]] = []
        self._time = 1.7e9

    def later(self, seconds: float) -> None:
        self._time += seconds

    def add(self, event: str, **fields: Any) -> None:
        self._lines.append({"event": event, "time": round(self._time, 3), **self._common, **fields})

    def updates(self, first: int, last: int) -> None:
        """Made ten at a time, a tenth of a second each time; one loss is no number."""
        for update in range(first, last + 1):
            if update % 10 == 1:
                self.later(0.1)
            record = {"update": update, "loss": None if update == 7 else 1.0 / update, "grad_norm": 0.5}
            record |= {"learning_rate": 0.1, "weight": 32.0, "examples": 32, "epoch": update // 100, "terms": {}}
            self.add("UpdateFinished", record=record)
            if update % 100 == 0:
                metrics = {"loss": 1.0 / update, "accuracy": 1 - 1 / update, "confusion": [[1, 2], [3, 4]]}
                self.add("EvaluationFinished", update=update, metrics=metrics, ema=False, scheduled=True)

    def write(self) -> Path:
        lines = [json.dumps(line) + "\n" for line in self._lines]
        (self._directory / "log.jsonl").write_text("".join(lines), encoding="utf-8")
        return self._directory
