"""A comparison as one page of HTML that needs nothing else: `pip install 'multibackend[html]'`.

The page holds plotly's JavaScript (4.8 MB, by far the most of it) and fetches nothing. Its words
and tables are there without JavaScript too.

>>> mb.compare(experiment, updates=20).write_html("parity.html")   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from multibackend.errors import ConfigurationError
from multibackend.loggers.scalars import import_extra
from multibackend.parity.html.page import BY, render
from multibackend.parity.result import ComparisonResult

__all__ = ["prepare", "write_html"]


def prepare(path: str | Path) -> str:
    """Check what a page needs, so that a mistake is known before the runs and not after them.

    Returns: plotly's JavaScript.

    Raises:
        PackageNotInstalledError: plotly or Jinja2 is not installed.
        ConfigurationError: no file can be written there.
    """
    plotly = import_extra("plotly.offline", "html", by=BY)
    import_extra("jinja2", "html", by=BY)
    target = Path(path)
    problem = ""
    try:
        # made now, so that a run of hours does not end with a page that cannot be written
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            problem = "it is a directory; give the name of a file"
    except OSError as error:
        problem = f"its directory cannot be made: {error.strerror}"
    if problem:
        raise ConfigurationError("write_html", [f"no page can be written to {str(path)!r}: {problem}"])
    return plotly.get_plotlyjs()


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
    plotly = prepare(path)
    target = Path(path)
    target.write_text(render(result, plotly, command), encoding="utf-8")
    return target
