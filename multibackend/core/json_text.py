"""Strict JSON: what is written comes back the same, and reading can cost neither time nor memory.

Python's own reader takes duplicate keys (the last wins), NaN, numbers beyond every float and whole
numbers of thousands of digits, and meets deep nesting with a `RecursionError`. Here they are
errors, and so is more than a text's `Limits` allow. Every JSON that this library reads comes
through here: checkpoints by `load`, files of their own by `read_file`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

__all__ = [
    "DEEPEST",
    "FILE",
    "MOST_BYTES",
    "MOST_VALUES",
    "JSONTextError",
    "Limits",
    "dump",
    "load",
    "plain",
    "read_file",
]

MOST_BYTES = 6 * 2**20
MOST_VALUES = 200_000  # a value costs up to about 200 bytes of memory while it is read
DEEPEST = 64
_DEEPEST_VALUE = DEEPEST - 4  # leaves room for the objects of the file that the value is put into
_LONGEST_INTEGER = 40  # characters; 128 bits with their sign
_LARGEST_INTEGER = 2**128
# A string, or an open one up to the end of the text: else each of its escaped quotes would be tried
# as a beginning, in quadratic time. Possessive quantifiers for the same reason: no second tries.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class JSONTextError(ValueError):
    """Text or a value is not JSON as it is kept here; the message says why."""


class Limits(NamedTuple):
    """How much of a text is read, and in which encoding: of a checkpoint ASCII, as it is written there."""

    bytes: int = MOST_BYTES
    values: int = MOST_VALUES
    encoding: str = "ascii"


_CHECKPOINT = Limits()
# a file of its own is the user's: a recorded run may be long, and an editor may write any letter
FILE = Limits(2**28, 20_000_000, "utf-8")


def read_file(path: Path) -> Any:
    """Read the value of a JSON file in UTF-8.

    Raises:
        OSError: it cannot be read.
        JSONTextError: what is wrong with its text.
    """
    with path.open("rb") as file:
        return load(file.read(FILE.bytes + 1), FILE)


def load(text: bytes | memoryview, limits: Limits = _CHECKPOINT) -> Any:
    """Read the value of a JSON text, checked before anything is built.

    Raises:
        JSONTextError: what is wrong with it.

    >>> load(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    raw = bytes(text)
    _check_size(raw, limits)
    try:
        return json.loads(
            raw.decode(limits.encoding),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except JSONTextError:
        raise
    except (ValueError, RecursionError) as error:
        raise JSONTextError(f"it is no JSON text: {error}") from error


def dump(value: Any, what: str) -> str:
    """Write `value` as one line of ASCII JSON; `what` names it in messages.

    Raises:
        JSONTextError: the value has no exact JSON text, or is more than could be read back.
    """
    text = json.dumps(plain(value, what), allow_nan=False)
    try:
        _check_size(text.encode("ascii"))
    except JSONTextError as problem:
        raise JSONTextError(f"{what}: {problem}; large things belong in tensors") from None
    return text


def plain(value: Any, what: str, depth: int = 0) -> Any:
    """Turn `value` into plain JSON values; tuples become lists, numpy's scalars Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return _number(value, what)
    if depth > _DEEPEST_VALUE:
        raise JSONTextError(f"{what} is nested more than {_DEEPEST_VALUE} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise JSONTextError(f"{what} has the key {key!r:.80}; keys must be strings")
        return {str(key): plain(item, f"{what}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{what}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise JSONTextError(f"{what} is a {type(value).__name__}; only plain JSON is kept (arrays belong in tensors)")


def _number(value: float, what: str) -> float:
    if isinstance(value, int):
        if abs(value) >= _LARGEST_INTEGER:
            raise JSONTextError(f"{what} is a whole number of {value.bit_length()} bits; at most 128 are kept")
        return int(value)
    if not math.isfinite(value):
        raise JSONTextError(f"{what} is {value!r}, which JSON cannot hold; keep it as a tensor, or as None")
    return float(value)


def _check_size(raw: bytes, limits: Limits = _CHECKPOINT) -> None:
    """Bound what reading costs, from a count of characters alone: no value has been built yet."""
    if len(raw) > limits.bytes:
        raise JSONTextError(f"it has {len(raw)} bytes, more than the {limits.bytes} that are read")
    if limits.encoding == "ascii" and not raw.isascii():
        raise JSONTextError("it has characters beyond ASCII")
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > limits.values:
        raise JSONTextError(f"it has about {values} values, more than the {limits.values} that are read")
    depth = 0
    # strings go first, since brackets within them do not nest
    for bracket in _outside_strings(raw, 2 * values + 2).translate(None, _NOT_BRACKET):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            raise JSONTextError(f"it is nested more than {DEEPEST} deep")


def _outside_strings(raw: bytes, most_strings: int) -> bytearray:
    """Return the text without its strings, of which JSON has no more than keys and values."""
    # piece by piece: `re.sub` would hold all pieces at once, a hundred bytes for each quotation mark
    outside = bytearray()
    end = 0
    for count, match in enumerate(_STRING.finditer(raw)):
        if count == most_strings:
            raise JSONTextError("it is no JSON text: its strings are more than its values")
        outside += raw[end : match.start()]
        end = match.end()
    outside += raw[end:]
    return outside


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise JSONTextError(f"the key {key!r:.80} appears twice in one object")
        result[key] = value
    return result


def _constant(text: str) -> NoReturn:
    raise JSONTextError(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:  # before the conversion, which takes quadratic time
        raise JSONTextError(f"a whole number has {len(text)} digits, more than 128 bits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JSONTextError(f"{text[:40]} is beyond every float")
    return number
