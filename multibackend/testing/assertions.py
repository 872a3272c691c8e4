"""Assertions on arrays, snapshots and trainers, which raise: no result can be dropped.

Structure, names, kinds of dtype and shapes are compared before any value: an array [4, 1] never
matches one of [4], nor a missing name a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from multibackend.core.arrays import Array
from multibackend.core.differences import largest_element
from multibackend.errors import MatchError
from multibackend.parity.tolerances import tolerance_for
from multibackend.protocol import Snapshot
from multibackend.training.trainer import Trainer

__all__ = [
    "assert_arrays_match",
    "assert_bit_identical",
    "assert_raises",
    "assert_snapshots_identical",
    "assert_trainers_match",
]

E = TypeVar("E", bound=BaseException)
Comparison = Callable[[str, np.ndarray, np.ndarray], None]


def assert_arrays_match(
    actual: Any,
    expected: Any,
    *,
    relative: float | None = None,
    precision: str | None = None,
    floor: float = 0.0,
    what: str = "",
) -> None:
    """Raise `MatchError` unless two arrays, or mappings or sequences of arrays, match.

    Args:
        actual, expected: arrays, numbers, or nested mappings and sequences of them.
        relative: the largest |actual - expected| allowed, relative to the largest
            |expected| of the array.
        precision: takes `relative` from `multibackend.parity.tolerances`, for parameters
            after a run.
        floor: the least size that differences are measured against, for arrays that may be
            all but zero.
        what: is compared, for the message.

    NaN matches NaN and an infinity itself.

    >>> assert_arrays_match({"w": np.ones(2)}, {"w": np.array([1.0, 1.5])}, relative=0.1)
    Traceback (most recent call last):
        ...
    multibackend.errors.MatchError: w[1]: 1.0 against 1.5 expected; they differ by 0.5,
    allowed is 0.15
    """
    if (relative is None) == (precision is None):
        values = f"relative={relative!r} and precision={precision!r}"
        raise TypeError(f"give either relative= or precision=, got {values}")
    allowed = float(relative or 0.0)
    if precision is not None:
        allowed = tolerance_for(precision).parameters
    if not 0 <= allowed < 1:
        raise ValueError(f"a relative bound must be in [0, 1), got {allowed}")

    def compare(where: str, a: np.ndarray, e: np.ndarray) -> None:
        if _kind(a) != _kind(e):
            raise MatchError(f"{where}: dtype {a.dtype} against {e.dtype} expected")
        _compare_shapes(where, a, e)
        _compare_values(where, a, e, allowed, floor)

    _compare(what, actual, expected, compare)


def assert_bit_identical(actual: Any, expected: Any, *, what: str = "") -> None:
    """Raise `MatchError` unless two arrays, or mappings or sequences of them, have the same bits.

    >>> assert_bit_identical(np.zeros(1), -np.zeros(1))
    Traceback (most recent call last):
        ...
    multibackend.errors.MatchError: [0]: 0.0 against -0.0 expected; 1 of 1 elements differ
    in their bits
    """

    def compare(where: str, a: np.ndarray, e: np.ndarray) -> None:
        if a.dtype != e.dtype:
            raise MatchError(f"{where}: dtype {a.dtype} against {e.dtype} expected")
        _compare_shapes(where, a, e)
        differ = (_bytes(a) != _bytes(e)).any(axis=1)
        if differ.any():
            place = np.unravel_index(int(np.argmax(differ)), a.shape)
            raise MatchError(
                f"{_at(where, place, a, e)}; {int(differ.sum())} of {differ.size} elements differ in their bits"
            )

    _compare(what, actual, expected, compare)


def assert_snapshots_identical(actual: Snapshot, expected: Snapshot) -> None:
    """Raise `MatchError` unless two training states are bit-identical in all of their parts."""
    if actual.update != expected.update:
        raise MatchError(f"update: {actual.update} against {expected.update} expected")
    for part in ("parameters", "model_state", "optimizer", "ema"):
        assert_bit_identical(getattr(actual, part), getattr(expected, part), what=part)


def assert_trainers_match(actual: Trainer, expected: Trainer, *, relative: float | None = None) -> None:
    """Raise `MatchError` unless two trainers hold matching parameters, by canonical name.

    The bound is that of the experiments' precision unless `relative` is given.
    """
    if relative is None:
        relative = tolerance_for(expected.experiment.precision).parameters
    assert_arrays_match(actual.parameters(), expected.parameters(), relative=relative, what="parameters")


def assert_raises(kind: type[E], function: Callable[[], Any], *mentions: object) -> E:
    """Raise `MatchError` unless `function()` raises `kind`, its message with each of `mentions`."""
    try:
        result = function()
    except kind as error:
        missing = [str(word) for word in mentions if str(word) not in str(error)]
        if missing:
            problem = f"the message of {kind.__name__} does not mention {missing}; it is: {error}"
            raise MatchError(problem) from error
        return error
    problem = f"was expected, but nothing was raised; the result was {result!r}"
    raise MatchError(f"{kind.__name__} {problem}")


def _compare(where: str, actual: Any, expected: Any, compare: Comparison) -> None:
    """Walk two structures in step, and `compare` their arrays."""
    structure = _structure(expected)
    if _structure(actual) != structure:
        problem = f"{_structure(actual)} against {structure} expected"
        raise MatchError(f"{where or 'the value'}: {problem}")
    if isinstance(expected, Mapping):
        missing = sorted(expected.keys() - actual.keys())
        extra = sorted(actual.keys() - expected.keys())
        if missing or extra:
            raise MatchError(f"{where or 'names'}: missing {missing}, not expected {extra}")
        for name in expected:
            _compare(f"{where}.{name}".lstrip("."), actual[name], expected[name], compare)
    elif structure == "sequence":
        if len(actual) != len(expected):
            problem = f"length {len(actual)} against {len(expected)} expected"
            raise MatchError(f"{where or 'the sequence'}: {problem}")
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            _compare(f"{where}[{index}]", a, e, compare)
    else:
        compare(where, np.asarray(actual), np.asarray(expected))


def _structure(value: Any) -> str:
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "sequence"
    return "array"


def _bytes(array: np.ndarray) -> np.ndarray:
    """View as uint8 [elements, bytes]: as values 0.0 and -0.0 are equal, and NaN is not itself."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)


def _kind(array: np.ndarray) -> str:
    """Return the kind of dtype, signed and unsigned integers being one."""
    return array.dtype.kind.replace("u", "i")


def _compare_shapes(where: str, actual: np.ndarray, expected: np.ndarray) -> None:
    if actual.shape != expected.shape:
        problem = f"shape {actual.shape} against {expected.shape} expected"
        raise MatchError(f"{where or 'the array'}: {problem}")


def _compare_values(where: str, actual: Array, expected: Array, allowed: float, floor: float) -> None:
    if actual.size == 0:
        return
    a = actual.astype(np.float64)
    e = expected.astype(np.float64)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    # a NaN on one side alone is an infinite difference, never one that compares false with
    # the limit
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.where(same, 0.0, np.abs(a - e)), nan=np.inf)
    # of what is expected alone: else a value that is far too large would widen its own bound
    limit = allowed * max(largest_element(e), floor)
    if gap.max() > limit:
        place = np.unravel_index(int(gap.argmax()), gap.shape)
        difference = f"they differ by {gap[place]:.3g}, allowed is {limit:.3g}"
        raise MatchError(f"{_at(where, place, a, e)}; {difference}")


def _at(where: str, place: tuple[Any, ...], actual: Array, expected: Array) -> str:
    """Name an element and its two values; of an array without axes there is but the one."""
    if place:
        where += str([int(index) for index in place])
    return f"{where}: {actual[place].item()!r} against {expected[place].item()!r} expected"
