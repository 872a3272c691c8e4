"""Numbers and names as they are written on the page; markup is made by the templates alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

__all__ = ["code_pieces", "name_pieces", "number", "prose_pieces", "relative", "shape"]

# at its hyphen a line would break: "1e-" at the end of one, "04" at the beginning of the next
_SMALL_NUMBER = re.compile(r"(\b\d[\d.]*e[-+]\d+)")


def relative(difference: float) -> str:
    """Write a relative difference with two digits.

    >>> relative(3.14159e-16), relative(1e-4), relative(0.0), relative(float("inf"))
    ('3.1e-16', '1e-04', '0', 'infinite')
    """
    if difference == 0:
        return "0"
    if not math.isfinite(difference):
        return "infinite"
    return f"{difference:.1e}".replace(".0e", "e")


def number(value: float) -> str:
    """Write a value with nine digits, as many as tell two float32 apart."""
    if math.isnan(value):
        return "not a number"
    return f"{value:.9g}"


def shape(sizes: Sequence[int]) -> str:
    """Write the shape of an array.

    >>> shape((3, 4)), shape(())
    ('[3, 4]', 'one number')
    """
    return str(list(sizes) or "one number")


def name_pieces(dotted: str) -> list[str]:
    """Split the name of a layer or a parameter where a line may break: after its separators.

    >>> name_pieces("head.fc_in.weight")
    ['head.', 'fc_', 'in.', 'weight']
    """
    return re.split(r"(?<=[._/])(?=.)", dotted)


def code_pieces(code: str) -> list[str]:
    """Split a specification, as it is written in Python, where a line may break: after its brackets.

    >>> code_pieces("SGD(learning_rate=0.1)")
    ['SGD(', 'learning_rate=0.1)']
    """
    return re.split(r"(?<=[(\[{])(?=\S)", code)


def prose_pieces(sentence: str) -> list[str]:
    """Split a sentence around its small numbers, in which no line may break; these have the odd places.

    >>> prose_pieces("at most 1e-04 here")
    ['at most ', '1e-04', ' here']
    """
    return _SMALL_NUMBER.split(sentence)
