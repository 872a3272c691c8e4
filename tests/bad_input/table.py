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

__all__ = ["CASES", "RUNS", "at_once"]

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

# What is about data and about saved runs is decided above the backends, and on JAX shows only once a whole program
# is compiled, which takes about a second: `make test-all` runs these on JAX too.
_ABOVE_BACKENDS = ("data: ", "dataset: ", "stream: ", "resume: ")


def at_once(case: Case) -> tuple[str, ...]:
    """Return the backends on which a case is run in any test session."""
    if case.name.startswith(_ABOVE_BACKENDS):
        return tuple(backend for backend in case.backends if backend != "jax")
    return case.backends


_twice = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
if _twice:
    raise ValueError(f"cases of one name: {_twice}")
