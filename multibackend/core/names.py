"""Canonical names: how they are compared, renamed, and checked against those that a model has.

A canonical name is a dotted name as a PyTorch `state_dict` would hold it, its array in the layout
that torch uses (Linear `weight` [out, in], Conv `weight` [out, in, kh, kw]). Each backend
translates its own names and layouts.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import ParameterMatchError

__all__ = ["check_same_names", "check_same_slots", "glob_matches", "normalised", "renamed", "shapes_of"]

# Flax numbers its modules `layers_0`, torch writes `layers.0`: an index ends a part of the name.
_INDEX = re.compile(r"_(\d+)(?=\.|$)")


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def normalised(name: str) -> str:
    """Return a name without differences of style: `layers_0.Weight` becomes `layers.0.weight`.

    >>> normalised("Layers_0.weight")
    'layers.0.weight'
    """
    return _INDEX.sub(r".\1", name).lower()


def glob_matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern such as "*.bias" fits a whole name, as it stands or but for style.

    >>> glob_matches("layers_0.bias", "layers.0.*"), glob_matches("layers.10.bias", "layers.1.*")
    (True, False)
    """
    if fnmatch.fnmatchcase(name, pattern):
        return True
    # Not this alone: in lower case a set such as "[!a-z]*" would fit no name, not even as written.
    return fnmatch.fnmatchcase(normalised(name), normalised(pattern))


def check_same_names(needed: Arrays, present: Arrays, what: str) -> None:
    """Raise `ParameterMatchError` unless both mappings have the same names and shapes."""
    missing = sorted(needed.keys() - present.keys())
    unknown = sorted(present.keys() - needed.keys())
    # A slip in a name leaves one name missing and one unknown: each is offered the nearest of the
    # other list, so that the two halves of the slip meet in the message.
    lines = [f"missing: {name}{_nearest(name, unknown)}" for name in missing]
    lines += [f"unknown: {name}{_nearest(name, missing)}" for name in unknown]
    for name in sorted(needed.keys() & present.keys()):
        if np.shape(needed[name]) != np.shape(present[name]):
            shapes = f"shape {np.shape(present[name])} given, {np.shape(needed[name])} needed"
            lines.append(f"{name}: {shapes}")
    if lines:
        raise ParameterMatchError(f"{what} do not fit the model:\n  - " + "\n  - ".join(lines))


def check_same_slots(needed: Iterable[str], present: Iterable[str]) -> None:
    """Raise `ParameterMatchError` unless an optimizer's state has the slots that another needs."""
    if set(needed) != set(present):
        raise ParameterMatchError(
            f"the optimizer's state does not fit: it has the slots {sorted(present)}, this optimizer "
            f"needs {sorted(needed)}; take the optimizer that wrote it, or leave its state out"
        )


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """Rename `name`: as a whole where `rename` has it, else by the longest module that it lies in.

    >>> renamed("encoder.0.weight", {"encoder": "blocks"})
    'blocks.0.weight'
    """
    if name in rename:
        return rename[name]
    prefixes = [prefix for prefix in rename if name.startswith(prefix + ".")]
    if not prefixes:
        return name
    # The longest is the innermost module: an entry for "encoder.0" is more particular than one
    # for "encoder", whatever their order in the mapping.
    longest = max(prefixes, key=len)
    return rename[longest] + name[len(longest) :]


def _nearest(name: str, options: Iterable[str]) -> str:
    # difflib's usual cutoff of 0.6 would hide a module of another name: "head.weight" and
    # "classifier.weight" are 0.57 alike.
    nearest = difflib.get_close_matches(name, list(options), n=2, cutoff=0.4)
    return f" (nearest: {', '.join(nearest)})" if nearest else ""
