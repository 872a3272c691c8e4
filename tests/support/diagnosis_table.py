"""`PYTHONPATH=tests python -m support.diagnosis_table` compares every planted pair and rewrites docs/diagnosis.md.

With names of rows it measures those and leaves the others as they are.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import multibackend as mb
from support.planted.cases import CORRECT, MISTAKES, NOTED
from support.planted.training import TRAINING
from support.variants import QUICK

__all__ = ["PATH", "Row", "compared", "measured", "rows"]

PATH = Path(__file__).parents[2] / "docs" / "diagnosis.md"
COMMAND = "PYTHONPATH=tests python -m support.diagnosis_table"
HEAD = f"""# Diagnosis: which mistakes are found, and explained

Each row is a pair of small models, torch against Flax (nnx unless it says linen), or a pair of experiments, with one
mistake planted in one side (`tests/support/planted`). `multibackend.compare` is given the pair and nothing else, in
float64. A cell says what the report says where that is right, and what it should have said where it is not.

- **stage**, **place**: of `report.first_divergence`; "" is the model's outputs.
- **cause**: the name of the first of its causes.
- **before**, **after**: the relative difference at that place as it is, and with the mistake undone in numbers: the
  reference's formula on the other side's recorded inputs. "–" where there is nothing to recompute.

Nothing is believed from a layer's settings alone: a cause is named only where one formula gives the one side's
recorded numbers to rounding, another one the other's, and the first on the other side's inputs the first side's.

Rewrite the table with

    {COMMAND}

"""
COLUMNS = ("mistake", "stage", "place", "cause", "before", "after")


@dataclass(frozen=True)
class Row:
    """What a comparison said about a planted mistake."""

    name: str
    stage: str
    place: str
    cause: str
    before: str
    after: str

    @property
    def right(self) -> tuple[bool, bool, bool]:
        """Whether stage, place and cause are what was planted."""
        if self.name in CORRECT:
            return (self.stage == "none",) * 3
        if self.name in NOTED:
            return (self.stage == "note", self.place == NOTED[self.name].layer, self.cause == NOTED[self.name].cause)
        planted = MISTAKES[self.name]
        return (self.stage == planted.stage, self.place == planted.layer, self.cause == planted.cause)

    def line(self) -> str:
        return "| " + " | ".join([self.name, self.stage, self.place, self.cause, self.before, self.after]) + " |"


def compared(name: str) -> mb.CompareReport:
    """The report on a pair."""
    build = {**CORRECT, **MISTAKES, **NOTED}[name]
    experiment = build.experiment() if name not in CORRECT else build()  # type: ignore[operator,union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mb.errors.BatchStatisticsWarning)
        # a mistake in a network shows in the first update, and a shorter run compiles faster
        updates = 2 if name in CORRECT or name in TRAINING else 1
        return mb.compare(experiment, updates=updates, trace=True, executions=QUICK)


def measured(name: str) -> Row:
    """One row."""
    report = compared(name)
    found = report.first_divergence
    if name in NOTED:
        planted = NOTED[name]
        told = any(planted.layer in note and planted.cause in note for note in report.notes) and found is None
        return Row(name, *(("note", planted.layer, planted.cause) if told else ("none", "", "")), "–", "–")
    if found is None:
        return Row(name, "none", "", "", f"{report.max_relative_difference:.0e}", "–")
    cause = found.causes[0] if found.causes else None
    after = "–" if cause is None or cause.after is None else f"{cause.after:.0e}"
    return Row(name, found.stage, found.what, cause.name if cause else "", f"{found.difference:.0e}", after)


def rows() -> list[Row]:
    """Those of the committed tables."""
    lines = [line for line in PATH.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [Row(*row) for row in cells if row[0] not in ("mistake", "pair")]


def write(found: Iterable[Row]) -> None:
    """The page with the score."""
    by_name = {row.name: row for row in found}
    planted = [by_name[name] for name in [*MISTAKES, *NOTED] if name in by_name]
    correct = [by_name[name] for name in CORRECT if name in by_name]
    right = [sum(row.right[place] for row in planted) for place in range(3)]
    score = (
        f"**Score**: of {len(planted)} planted mistakes the stage is right for {right[0]}, the place for {right[1]}, "
        f"the cause for {right[2]}. Of {len(correct)} correct pairs {sum(not row.right[0] for row in correct)} raise a "
        "false alarm."
    )
    rule = "|" + "---|" * len(COLUMNS)
    parts = [score, "", "| " + " | ".join(COLUMNS) + " |", rule, *(row.line() for row in planted)]
    head = "| " + " | ".join(["pair", *COLUMNS[1:]]) + " |"
    parts += ["", "Correct pairs, the largest relative difference of a parameter after two updates:", "", head, rule]
    PATH.write_text(HEAD + "\n".join([*parts, *(row.line() for row in correct)]) + "\n")


def main(names: list[str]) -> None:
    """Measure and write."""
    found = {row.name: row for row in rows()} if names and PATH.exists() else {}
    for name in names or [*MISTAKES, *NOTED, *CORRECT]:
        found[name] = measured(name)
        right = " ".join("right" if one else "WRONG" for one in found[name].right)
        sys.stdout.write(f"{found[name].line()} {right}\n")
        sys.stdout.flush()
        write(found.values())


if __name__ == "__main__":
    main(sys.argv[1:])
