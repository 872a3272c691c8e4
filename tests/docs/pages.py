"""The pages of the documentation, and what stands between their fences."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence)$", re.MULTILINE | re.DOTALL
)
_REQUIRES = re.compile(r'data-requires="(?P<package>\w+)"')
_INCLUDE = re.compile(r'^--8<-- "(?P<path>[^"]+)"$', re.M)


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        language: the fence's.
        line: the number of the first line.
        text: with the files that it includes.
        requires: the package that it needs and that the suite does without, "" for none.
    """

    language: str
    line: int
    text: str
    requires: str


def blocks(page: Path) -> list[Block]:
    """Read the fenced blocks of a page in order, with the files that they include."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        info = match["info"].strip(" {}")
        language = info.partition(" ")[0].removeprefix(".")
        requires = _REQUIRES.search(info)
        line = text.count("\n", 0, match.start()) + 2
        body = _INCLUDE.sub(lambda include: (DOCS / include["path"]).read_text(), textwrap.dedent(match["body"]))
        found.append(Block(language, line, body, requires["package"] if requires else ""))
    return found


def python_pages() -> dict[str, list[Block]]:
    """Return the pages of docs/ that have Python on them, with what they have."""
    programs = {name: [block for block in blocks(path) if block.language == "python"] for name, path in PAGES.items()}
    return {name: program for name, program in programs.items() if program and name != "README.md"}
