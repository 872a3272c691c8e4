"""Where the progress of a run is shown: a terminal, a notebook, or a stream of plain lines."""

from __future__ import annotations

import html
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

__all__ = ["NotebookScreen", "PlainScreen", "Screen", "TerminalScreen", "open_screen"]

_GAP = "  "
_NOTEBOOK_WIDTH = 120  # characters; a browser breaks the line of a narrower window


def open_screen() -> Screen:
    """Choose by where this process runs; plain lines on the standard error unless it can do more."""
    display = _notebook_display()
    if display is not None:
        return NotebookScreen(display)
    # a process without a console has no standard error at all
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        try:
            return TerminalScreen()
        except ImportError:  # of rich, without which a run is shown all the same
            return PlainScreen()
    return PlainScreen()


class Screen:
    """Shows lines that stay, and one line that is drawn again and again where it can be.

    Attributes:
        redraws: whether a line can be drawn again.
    """

    redraws = False

    @property
    def width(self) -> int:
        """Characters that fit side by side."""
        raise NotImplementedError(f"{type(self).__name__} must say how wide it is")

    def print(self, line: str) -> None:
        """Show a line that stays."""
        raise NotImplementedError(f"{type(self).__name__} must show a line")

    def draw(self, parts: Sequence[str], done: float, cells: int) -> None:
        """Draw the line anew: a bar of so many cells, `done` of it full, and the parts beside it."""

    def close(self, line: str) -> None:
        """Take the drawn line away, and leave a last one in its place unless it is empty."""
        if line:
            self.print(line)


class PlainScreen(Screen):
    """Lines of text on a stream, the standard error unless given, as it is at the time of each line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @property
    def width(self) -> int:
        return sys.maxsize  # a file has no edge

    def print(self, line: str) -> None:
        stream = self._stream or sys.stderr
        if stream is not None:
            print(line, file=stream, flush=True)


class TerminalScreen(Screen):
    """A terminal, by rich; raises ImportError where it is not installed.

    Args:
        console: of rich; one on the standard error unless given.
    """

    redraws = True

    def __init__(self, console: Any = None) -> None:
        self._console = console or importlib.import_module("rich.console").Console(stderr=True)
        self._live_class = importlib.import_module("rich.live").Live
        self._text_class = importlib.import_module("rich.text").Text
        self._live: Any = None

    @property
    def width(self) -> int:
        # one less: some terminals begin a new line behind a character in their last column
        return self._console.width - 1

    def print(self, line: str) -> None:
        # as it is: not cut at some width, and no brackets taken for markup
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def draw(self, parts: Sequence[str], done: float, cells: int) -> None:
        if self._live is None:
            # drawn when there is something new, by no thread of its own
            self._live = self._live_class(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        full, empty = ("#", ".") if self._console.options.ascii_only else ("━", "─")
        reached = round(min(done, 1.0) * cells)
        text = self._text_class(no_wrap=True, overflow="crop")
        if cells:
            text.append(full * reached, "green")
            text.append(empty * (cells - reached) + _GAP, "bright_black")
        text.append(_GAP.join(parts))
        self._live.update(text, refresh=True)

    def close(self, line: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().close(line)


class NotebookScreen(Screen):
    """A cell's output in a notebook, which needs no widgets.

    Args:
        display: IPython.display.
    """

    redraws = True

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None

    @property
    def width(self) -> int:
        return _NOTEBOOK_WIDTH

    def print(self, line: str) -> None:
        print(line)

    def draw(self, parts: Sequence[str], done: float, cells: int) -> None:
        bar = ""
        if cells:
            bar = f'<progress value="{done:.4f}" max="1" aria-label="progress of the run"></progress> '
        self._show(f"{bar}{html.escape(_GAP.join(parts))}")

    def close(self, line: str) -> None:
        if self._handle is None:
            super().close(line)
            return
        self._show(html.escape(line))
        self._handle = None

    def _show(self, content: str) -> None:
        output = self._display.HTML(f'<div style="font-family: monospace; white-space: pre-wrap">{content}</div>')
        if self._handle is None:
            self._handle = self._display.display(output, display_id=True)
        else:
            self._handle.update(output)


def _notebook_display() -> Any:
    """IPython.display, where this process is the kernel of a notebook; else None."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    if ipython is None:
        return None
    shell = ipython.get_ipython()
    # a shell in a terminal has no kernel, and is a terminal
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    return importlib.import_module("IPython.display")
