"""A few repeats of `soak.training_kills`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [["--backends", "torch"], ["--backends", "jax"], pytest.param(["--change"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_a_killed_run_ends_as_if_it_never_was(arguments: list[str]) -> None:
    """SIGKILL at random moments: no checkpoint lost, the end bit-identical on one backend, within 1e-12 on two."""
    command = [sys.executable, "-m", "soak.training_kills", "--kills", "4", *arguments]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[4-9]\d* kills in \d+ runs, 0 checkpoints lost", done.stdout)
