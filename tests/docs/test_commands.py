"""Every command on every page: what it prints where the page shows it, else that it could be typed so."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from docs.pages import PAGES, ROOT, blocks

from multibackend.cli.experiment_file import load_experiment_file
from multibackend.cli.main import _parsers, main

Command = tuple[str, str, str]  # page, command, what the page shows


def shown_commands() -> list[Command]:
    """Return the commands of `multibackend` whose output stands below them: "console", after a prompt."""
    found: list[Command] = []
    for name, path in PAGES.items():
        for block in blocks(path):
            if block.language == "console":
                for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
                    command, _, output = part.partition("\n")
                    found.append((name, command, output))
    return [command for command in found if command[1].startswith("multibackend ")]


def typed_commands() -> list[tuple[str, str]]:
    """Return all commands, shown or not: of "sh" every line."""
    lines = [(name, command) for name, command, _ in shown_commands()]
    for name, path in PAGES.items():
        for block in blocks(path):
            if block.language == "sh":
                lines += [(name, line) for line in block.text.splitlines() if line.strip()]
    return lines


def words(text: str) -> str:
    """Without line breaks, and without what rounding makes, which depends on the machine."""
    return re.sub(r"rounding alone makes [\d.e+-]+", "rounding", " ".join(text.split()))


SHOWN = shown_commands()
TYPED = typed_commands()


@pytest.mark.parametrize(("page", "command", "shown"), SHOWN, ids=[f"{page}: {line}" for page, line, _ in SHOWN])
def test_a_command_prints_what_its_page_shows(
    page: str,
    command: str,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every line; and the exit code is 0 but where a comparison fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = main(shlex.split(command)[1:])
    printed = words(capsys.readouterr().out)
    for line in shown.strip().splitlines():
        assert words(line) in printed
    assert code == (1 if "do NOT match" in shown else 0)


# BatchNorm takes its statistics from micro-batches; and a port that is not finished
SAY_NO = ("multibackend check    examples/digits.py", "multibackend compare examples/port.py")
# those that newcomers type first; the others train for minutes
QUICK = ("README.md", "docs/guides/checkpoints.md")
RUN = dict.fromkeys(page for page, line in TYPED if line.startswith("multibackend ") and page != "docs/porting.md")


@pytest.mark.parametrize(
    "page", [page if page in QUICK else pytest.param(page, marks=pytest.mark.slow) for page in RUN]
)
def test_the_commands_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, in one folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, line in TYPED:
        command = shlex.split(line, comments=True)
        if name == page and command[0] == "multibackend":
            is_no = any(line.startswith(start) for start in SAY_NO)
            assert main(command[1:]) == int(is_no), line


@pytest.mark.parametrize(("page", "command"), TYPED, ids=[f"{page}: {line}" for page, line in TYPED])
def test_a_command_can_be_typed(page: str, command: str) -> None:
    """Its subcommand, flags, files, make targets and extras exist."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "multibackend":
        check_own(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(arguments) <= set(targets)
    elif program == "pip":
        check_extras(command)


def check_own(arguments: list[str]) -> None:
    """Parse a command of this library; flags that it does not know are those of the experiment file."""
    parser, _ = _parsers()
    options, flags = parser.parse_known_args(arguments)
    if not str(getattr(options, "file", "")).endswith(".py"):
        assert not flags
        return
    known = load_experiment_file(ROOT / options.file).flags
    names = {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    assert names <= known


def check_extras(command: str) -> None:
    """Find every extra that a `pip install` names in the project's own."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        known = set(tomllib.load(file)["project"]["optional-dependencies"])
    for extras in re.findall(r"multibackend\[([\w,]+)\]", command):
        assert set(extras.split(",")) <= known
