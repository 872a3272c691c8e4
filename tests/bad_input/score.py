"""The score of the table: `PYTHONPATH=tests python -m bad_input.score [WORD]` runs the cases that WORD is in."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

from bad_input.case import Outcome, outcome_of
from bad_input.table import RUNS

VERDICTS = ("told", "right", "words", "type", "raw", "silent", "hang")


def main(word: str = "") -> None:
    outcomes: dict[str, dict[str, Outcome]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as directory:
        for number, (case, backend) in enumerate(RUNS):
            if word in case.name:
                outcome = outcome_of(case, backend, Path(directory) / str(number))
                outcomes[case.name][backend] = outcome
                print(f"{outcome.seconds:6.2f} s {outcome.verdict} {case.name} on {backend}", file=sys.stderr)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, by_backend in outcomes.items():
        for backend, outcome in by_backend.items():
            counts[backend][outcome.verdict] += 1
            if outcome.verdict not in ("told", "right"):
                text = " / ".join(outcome.text.splitlines())
                print(f"{outcome.verdict:6} {backend:5} {name} -> {outcome.kind}: {text:.400}")
    for name, by_backend in outcomes.items():
        if len({outcome.kind for outcome in by_backend.values()}) > 1:
            print("other type:", name, {backend: outcome.kind for backend, outcome in by_backend.items()})
    print(f"{len(outcomes)} cases, {sum(len(by) for by in outcomes.values())} runs")
    print("backend", *VERDICTS, "seconds", sep="\t")
    for backend, count in counts.items():
        seconds = sum(by[backend].seconds for by in outcomes.values() if backend in by)
        print(backend, *[count[verdict] for verdict in VERDICTS], f"{seconds:.1f}", sep="\t")
    several = [by for by in outcomes.values() if len(by) > 1]
    same = sum(len({outcome.kind for outcome in by.values()}) == 1 for by in several)
    print(f"same type on all backends: {same} of {len(several)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
