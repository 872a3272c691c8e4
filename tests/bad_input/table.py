"""The whole table."""

from __future__ import annotations

from collections import Counter

from bad_input import (
    cases_cli,
    cases_data,
    cases_experiment,
    cases_files,
    cases_loss,
    cases_model,
    cases_optimizer,
    cases_trainer,
)
from bad_input.case import Case

__all__ = ["CASES", "RUNS"]

CASES: list[Case] = [
    *cases_experiment.CASES,
    *cases_model.CASES,
    *cases_data.CASES,
    *cases_loss.CASES,
    *cases_optimizer.CASES,
    *cases_trainer.CASES,
    *cases_files.CASES,
    *cases_cli.CASES,
]
RUNS = [(case, backend) for case in CASES for backend in case.backends]

_twice = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
if _twice:
    raise ValueError(f"cases of one name: {_twice}")
