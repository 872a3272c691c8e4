"""Every kind of bad input of the table ends as a user should be told, and alike on every backend.

`PYTHONPATH=tests python -m bad_input.score` prints the score of the whole table.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from pathlib import Path

import pytest

from bad_input.case import SECONDS, Case, outcome_of
from bad_input.table import CASES, at_once

# What a framework hangs in ends no Python exception: then the stacks are shown, and the process ends.
_PATIENCE = 4 * SECONDS


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    faulthandler.dump_traceback_later(_PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def check(case: Case, backends: tuple[str, ...], directory: Path) -> None:
    outcomes = {backend: outcome_of(case, backend, directory / backend) for backend in backends}
    for backend, outcome in outcomes.items():
        wanted = "right" if case.error is None else "told"
        assert outcome.verdict == wanted, f"{case.name} on {backend}: {outcome.verdict}: {outcome.kind}: {outcome.text}"
    assert len({outcome.kind for outcome in outcomes.values()}) == 1, f"{case.name}: {outcomes}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    check(case, at_once(case), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if at_once(c) != c.backends], ids=lambda case: case.name)
def test_case_on_all_backends(case: Case, tmp_path: Path) -> None:
    check(case, case.backends, tmp_path)


def test_the_table_is_as_large_as_it_must_be() -> None:
    refused = [case for case in CASES if case.error is not None]
    assert len(refused) >= 340
