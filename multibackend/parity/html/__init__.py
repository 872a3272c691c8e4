"""A comparison as one page of HTML that needs nothing else: `pip install 'multibackend[html]'`.

The page holds plotly's JavaScript (4.8 MB, by far the most of it) and fetches nothing. Its words and tables are there
without JavaScript too.

>>> mb.compare(experiment, updates=20).write_html("parity.html")   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multibackend.errors import ConfigurationError
from multibackend.loggers.scalars import import_extra

if TYPE_CHECKING:
    from multibackend.parity.report import CompareReport

__all__ = ["prepare", "write_html"]


def prepare(path: str | Path) -> str:
    """What a page needs before there is one, so that a mistake is known before the runs and not after them.

    Returns: plotly's JavaScript.

    Raises:
        PackageNotInstalledError: plotly is not installed.
        ConfigurationError: no file can be written there.
    """
    plotly = import_extra("plotly.offline", "html", by="a page of HTML").get_plotlyjs()
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        problem = "it is a directory; give the name of a file" if target.is_dir() else ""
    except OSError as error:
        problem = f"its directory cannot be made: {error.strerror}"
    if problem:
        raise ConfigurationError("write_html", [f"no page can be written to {str(path)!r}: {problem}"])
    return plotly


def write_html(report: CompareReport, path: str | Path, *, command: str | None = None) -> Path:
    """Write the page; returns its path.

    Args:
        report: from `compare`.
        path: of the file; its directory is made if need be.
        command: the command line that made the report, for the page's last section.

    Raises:
        PackageNotInstalledError: plotly is not installed.
        ConfigurationError: no file can be written there.
    """
    plotly = prepare(path)
    from multibackend.parity.html.page import render  # noqa: PLC0415 - only a page needs it

    Path(path).write_text(render(report, plotly, command), encoding="utf-8")
    return Path(path)
