"""What a user meant: a framework's own object, or its name, where one of this library's specs belongs."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["accepts", "describe", "is_module", "named_specs", "nearest_spec", "required_arguments", "suggestion"]

_LIKE_ENOUGH = 0.62  # of difflib's ratio: "marginmse" is not "mean squared error", "crossentropyloss" is


def is_module(value: object) -> bool:
    """Tell whether a value is an instance of a framework's layer: all of them have a base class `Module`.

    >>> class Module: ...
    >>> class Net(Module): ...
    >>> is_module(Net()), is_module(Net)
    (True, False)
    """
    return any(base.__name__ == "Module" for base in type(value).__mro__)


def describe(value: object) -> str:
    """Return what a message calls a value: text as it is written, a class or function by its name, else a short repr.

    >>> describe("adam"), describe(max)
    ("'adam'", 'max')
    """
    if isinstance(value, type) or inspect.isroutine(value):
        module = value.__module__ or "builtins"
        return value.__qualname__ if module in ("__main__", "builtins") else f"{module}.{value.__qualname__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def named_specs(module: Any, base: type) -> dict[str, type]:
    """Return the public classes of a module that are specs of one sort, the base itself aside."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: spec
        for name, spec in found.items()
        if isinstance(spec, type) and issubclass(spec, base) and spec is not base
    }


def nearest_spec(value: object, specs: Mapping[str, type]) -> str | None:
    """Return the name of the spec that stands for a framework's class, instance or function, or for a word.

    By the spec's own name: as it is written, its initials, a part of it, or one that is much like it.

    >>> class MeanSquaredError: ...
    >>> class CrossEntropy: ...
    >>> specs = {"MeanSquaredError": MeanSquaredError, "CrossEntropy": CrossEntropy}
    >>> nearest_spec("mse_loss", specs), nearest_spec("sparse_categorical_crossentropy", specs)
    ('MeanSquaredError', 'CrossEntropy')
    >>> nearest_spec("ctc", specs)
    """
    given = _letters(_name_of(value))
    if not given:
        return None
    likeness = {name: _likeness(given, name) for name in specs}
    best = max(likeness, key=lambda name: likeness[name])
    return best if likeness[best] >= _LIKE_ENOUGH else None


def suggestion(value: object, specs: Mapping[str, type], place: str) -> str:
    """Return how to write what was meant, `; write mb.losses.Huber(target=...)`, or which specs there are."""
    name = nearest_spec(value, specs)
    if name is None:
        return f"; {place} has {', '.join(specs)}"
    return f"; write {place}.{name}({required_arguments(specs[name])})"


def required_arguments(spec: type) -> str:
    """Return the arguments that a spec cannot do without, as code."""
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    fields = dataclasses.fields(spec)  # pyright: ignore[reportArgumentType] - specs are dataclasses
    names = [field.name for field in fields if field.init and (field.default, field.default_factory) == missing]
    return ", ".join(f"{name}=..." for name in names)


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Tell whether a function is written for so many positional arguments; True where it does not say.

    A parameter with a default was not written for this: `mse_loss(input, target, size_average=None)` takes two.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return len(needed) <= count
    return len(needed) == count


def _name_of(value: object) -> str:
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, str):
        return value
    own_name = getattr(value, "__name__", None)
    return own_name if isinstance(own_name, str) else type(value).__name__


def _letters(name: str) -> str:
    """Return a name in small letters and digits, without what every such name may have."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return letters.removesuffix("loss") or letters


def _likeness(given: str, spec: str) -> float:
    name = _letters(spec)
    initials = "".join(letter for letter in spec if letter.isupper()).lower()
    if given in (name, initials):
        return 2.0
    if name in given:  # the longest that is part of it: BinaryCrossEntropy rather than CrossEntropy
        return 1.0 + len(name) / 100
    if len(initials) > 1 and given.startswith(initials):
        return 0.9 + len(initials) / 100
    if len(given) > 2 and given in name:
        return 0.9
    return difflib.SequenceMatcher(None, given, name).ratio()
