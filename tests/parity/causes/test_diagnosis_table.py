"""The planted mistakes: what docs/diagnosis.md says, which `support.diagnosis_table` writes, and that it is so."""

from __future__ import annotations

import warnings

import pytest
from support.diagnosis_table import measured, rows
from support.planted.cases import CORRECT, MISTAKES, NOTED
from support.planted.pairs import gpt
from support.variants import QUICK

import multibackend as mb

MEASURED = [
    pytest.param("LayerNorm epsilon", marks=pytest.mark.slow),  # the pair of two mistakes below has it too
    "attention scale forgotten in linen",
    "padding not counted in torch",
    "table",
    "weight decay by the libraries' defaults",
    "label smoothing",
    "examples reordered",
    "clip by value for norm",
]


def test_the_table_has_every_pair_and_all_is_right() -> None:
    """At least 28 mistakes and 10 correct pairs; stage, place and cause are right in each, and no alarm is false."""
    table = {row.name: row for row in rows()}
    assert list(table) == [*MISTAKES, *NOTED, *CORRECT]
    assert len(MISTAKES) >= 28
    assert len(CORRECT) >= 10
    assert {name: row.right for name, row in table.items() if not all(row.right)} == {}


@pytest.mark.parametrize("name", MEASURED)
def test_rows_are_what_is_measured(name: str) -> None:
    """Stage, place and cause of a few rows of every kind, measured anew."""
    committed = next(row for row in rows() if row.name == name)
    row = measured(name)
    assert (row.stage, row.place, row.cause) == (committed.stage, committed.place, committed.cause)
    assert all(row.right)


def test_each_of_two_mistakes_is_explained_and_printed() -> None:
    """One in each block: the second is not hidden by the first; the terminal tells both with the lines to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = gpt(("gelu tanh", "layer norm epsilon"))  # type: ignore[arg-type]
        report = mb.compare(pair, updates=1, executions=QUICK)
    found = [(finding.name, finding.causes[0].name) for finding in report.layers]
    assert found == [("blocks.0.fc2", "GELU tanh or erf"), ("blocks.1.ln2", "LayerNorm epsilon")]
    assert report.first_divergence is not None
    assert report.first_divergence.causes == report.layers[0].causes
    for finding in report.layers:
        (cause,) = finding.causes
        assert cause.after is not None
        assert cause.before > 1e-7
        assert cause.after <= 1e-14
    shown = str(report)
    assert "jax.nn.gelu(x, approximate=False)" in shown
    assert "LayerNorm(..., epsilon=1e-05)" in shown
