"""Where two models part, as far as words need it, and how a value is written there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multibackend.protocol.tracing import LayerCall

__all__ = ["Calls", "Idioms", "Place", "shown", "shown_sum"]

Idioms = Mapping[str, str]
"""How a framework writes a thing, by the formulas' names: {"gelu (erf)": "F.gelu(x)"}."""

Calls = tuple[LayerCall | None, LayerCall | None]


@dataclass(frozen=True)
class Place:
    """Where two models part. Pairs: the reference's, the other's.

    Attributes:
        backends: of the reference and of the other side.
        what: the layer or the array, as the report calls it.
        calls: the layer on each side, where there is one.
        idioms: of each framework.
        kinds: the classes of the reference's layers by name, those of sources among them.
        known: names of the arrays that were there on the reference's side.
    """

    backends: tuple[str, str]
    what: str = ""
    calls: Calls = (None, None)
    idioms: tuple[Idioms, Idioms] = field(default=({}, {}))
    kinds: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] = frozenset()

    def kind(self, name: str) -> str:
        """The class of a layer of the reference in lower case; "" where no layer has this name."""
        return self.kinds.get(name, "").lower()


def shown(value: Any) -> str:
    """A trait's value as a reader expects it."""
    if value is None:
        return "as it is"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def shown_sum(terms: Mapping[str, str]) -> str:
    """The sum of arrays with their factors.

    >>> shown_sum({"ln": "1", "embed": "sqrt(8)"})
    'ln + sqrt(8) * embed'
    """
    return " + ".join(f"{factor} * {name}".removeprefix("1 * ") for name, factor in terms.items())
