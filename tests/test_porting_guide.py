"""docs/porting.md: every command on it runs, and prints the lines that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from multibackend.cli.main import main

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "porting.md"
STEPS = re.findall(r"```console\n\$ multibackend (.*?)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def words(text: str) -> str:
    """Without line breaks, and without what rounding makes, which depends on the machine."""
    return re.sub(r"rounding alone makes [\d.e+-]+", "rounding", " ".join(text.split()))


def test_the_guide_has_a_step_for_each_mistake() -> None:
    """In order, the last without any."""
    assert [command.rpartition("--step ")[2] for command, _ in STEPS] == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("command", "shown"), STEPS, ids=[f"step {index}" for index in range(len(STEPS))])
def test_a_command_prints_what_the_guide_shows(
    command: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first divergence with its layer and both values, or that the runs match; the exit code says so too."""
    monkeypatch.chdir(ROOT)
    code = main(shlex.split(command))
    printed = words(capsys.readouterr().out)
    for line in shown.strip().splitlines():
        assert words(line) in printed
    assert code == (0 if "The runs match." in shown else 1)


def test_the_files_that_the_pages_link_to_exist() -> None:
    """Relative links lead somewhere."""
    for page in (GUIDE, ROOT / "docs" / "testing.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []
