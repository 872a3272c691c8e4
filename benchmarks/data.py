"""`python -m benchmarks.data`: what reading ahead gains where the data are slow, and that it costs nothing else.

The MLP of the benchmarks is trained from arrays in memory, and from an iterable that sleeps before every micro-batch,
with and without reading ahead; runs interleaved in one process, medians over the rounds. A reader that hides all it can
makes an update last as long as the longer of reading and training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

import multibackend as mb
from benchmarks.timing import Contender, measure
from benchmarks.workloads import WORKLOADS

_CONTENDERS = {"arrays": None, "in memory, read ahead": True, "slow": False, "slow, read ahead": True}


def main(arguments: list[str] | None = None) -> None:
    """Measure both frameworks and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--frameworks", nargs="+", choices=("torch", "jax"), default=["torch", "jax"])
    parser.add_argument("--sleep", type=float, default=2.0, help="milliseconds before every micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender and round, about")
    options = parser.parse_args(arguments)
    steps = WORKLOADS["mlp"].steps
    table = Table("framework", *(f"{name}, ms" for name in _CONTENDERS), "reading alone, ms", "best possible, ms")
    for framework in options.frameworks:
        contenders = [_contender(framework, name, options.sleep / 1e3) for name in _CONTENDERS]
        seconds = measure(contenders, steps=steps, rounds=options.rounds, slice_seconds=options.seconds).seconds
        milliseconds = {name: statistics.median(times) * steps * 1e3 for name, times in seconds.items()}
        reading = _reading(framework, options.sleep / 1e3) * steps * 1e3
        best = max(reading, milliseconds["arrays"])
        table.add_row(
            framework, *(f"{milliseconds[name]:.2f}" for name in _CONTENDERS), f"{reading:.2f}", f"{best:.2f}"
        )
    console = Console()
    console = Console(width=max(console.width, 120))
    console.print(
        f"MLP, Adam: milliseconds per update of {steps} micro-batches; slow sleeps {options.sleep} ms for each"
    )
    console.print(table)


def _contender(framework: str, name: str, sleep: float) -> Contender:
    experiment = WORKLOADS["mlp"].experiment(framework)
    if name.startswith("slow"):
        experiment = experiment.replace(train_data=_slow(framework, sleep))
    trainer = mb.Trainer(experiment, framework, read_ahead=_CONTENDERS[name])

    def train(updates: int) -> np.ndarray:
        before = trainer.snapshot().update
        return trainer.fit(updates=before + updates, progress=False).history["loss"][before:]

    return Contender(name, train)


def _slow(framework: str, sleep: float) -> mb.data.IterableSource:
    """Micro-batches of the workload, each after a sleep: 64 windows to an epoch."""
    workload = WORKLOADS["mlp"]
    data, size = workload.data(framework), workload.micro_batch

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(data["x"]), size):
            time.sleep(sleep)
            yield {name: array[start : start + size] for name, array in data.items()}

    return mb.data.IterableSource(batches, batched=True)


def _reading(framework: str, sleep: float) -> float:
    """Seconds per micro-batch of the slow data alone."""
    started, count = time.perf_counter(), 0
    for _ in _slow(framework, sleep).chunks(0, 0):
        count += 1
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
