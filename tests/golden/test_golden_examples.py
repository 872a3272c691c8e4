"""The examples' own golden traces: no change that is not meant to change numbers moves them, on either backend.

A change that is meant to rewrites them, in the same commit and with its reason, by the line that a failure prints.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from multibackend import golden
from multibackend.cli.experiment_file import load_experiment_file

ROOT = Path(__file__).parents[2]
FLAGS = {
    "linear_regression": [],
    "token_lm": ["--vocabulary", "50", "--width", "16", "--sequences", "200"],
    "digits": ["--micro-batch-size", "16"],
    "port": [],
}


def path(name: str) -> Path:
    return ROOT / "tests" / "golden" / "traces" / f"{name}.json"


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", FLAGS)
def test_an_example_runs_as_recorded(name: str, backend: str) -> None:
    """Six updates in float64, recorded on torch: losses within 1e-10, gradients and parameters within 1e-9."""
    trace = golden.load(path(name))
    file = load_experiment_file(ROOT / "examples" / f"{name}.py")
    updates = ["--updates", "6"] if "updates" in file.flags else []
    experiment = file.build([*FLAGS[name], *updates]).replace(precision="float64")
    report = golden.check(trace, experiment, backend, updates=6)
    line = f"multibackend record examples/{name}.py {' '.join(FLAGS[name])} --precision float64 --updates 6 --output "
    assert report.matches, f"{report}\nIf that is meant: {line}{path(name).relative_to(ROOT)}"


def test_the_traces_are_small() -> None:
    """And there is one for each example that is here, no other."""
    files = sorted(path("x").parent.iterdir())
    assert [file.stem for file in files] == sorted(FLAGS)
    assert all(file.stat().st_size < 25_000 for file in files)
