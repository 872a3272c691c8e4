"""Examples in docstrings begin with `>>>`; in Markdown that is a quotation, so the site shows them as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

PROMPT = ">>>"
SKIPPED = re.compile(r"[ ]*# doctest: \+\w+")


def with_fences(text: str) -> str:
    """Put every example, from its first prompt to the next empty line, between fences."""
    lines: list[str] = []
    indent: str | None = None  # of the example that is open
    for line in text.splitlines():
        starts = line.lstrip().startswith(PROMPT)
        if indent is None and starts:
            indent = line[: len(line) - len(line.lstrip())]
            lines += ["", f"{indent}```pycon"]
        elif indent is not None and not line.strip():
            lines.append(f"{indent}```")
            indent = None
        lines.append(SKIPPED.sub("", line))
    if indent is not None:
        lines.append(f"{indent}```")
    return "\n".join(lines)


class DoctestBlocks(griffe.Extension):
    """Rewrites the docstrings of everything that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring before it is parsed."""
        if obj.docstring is not None and PROMPT in obj.docstring.value:
            obj.docstring.value = with_fences(obj.docstring.value)
