"""The README's program runs as it stands there and does what it says; its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from docs.pages import ROOT, blocks

from multibackend.parity.tolerances import tolerance_for

README = ROOT / "README.md"
LINE_LIMIT = 100


def test_the_first_program_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains on both backends to one loss, and finds in float64 that they match."""
    monkeypatch.chdir(tmp_path)
    (program,) = (block for block in blocks(README) if block.language == "python")
    names: dict[str, Any] = {}
    exec(program.text, names)
    losses = [float(line) for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"\d\.\d+", line)]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=tolerance_for("float32").loss)
    assert names["report"].matches
    assert names["report"].max_relative_difference < 1e-12


def test_the_readme_stays_short() -> None:
    """One screen of why, one of how, and links; what is longer has a page."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LINE_LIMIT


def test_the_files_that_the_readme_links_to_exist() -> None:
    """Relative links lead somewhere."""
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
