"""From a template and what it shows to a file: one page that fetches nothing."""

from __future__ import annotations

import base64
import zlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from multibackend.core.extras import import_extra
from multibackend.errors import ConfigurationError
from multibackend.pages.words import code_pieces, name_pieces, number, prose_pieces, relative

__all__ = ["BY", "environment", "packed_plotly", "prepare", "render"]

BY = "a page of HTML"  # that needs plotly and Jinja2, for the error that says how to install them

_HERE = "multibackend.pages"
# base85 as Python writes it, but for the one character that could begin a comment or an element
_UNSAFE = "<"
_SAFE = ","


def prepare(path: str | Path, subject: str) -> None:
    """Check what a page needs, so that a mistake is known before the work that it is to show.

    Args:
        path: where the page is to be written; its directory is made.
        subject: who asks, for the error.

    Raises:
        PackageNotInstalledError: plotly or Jinja2 is not installed.
        ConfigurationError: no file can be written there.
    """
    import_extra("plotly.offline", "html", by=BY)
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
        raise ConfigurationError(subject, [f"no page can be written to {str(path)!r}: {problem}"])


def render(package: str, template: str, plotly: str, **values: Any) -> str:
    """Return the whole page.

    Args:
        package: that has the template, which extends `base.html.jinja`.
        template: its file name.
        plotly: what `packed_plotly` gives.
        values: for the template; `plots` are its plots in their order.
    """
    plots = values.pop("plots")
    return (
        environment(package)
        .get_template(template)
        .render(
            **values,
            plots={plot.anchor: plot for plot in plots},
            figures={plot.anchor: plot.figure for plot in plots},
            style=_text("page.css"),
            script=_text("page.js"),
            plotly=plotly,
        )
    )


@cache
def environment(package: str) -> Any:
    """Return a page's environment of Jinja2: it escapes every text, and a missing name is an error.

    `import_extra` and not an import, because only a page needs Jinja2.
    """
    jinja2 = import_extra("jinja2", "html", by=BY)
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, _HERE)]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON has neither NaN nor infinity: refuse them here rather than in the browser
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.filters |= {
        "code_pieces": code_pieces,
        "name_pieces": name_pieces,
        "number": number,
        "prose_pieces": prose_pieces,
        "relative": relative,
    }
    return made


@cache
def packed_plotly() -> str:
    """Return plotly's JavaScript, deflated and in characters that a script element may hold.

    page.js unpacks it: 1.8 MB instead of 4.8.
    """
    code = import_extra("plotly.offline", "html", by=BY).get_plotlyjs()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)  # without a header: "deflate-raw"
    packed = deflater.compress(code.encode()) + deflater.flush()
    return base64.b85encode(packed).decode().replace(_UNSAFE, _SAFE)


@cache
def _text(file: str) -> str:
    return (resources.files(_HERE) / file).read_text(encoding="utf-8")
