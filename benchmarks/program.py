"""`python -m benchmarks.program`: what the compiled JAX program costs, as figures.

1. Memory: the temporary memory of a compiled window does not grow with the number k of micro-batches.
2. Arithmetic: the program holds the optimizer's square roots once, outside the loop over micro-batches, whatever k.
3. Compilations: one program serves full and partial windows and schedules; a ragged last micro-batch adds one.

Exits with status 1 if one of them does not hold.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import multibackend as mb
from benchmarks.workloads import WORKLOADS, Workload
from multibackend.protocol import Position, Rates
from multibackend.training.input.epoch_reader import EpochReader

_STEPS = (1, 2, 4, 8, 16, 32)
_ROOT = re.compile(r" r?sqrt\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def main() -> None:
    """Print the three reports."""
    console = Console()
    held = [_report_program(console, name, windows) for name in ("mlp", "linear") for windows in (1, 8)]
    held.append(_report_compilations(console))
    sys.exit(0 if all(held) else 1)


def _report_program(console: Console, name: str, windows: int) -> bool:
    """Temporary memory, and square roots inside and outside the loop over micro-batches, for each k."""
    table = Table("k", "temporary bytes", "roots in the program", "of them in the loop over micro-batches")
    rows = []
    for steps in _STEPS:
        compiled = _compiled(WORKLOADS[name], steps, windows)
        inside, total = _roots(compiled.as_text(), depth=1 if windows == 1 else 2)
        rows.append((compiled.memory_analysis().temp_size_in_bytes, total, inside))
        table.add_row(str(steps), *map(str, rows[-1]))
    console.print(f"{WORKLOADS[name].title}, {windows} window(s) in a dispatch, k micro-batches each")
    console.print(table)
    flat = max(row[0] for row in rows) <= 1.01 * rows[0][0] + 256
    return flat and len({row[1:] for row in rows}) == 1 and rows[0][2] == 0


def _compiled(workload: Workload, steps: int, windows: int) -> Any:
    """The program that a trainer runs for windows of `steps` micro-batches, compiled for the shapes it runs with."""
    from multibackend_jax.step.execution import Steering

    experiment = workload.experiment("jax", steps=steps)
    program: Any = mb.Trainer(experiment, backend="jax", execution="scan", windows_per_dispatch=windows).program
    reader = EpochReader(
        experiment.train_data, list(experiment.loss_terms.values()), micro_batch_size=workload.micro_batch, seed=0
    )
    stack = reader.read(Position(), [steps] * windows, capacity=steps, room=windows)
    steering = Steering.pack(stack, windows, Rates(0, np.zeros(windows + 256)), np.dtype("float32"))
    function = program.runner.one if windows == 1 else program.runner.many
    with program.precision.scope():
        return function.lower(program.init(), program.place(stack).fields, steering).compile()


def _roots(text: str, depth: int) -> tuple[int, int]:
    """(square roots inside loops nested `depth` deep, all square roots) of an HLO module."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = bodies.setdefault(header[1], [])
        lines.append(line)
    deepest: dict[str, int] = {}

    def visit(name: str, level: int) -> None:
        if deepest.get(name, -1) >= level:
            return
        deepest[name] = level
        for line in bodies.get(name, ()):
            called = _CALLED.findall(line)
            for group in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in group.split(",")]
            for other in called:
                visit(other, level + (" while(" in line))

    entry = next(line for line in text.splitlines() if line.startswith("ENTRY"))
    visit(_COMPUTATION.match(entry)[1], 0)  # type: ignore[index]
    counts = {name: sum(len(_ROOT.findall(line)) for line in bodies.get(name, ())) for name in deepest}
    return sum(count for name, count in counts.items() if deepest[name] >= depth), sum(counts.values())


def _report_compilations(console: Console) -> bool:
    """Programs compiled by whole runs of linear regression, 5 windows to a dispatch."""
    table = Table("run", "updates", "compilations", "expected")
    held = True
    schedule = mb.schedules.WarmupCosine(peak=0.01, warmup=5, total=60)
    for title, examples, steps, rate, expected in (
        ("full windows", 400, 10, 0.01, 1),
        ("with a partial window", 420, 10, 0.01, 1),
        ("a schedule of learning rates", 400, 10, schedule, 1),
        ("schedules of rates and of k, partial windows", 420, {0: 10, 7: 4, 20: 7}, schedule, 1),
        ("a ragged last micro-batch", 423, 10, 0.01, 2),
    ):
        trainer = mb.Trainer(_small_run(examples, steps, rate), backend="jax", execution="scan", windows_per_dispatch=5)
        updates = trainer.fit(epochs=3, progress=False).updates
        found = trainer.program.compilations()
        held &= found == expected
        table.add_row(title, str(updates), str(found), str(expected))
    console.print("Compilations of a whole run of 3 epochs")
    console.print(table)
    return held


def _small_run(examples: int, steps: int | dict[int, int], rate: Any) -> mb.Experiment:
    workload = WORKLOADS["linear"]
    data = {name: array[:examples] for name, array in workload.data("jax").items()}
    experiment = workload.experiment("jax", steps=steps)
    return experiment.replace(train_data=data, optimizer=mb.optimizers.SGD(learning_rate=rate))


if __name__ == "__main__":
    main()
