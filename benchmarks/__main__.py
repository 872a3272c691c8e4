"""`python -m benchmarks`: time this library beside hand-written loops of the same framework, in one process.

What is timed is `Trainer.fit(updates=...)`, so with the gathering of data, the loop on the host and the reading of
results, against loops that do the same work. Compilation is excluded: every contender is warmed up first.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
from rich.console import Console

import multibackend as mb
from benchmarks.report import Result, as_json, as_table
from benchmarks.timing import OURS, Contender, measure
from benchmarks.workloads import WORKLOADS, Workload

FRAMEWORKS = ("torch", "jax")


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, print."""
    options = _parse(arguments)
    console, results = Console(), []
    console = Console(width=max(console.width, 100))  # a log file has 80 columns, too few for the table
    for framework in options.frameworks:
        for name in options.only:
            console.print(f"[dim]{WORKLOADS[name].title}, {framework} ...[/dim]")
            results.append(_measure(WORKLOADS[name], framework, options.rounds, options.seconds))
    console.print(as_table(results))
    if options.json is not None:
        report = as_json(results, rounds=options.rounds, slice_seconds=options.seconds)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="per contender and round, about")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def _measure(workload: Workload, framework: str, rounds: int, slice_seconds: float) -> Result:
    ours = _ours(workload, framework)
    loops = importlib.import_module(f"benchmarks.{framework}_loops").hand_written(workload)
    measured = measure([ours, *loops], steps=workload.steps, rounds=rounds, slice_seconds=slice_seconds)
    return Result(workload, framework, measured, ours.details)


def _ours(workload: Workload, framework: str) -> Contender:
    """This library, through its public interface; each call goes on where the last one stopped."""
    trainer = mb.Trainer(workload.experiment(framework), backend=framework)
    made = 0

    def train(updates: int) -> np.ndarray:
        nonlocal made
        made += updates
        return trainer.fit(updates=made).history["loss"][-updates:]

    windows = trainer.program.windows_per_dispatch
    details = f"{trainer.program.strategy}, {windows} at once" if framework == "jax" else trainer.program.strategy
    return Contender(OURS, train, granularity=windows, details=details)


if __name__ == "__main__":
    main()
