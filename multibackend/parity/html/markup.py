"""HTML from Python: text is escaped unless it says that it is markup already."""

from __future__ import annotations

import html
import json
import re

__all__ = ["Markup", "breakable", "escape", "join", "name", "prose", "script_json", "tag"]

_SMALL = re.compile(r"\b\d[\d.]*e[-+]\d+")
_EMPTY = {"input", "link", "meta", "wbr"}  # elements without content and without an end


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Anything as text of a page.

    >>> escape("a < b"), escape(tag("b", "a < b"))
    ('a &lt; b', '<b>a &lt; b</b>')
    """
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def join(*parts: object, between: str = "") -> Markup:
    """Parts one after the other, each escaped unless it is markup."""
    return Markup(between.join(escape(part) for part in parts))


def tag(element: str, *children: object, **attributes: object) -> Markup:
    """An element. `class_` stands for `class`, `aria_label` for `aria-label`; True has no value, None is left out.

    >>> tag("a", "1 < 2", href="#x", class_="link", hidden=True, title=None)
    '<a href="#x" class="link" hidden>1 &lt; 2</a>'
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        written += f" {spelled}" if value is True else f' {spelled}="{html.escape(str(value))}"'
    start = f"<{element}{written}>"
    return Markup(start if element in _EMPTY else f"{start}{join(*children)}</{element}>")


def name(dotted: str) -> Markup:
    """The name of a layer or a parameter, which a line may break after its dots; whole as `data-name`, for programs.

    >>> name("head.weight")
    '<span class="name" data-name="head.weight">head.<wbr>weight</span>'
    """
    return tag("span", Markup(re.sub(r"([._/])(?=.)", r"\1<wbr>", escape(dotted))), class_="name", data_name=dotted)


def breakable(code: str) -> Markup:
    """A specification as it is written in Python, which a line may break after a bracket.

    >>> breakable("SGD(learning_rate=0.1)")
    'SGD(<wbr>learning_rate=0.1)'
    """
    return Markup(re.sub(r"([(\[{])(?=\S)", r"\1<wbr>", escape(code)))


def prose(text: str) -> Markup:
    """A sentence whose small numbers no line breaks.

    >>> prose("at most 1e-04")
    'at most <span class="number">1e-04</span>'
    """
    return Markup(_SMALL.sub(r'<span class="number">\g<0></span>', escape(text)))


def script_json(value: object) -> Markup:
    """JSON for inside a script element, which no text in it can end; NaN and infinity are refused, JSON has neither.

    >>> script_json({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    written = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
