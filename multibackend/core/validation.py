"""Collects every problem of a configuration, so that they are reported together.

>>> check = Problems("SGD")
>>> check.number("learning_rate", float("nan"), minimum=0.0)
False
>>> check.raise_if_any()
Traceback (most recent call last):
    ...
multibackend.errors.ConfigurationError: SGD: 1 problem
  - learning_rate must be a finite number >= 0.0, got nan
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from multibackend.errors import ConfigurationError, ConfigurationTypeError

__all__ = [
    "LARGEST_INTEGER",
    "Problems",
    "as_names",
    "as_path",
    "by_keyword",
    "closest",
    "is_integer",
    "is_real",
    "shown",
]

LARGEST_INTEGER = 2**63 - 1  # what a 64-bit integer holds, numpy's and both frameworks'

_MOST_SHOWN = 200

P = ParamSpec("P")
R = TypeVar("R")


def by_keyword(repair: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method that takes its arguments by name: a call without names is a `ConfigurationTypeError`.

    >>> class Trainer:
    ...     @by_keyword("fit(updates=5)")
    ...     def fit(self, *, updates): ...
    >>> Trainer().fit(5)
    Traceback (most recent call last):
        ...
    multibackend.errors.ConfigurationTypeError: fit: 1 problem
      - fit takes its arguments by name, got 5 without one; write fit(updates=5)
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            if len(arguments) > 1:
                given = ", ".join(repr(argument) for argument in arguments[1:])
                name = method.__name__
                problem = f"{name} takes its arguments by name, got {given:.60} without one; write {repair}"
                raise ConfigurationTypeError(name, [problem])
            return method(*arguments, **options)

        return call

    return decorate


def is_integer(value: Any) -> bool:
    """Tell whether `value` is a whole number by type: Python's or numpy's, never a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Tell whether `value` is a real number by type: Python's or numpy's, never a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shown(value: object) -> str:
    """Return the `repr` of whatever a user gave, cut where it is long; never raises.

    >>> shown("mse"), shown(10**400)[-29:]
    ("'mse'", '0000000000... (401 characters)')
    """
    try:
        text = repr(value)
    except Exception:  # a class of the user's own, or an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def as_names(value: Any) -> tuple[Any, ...] | None:
    """Return a name or a sequence of names as a tuple, its members not yet checked; None for anything else."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Sequence) else None


def closest(word: object, options: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for a likely slip, else an empty string."""
    if not isinstance(word, str):
        return ""
    # capitals are no difference: "TORCH" is a slip for "torch", "Y" for "y"
    by_lower = {option.lower(): option for option in options}
    nearest = difflib.get_close_matches(word.lower(), list(by_lower), n=1)
    return f"; did you mean {by_lower[nearest[0]]!r}?" if nearest else ""


def as_path(subject: str, name: str, value: Any) -> Path:
    """Return a path that a user gave; raise `ConfigurationError` where it can be none.

    >>> as_path("Trainer", "run_dir", "runs/digits").name
    'digits'
    """
    is_path = isinstance(value, str | PathLike) and isinstance(os.fspath(value), str)
    if is_path and os.fspath(value) and "\0" not in os.fspath(value):
        return Path(value)
    reason = "; a path has no NUL" if is_path and os.fspath(value) else ""
    raise ConfigurationTypeError(subject, [f"{name} must be a path, a string or a Path, got {shown(value)}{reason}"])


class Problems:
    """A list of problems about one subject, filled by checks and raised once."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._problems: list[tuple[bool, str]] = []  # (is a wrong type, sentence)

    def add(self, sentence: str, *, wrong_type: bool = False) -> None:
        """Add a sentence that says what is wrong and how to mend it."""
        self._problems.append((wrong_type, sentence))

    @property
    def sentences(self) -> list[str]:
        """The sentence of each problem, in the order in which they were added."""
        return [sentence for _, sentence in self._problems]

    @property
    def found(self) -> bool:
        """Whether there is a problem so far."""
        return bool(self._problems)

    def raise_if_any(self) -> None:
        """Raise `ConfigurationError` with all problems, `ConfigurationTypeError` if all are types."""
        if not self._problems:
            return
        # With one wrong value among wrong types, right types alone would not mend it: no TypeError.
        if all(wrong_type for wrong_type, _ in self._problems):
            raise ConfigurationTypeError(self.subject, self.sentences)
        raise ConfigurationError(self.subject, self.sentences)

    def integer(self, name: str, value: Any, *, minimum: int, maximum: int = LARGEST_INTEGER) -> bool:
        """Check an integer in [minimum, maximum]; numpy integers count, bools do not."""
        if not is_integer(value):
            self.add(f"{name} must be an integer >= {minimum}, got {shown(value)}", wrong_type=True)
            return False
        if value < minimum:
            self.add(f"{name} must be >= {minimum}, got {shown(value)}")
            return False
        if value > maximum:
            self.add(f"{name} must be at most {maximum}, got {shown(value)}")
            return False
        return True

    def number(
        self, name: str, value: Any, *, minimum: float, below: float | None = None, above_minimum: bool = False
    ) -> bool:
        """Check a finite real in [minimum, below), or in (minimum, below) with `above_minimum`."""
        bounds = f"> {minimum}" if above_minimum else f">= {minimum}"
        if below is not None:
            bounds += f" and < {below}"
        problem = f"{name} must be a finite number {bounds}, got {shown(value)}"
        if not is_real(value):
            self.add(problem, wrong_type=True)
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer beyond the largest float
            number = math.inf
        too_small = number <= minimum if above_minimum else number < minimum
        too_large = below is not None and number >= below
        # Finite comes by itself, because NaN is neither too small nor too large.
        if too_small or too_large or not math.isfinite(number):
            self.add(problem)
            return False
        return True

    def boolean(self, name: str, value: object) -> bool:
        """Check a bool; 0 and 1 are not taken for one."""
        if not isinstance(value, bool):
            self.add(f"{name} must be True or False, got {shown(value)}", wrong_type=True)
            return False
        return True

    def choice(self, name: str, value: Any, options: Iterable[str]) -> bool:
        """Check that a value is one of a few words."""
        options = tuple(options)
        if not isinstance(value, str) or value not in options:
            listed = ", ".join(repr(option) for option in options)
            self.add(f"{name} must be one of {listed}, got {shown(value)}{closest(value, options)}")
            return False
        return True

    def instance(self, name: str, value: object, kind: type, what: str) -> bool:
        """Check that a value is of a class, which `what` says how to make."""
        if not isinstance(value, kind):
            self.add(f"{name} must be {what}, got {shown(value)}", wrong_type=True)
            return False
        return True

    def field_name(self, name: str, value: object) -> bool:
        """Check the name of a field of the data."""
        if not isinstance(value, str) or not value:
            self.add(f"{name} must be the name of a field of the data, got {shown(value)}", wrong_type=True)
            return False
        return True
