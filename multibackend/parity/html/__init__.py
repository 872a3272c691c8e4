"""A comparison as one page of HTML that needs nothing else: `pip install 'multibackend[html]'`.

The page holds plotly's JavaScript (1.8 MB as it is packed, by far the most of it) and fetches nothing.
Its words and tables are there without JavaScript too.

>>> mb.compare(experiment, updates=20).write_html("parity.html")   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from multibackend.pages.writing import packed_plotly, prepare
from multibackend.parity.html.page import render
from multibackend.parity.result import ComparisonResult

__all__ = ["write_html"]


def write_html(result: ComparisonResult, path: str | Path, *, command: str | None = None) -> Path:
    """Write the page; returns its path.

    Args:
        result: of `compare`.
        path: of the file; its directory is made if need be.
        command: the command line that made the result, for the page's last section.

    Raises:
        PackageNotInstalledError: plotly or Jinja2 is not installed.
        ConfigurationError: no file can be written there.
    """
    prepare(path, "write_html")
    target = Path(path)
    target.write_text(render(result, packed_plotly(), command), encoding="utf-8")
    return target
