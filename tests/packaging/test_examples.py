"""`multibackend examples` gives what the README names, from a clone and from a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from multibackend.cli.experiment_file import load_experiment_file
from multibackend.cli.main import main


def test_the_examples_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All files, each an experiment file that can be loaded without a framework."""
    assert main(["examples", str(tmp_path / "copied")]) == 0
    copies = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {"digits", "char_gpt", "linear_regression", "port", "token_lm"} <= {path.stem for path in copies}
    for path in copies:
        assert load_experiment_file(path).function


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of one's own stays, and the message says what to type."""
    mine = tmp_path / "digits.py"
    mine.write_text("mine")
    assert main(["examples", str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]
