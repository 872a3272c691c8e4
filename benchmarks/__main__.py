"""`python -m benchmarks`: time this library beside hand-written loops of the same framework, slices interleaved.

What is timed is `Trainer.fit(updates=...)`, so with the gathering of data, the loop on the host and the reading of
results, against loops that do the same work, each contender in a process of its own. Compilation is excluded: every
contender is warmed up first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from rich.console import Console

from benchmarks.report import Result, as_json, as_table
from benchmarks.timing import Measurement, measure
from benchmarks.workers import local_contenders, remote_contenders
from benchmarks.workloads import WORKLOADS, Workload

FRAMEWORKS = ("torch", "jax")


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, print."""
    options = _parse(arguments)
    console, results = Console(), []
    console = Console(width=max(console.width, 120))  # a log file has 80 columns, too few for the table
    for framework in options.frameworks:
        for name in options.only:
            console.print(f"[dim]{WORKLOADS[name].title}, {framework} ...[/dim]")
            results.append(_measure(WORKLOADS[name], framework, options))
    console.print(as_table(results))
    if options.json is not None:
        report = as_json(
            results,
            rounds=options.rounds,
            launches=options.launches,
            slice_seconds=options.seconds,
            one_process=options.one_process,
        )
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS))
    parser.add_argument("--rounds", type=int, default=4, help="per launch")
    parser.add_argument(
        "--launches", type=int, default=3, help="of the processes, whose memory lies elsewhere each time"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="per contender and round, about")
    parser.add_argument(
        "--one-process",
        action="store_true",
        help="run all contenders in this process; those written by hand then profit from what this library sets",
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def _measure(workload: Workload, framework: str, options: argparse.Namespace) -> Result:
    measurements, details = [], ""
    for _ in range(options.launches):
        if options.one_process:
            place = contextlib.nullcontext(local_contenders(workload, framework))
        else:
            place = remote_contenders(workload, framework)
        with place as contenders:
            details = contenders[0].details
            measurements.append(
                measure(contenders, steps=workload.steps, rounds=options.rounds, slice_seconds=options.seconds)
            )
    return Result(workload, framework, Measurement.joined(measurements), details)


if __name__ == "__main__":
    main()
