"""Picking one of several outputs by a dotted path, whatever structure a model returns."""

import dataclasses
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multibackend.core.paths import arrays_by_path, pick, shapes_by_path
from multibackend.errors import ConfigurationError

Pair = namedtuple("Pair", ["first", "second"])
A = np.zeros((2, 3))
B = np.ones((2, 1))


@dataclasses.dataclass
class Heads:
    logits: Any
    hidden: Any = None


class Distribution:
    """An object whose output is a property."""

    def __init__(self) -> None:
        self.loc = A

    @property
    def mean(self) -> np.ndarray:
        return self.loc

    def sample(self) -> None: ...


@pytest.mark.parametrize(
    ("outputs", "path", "expected"),
    [
        (A, None, A),
        (A, "", A),
        ({"cls": A, "reg": B}, "reg", B),
        ({"heads": [A, {"x": B}]}, "heads.1.x", B),
        ({"a.b": A, "a": {"b": B}}, "a.b", A),
        ({"a.b": {"c": B}}, "a.b.c", B),
        ({0: A, 1: B}, "1", B),
        ((A, B), "1", B),
        (Pair(A, B), "second", B),
        (Pair(A, B), "1", B),
        (Heads(A, (A, B)), "hidden.1", B),
        (SimpleNamespace(last=B), "last", B),
        (OrderedDict(logits=A), "logits", A),
        (Distribution(), "mean", A),
    ],
)
def test_picks(outputs: Any, path: str | None, expected: Any) -> None:
    assert pick(outputs, path) is expected


@pytest.mark.parametrize(
    ("outputs", "path", "words"),
    [
        ({"cls": A, "reg": B}, "clss", r"output='clss' is not there: they have 'cls', 'reg'; did you mean 'cls'"),
        (A, "cls", r"returns one array \[2, 3\]; drop output="),
        ({"heads": (A, B)}, "heads.2", r"they have 'heads.0', 'heads.1'"),
        (Heads(A), "hidden", r"is None: the model did not return it: they have 'logits'"),
        ({"cls": A}, "cls.shape", r"they have 'cls'"),
        (None, "cls", r"returned NoneType, which has no parts"),
        (Distribution(), "sample", r"they have 'loc'"),
    ],
)
def test_what_is_not_there_is_listed(outputs: Any, path: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        pick(outputs, path)


def test_shapes() -> None:
    assert shapes_by_path(A) == {"": (2, 3)}
    assert shapes_by_path(Pair(A, B), picked=("1", None)) == {"first": (2, 3), "second": (2, 1), "1": (2, 1)}
    assert list(arrays_by_path({"a": (A, None), "n": 3})) == ["a.0"]
