"""Blocks as text, in colour, in a narrow window, and as HTML."""

from __future__ import annotations

import io

import pytest

from multibackend.core.text import Line, Readable, Table, print_blocks, write_html, write_text
from multibackend.core.words import clock, duration

LONG = "a rather long explanation of what the second column is there for"
TABLE = Table(("name", "what", "size"), (("a", LONG, "1"), ("bb", "short", "12345")), title="Things", numbers=(2,))


def test_a_table_is_as_wide_as_its_cells() -> None:
    """Words to the left, numbers to the right, no line longer than it must be."""
    lines = write_text([TABLE]).splitlines()
    assert lines[0] == "Things"
    assert lines[1].split() == ["name", "what", "size"]
    assert lines[3] == f"a     {LONG}      1"
    assert lines[4].startswith("bb    short ")
    assert lines[4].endswith("  12345")


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_window_wraps_words(width: int) -> None:
    """The longest cells break between words; nothing is left out."""
    lines = write_text([TABLE], width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines[3:]).split()).replace(" 1 ", " ", 1).startswith("a a rather long explanation")
    for word in (*LONG.split(), "12345"):
        assert any(word in line for line in lines)


def test_a_word_is_never_cut() -> None:
    """A command that is to be copied stays whole, though the window be narrower."""
    command = "multibackend[html,torch,jax,everything]"
    assert command in write_text([Table(("", ""), (("run", command),))], width=20)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colors_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for files, nor where NO_COLOR is set."""
    blocks = [Line("fine", "good"), Line("plain")]
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, file = Terminal(), io.StringIO()
    print_blocks(blocks, terminal)
    print_blocks(blocks, file)
    assert terminal.getvalue() == "\x1b[1;32mfine\x1b[0m\nplain\n"
    assert file.getvalue() == "fine\nplain\n"
    monkeypatch.setenv("NO_COLOR", "1")
    print_blocks(blocks, bare := Terminal())
    assert bare.getvalue() == file.getvalue()


def test_html_escapes() -> None:
    """Texts of users are text; a table has a head where it has headings."""
    html = write_html([Line("<b>&", "bad"), Table(("<i>",), (("</td>",),), title="<u>"), Table(("",), (("x",),))])
    assert not {"<b>", "<i>", "<u>"} & {html[index : index + 3] for index in range(len(html))}
    assert html.count("<thead>") == 1
    assert html.count("</td>") == 2


def test_what_says_nothing_is_told() -> None:
    """A report without blocks names itself."""
    with pytest.raises(NotImplementedError, match="Readable must say"):
        str(Readable())


def test_durations() -> None:
    """Seconds, then hours; infinite ones are unknown."""
    assert (duration(59.94), duration(3600), clock(float("inf"))) == ("59.9 s", "1:00:00", "?")
