"""Reports as blocks of lines and tables, written as plain text, in colour on a terminal, or as HTML in a notebook.

A report says what it has to say once, as blocks; the command line, `print(report)` and a notebook all show these.

>>> print(write_text([Line("Two runs."), Table(("", "loss"), (("torch", "0.5"), ("jax", "0.25")), numbers=(1,))]))
Two runs.
       loss
-----------
torch   0.5
jax    0.25
"""

from __future__ import annotations

import html
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Block", "Line", "Readable", "Table", "print_blocks", "write_html", "write_text"]

_GAP = "  "
_NARROWEST = 12  # characters that a column keeps where a table must become narrower
_ANSI = {"good": "\x1b[1;32m", "bad": "\x1b[1;31m"}
_RESET = "\x1b[0m"
_CSS = {"good": "color: #0b6b4b; font-weight: bold", "bad": "color: #a3251b; font-weight: bold"}


@dataclass(frozen=True)
class Line:
    """A sentence, or several lines of text; `tone` is "good", "bad" or ""."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings.

    Attributes:
        columns: the headings; where all are empty none are shown.
        rows: of as many cells.
        title: above it.
        numbers: indices of the columns that stand to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    numbers: Sequence[int] = ()


Block = Line | Table


class Readable:
    """Prints as text, and shows itself in a notebook, by the blocks that a subclass gives."""

    def blocks(self) -> Sequence[Block]:
        """What there is to say."""
        raise NotImplementedError(f"{type(self).__name__} must say what it shows")

    def __str__(self) -> str:
        return write_text(self.blocks())

    def _repr_html_(self) -> str:
        return write_html(self.blocks())


def write_text(blocks: Iterable[Block], *, width: int | None = None, color: bool = False) -> str:
    """Write blocks as text.

    Args:
        blocks: what to write.
        width: of the terminal; a wider table has its longest cells wrapped. None wraps nothing.
        color: mark what is good and bad by ANSI colours.
    """
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, Table):
            lines += _table_lines(block, width)
        elif color and block.tone:
            lines.append(f"{_ANSI[block.tone]}{block.text}{_RESET}")
        else:
            lines.append(block.text)
    return "\n".join(lines)


def print_blocks(blocks: Iterable[Block], stream: TextIO | None = None) -> None:
    """Print blocks; in colour, and tables no wider than the window, where the stream is a terminal."""
    target = sys.stdout if stream is None else stream
    if not target.isatty():
        print(write_text(blocks), file=target)
        return
    width = shutil.get_terminal_size().columns
    print(write_text(blocks, width=width, color="NO_COLOR" not in os.environ), file=target)


def write_html(blocks: Iterable[Block]) -> str:
    """Write blocks as HTML that brings its own few styles."""
    parts = [_html_table(block) if isinstance(block, Table) else _html_line(block) for block in blocks]
    return f"<div>{''.join(parts)}</div>"


def _table_lines(table: Table, width: int | None) -> list[str]:
    columns = range(len(table.columns))
    sizes = [max(len(cell) for cell in column) for column in zip(table.columns, *table.rows, strict=True)]
    if width is not None:
        _narrow(sizes, width - len(_GAP) * (len(sizes) - 1), table.numbers)
    lines = [table.title] if table.title else []
    rows = list(table.rows)
    if any(table.columns):
        rows.insert(0, table.columns)
    for index, row in enumerate(rows):
        wrapped = [_wrapped(cell, size) for cell, size in zip(row, sizes, strict=True)]
        for part in range(max(map(len, wrapped))):
            cells = []
            for column in columns:
                cell = wrapped[column][part] if part < len(wrapped[column]) else ""
                is_number = column in table.numbers
                cells.append(cell.rjust(sizes[column]) if is_number else cell.ljust(sizes[column]))
            lines.append(_GAP.join(cells).rstrip())
        if index == 0 and any(table.columns):
            lines.append("-" * (sum(sizes) + len(_GAP) * (len(sizes) - 1)))
    return lines


def _narrow(sizes: list[int], room: int, numbers: Sequence[int]) -> None:
    """Take from the widest columns of words until all fit, or until none can be narrower."""
    words = [index for index in range(len(sizes)) if index not in numbers]
    while words and sum(sizes) > room:
        widest = max(words, key=lambda index: sizes[index])
        if sizes[widest] <= _NARROWEST:
            return
        sizes[widest] -= 1


def _wrapped(cell: str, size: int) -> list[str]:
    """Break a cell between its words; a word that is longer than the column stays whole."""
    if len(cell) <= size:
        return [cell]
    return textwrap.wrap(cell, size, break_long_words=False, break_on_hyphens=False) or [""]


def _html_line(line: Line) -> str:
    style = f"white-space: pre-wrap; margin: 0.2em 0; {_CSS.get(line.tone, '')}"
    return f'<p style="{style}">{html.escape(line.text)}</p>'


def _html_table(table: Table) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        side = "right" if column in table.numbers else "left"
        return f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>'

    caption = ""
    if table.title:
        caption = f'<caption style="text-align: left">{html.escape(table.title)}</caption>'
    head = ""
    if any(table.columns):
        head = "".join(cell("th", column, text) for column, text in enumerate(table.columns))
        head = f"<thead><tr>{head}</tr></thead>"
    rows = []
    for row in table.rows:
        cells = "".join(cell("td", column, text) for column, text in enumerate(row))
        rows.append(f"<tr>{cells}</tr>")
    return f"<table>{caption}{head}<tbody>{''.join(rows)}</tbody></table>"
