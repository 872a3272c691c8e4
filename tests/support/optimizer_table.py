"""`PYTHONPATH=tests python -m support.optimizer_table` measures every optimizer and rewrites docs/optimizers.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from support.optimizer_runs import BACKENDS, CASES, SIZE, UPDATES, Case, largest_difference

PATH = Path(__file__).parents[2] / "docs" / "optimizers.md"
COMMAND = "PYTHONPATH=tests python -m support.optimizer_table"
HEAD = f"""# Optimizers: how closely each backend follows its definition

Every optimizer has one written definition, the equations of its docstring in `multibackend.optimizers`. This table
holds each backend against a plain numpy float64 formula of that definition, which shares no code with the library:
{UPDATES} updates under a warm-up and cosine schedule, {SIZE} parameters, gradients whose scales range from 1e-6 to 1e3.

- **parameters**: the largest difference of a parameter, relative to 1 + its size.
- **state**: the largest relative difference of an element of the optimizer's state (momentum, second moments, ...).
- **float32**: the parameters of a float32 run against the same float64 formula. There it is rounding that the
  ill-scaled problem amplifies, and in Lion rounding decides the sign of some steps.

The tests allow 1e-10 in float64 for parameters and for state. Rewrite the table with

    {COMMAND}

"""
COLUMNS = ("optimizer", "options", "backend", "parameters", "state", "float32")


def measured(name: str, case: Case, backend: str) -> list[str]:
    """One row."""
    parameters, slots = case.expected
    trainer = case.trained(backend)
    found = trainer.snapshot().optimizer
    ratios = [np.abs(found[slot]["p"] / array - 1).max() for slot, array in slots.items()]
    matrix = [f"matrix {case.shape[0]} × {case.shape[1]}"] if len(case.shape) == 2 else []
    options = ", ".join([*(f"{key}={value}" for key, value in case.options.items()), *matrix])
    return [
        name.partition(",")[0],
        options,
        backend,
        f"{largest_difference(trainer.parameters()['p'], parameters):.1e}",
        f"{max(ratios):.1e}" if ratios else "–",
        f"{largest_difference(case.trained(backend, 'float32').parameters()['p'], parameters):.1e}",
    ]


def rows() -> Iterator[list[str]]:
    """The rows of the committed table, without its head."""
    lines = [line for line in PATH.read_text().splitlines() if line.startswith("| ")]
    for line in lines[1:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def main() -> None:
    """Measure and write."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name, case in CASES.items():
        for backend in BACKENDS:
            lines.append("| " + " | ".join(measured(name, case, backend)) + " |")
            sys.stdout.write(lines[-1] + "\n")
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
