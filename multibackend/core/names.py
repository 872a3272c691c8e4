"""Canonical names, and the pairing of two models' parameters by them.

A canonical name is a dotted name as a PyTorch `state_dict` would hold it, its array in the layout that torch uses
(Linear `weight` [out, in], Conv `weight` [out, in, kh, kw]). Each backend translates its own names and layouts.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping

import numpy as np

from multibackend.errors import ParameterMatchError

__all__ = [
    "check_same_names",
    "check_same_slots",
    "glob_matches",
    "match_names",
    "normalised",
    "pair_state",
    "renamed",
    "shapes_of",
]

Shapes = Mapping[str, tuple[int, ...]]

_INDEX = re.compile(r"_(\d+)(?=\.|$)")


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shape of each array."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def normalised(name: str) -> str:
    """A name without differences of style: `layers_0.Weight` and `layers.0.weight` become one.

    >>> normalised("Layers_0.weight")
    'layers.0.weight'
    """
    return _INDEX.sub(r".\1", name).lower()


def glob_matches(name: str, pattern: str) -> bool:
    """Whether a pattern such as "*.bias" fits the whole of a name, as it stands or without differences of style.

    >>> glob_matches("layers_0.bias", "layers.0.*"), glob_matches("layers.10.bias", "layers.1.*")
    (True, False)
    """
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(normalised(name), normalised(pattern))


def match_names(reference: Shapes, other: Shapes, rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """Pair the names of `other` with those of `reference`: {other: reference}.

    In this order: `rename` (of whole names or of modules), equal names, names equal but for style, and what is left
    where its shape occurs just once on each side. Nothing is guessed beyond that.

    Raises:
        ParameterMatchError: a name has no partner, or partners differ in shape; names the nearest candidates.

    >>> match_names({"0.weight": (2, 3)}, {"layer.weight": (2, 3)})
    {'layer.weight': '0.weight'}
    """
    pairs: dict[str, str] = {}
    new_names = {name: renamed(name, rename or {}) for name in other}
    by_style = {normalised(name): name for name in reference}
    for name, wanted in new_names.items():
        partner = wanted if wanted in reference else by_style.get(normalised(wanted))
        if partner is not None:
            pairs[name] = partner
    _pair_unique_shapes(reference, other, pairs)
    _check_pairs(reference, other, pairs)
    return pairs


def pair_state(reference: Shapes, other: Shapes, rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """Pair model state by name and shape: {other: reference}. What one side alone keeps (a counter) stays unpaired."""
    by_style = {normalised(name): name for name in reference}
    pairs = {name: by_style.get(normalised(renamed(name, rename or {}))) for name in other}
    return {name: p for name, p in pairs.items() if p is not None and tuple(reference[p]) == tuple(other[name])}


def check_same_names(wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], what: str) -> None:
    """Raise `ParameterMatchError` unless both mappings have the same names and shapes."""
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    lines = [f"missing: {name}{_near(name, unknown)}" for name in missing]
    lines += [f"unknown: {name}{_near(name, missing)}" for name in unknown]
    for name in sorted(wanted.keys() & given.keys()):
        if np.shape(wanted[name]) != np.shape(given[name]):
            lines.append(f"{name}: shape {np.shape(given[name])} given, {np.shape(wanted[name])} needed")
    if lines:
        raise ParameterMatchError(f"{what} do not fit the model:" + "".join(f"\n  - {line}" for line in lines))


def check_same_slots(wanted: Iterable[str], given: Iterable[str]) -> None:
    """Raise `ParameterMatchError` unless an optimizer's per-parameter state has the slots that another needs."""
    if set(wanted) != set(given):
        raise ParameterMatchError(
            f"the optimizer's state does not fit: it has the slots {sorted(given)}, this optimizer needs "
            f"{sorted(wanted)}; take the optimizer that wrote it, or leave its state out"
        )


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """A name after `rename`: of the whole name, else of the longest module that it lies in.

    >>> renamed("encoder.0.weight", {"encoder": "blocks"})
    'blocks.0.weight'
    """
    if name in rename:
        return rename[name]
    prefixes = [prefix for prefix in rename if name.startswith(prefix + ".")]
    longest = max(prefixes, key=len, default=None)
    return name if longest is None else rename[longest] + name[len(longest) :]


def _pair_unique_shapes(reference: Shapes, other: Shapes, pairs: dict[str, str]) -> None:
    taken = set(pairs.values())
    left = [name for name in reference if name not in taken]
    for name in [name for name in other if name not in pairs]:
        here = [n for n in other if n not in pairs and _kind(n, other) == _kind(name, other)]
        there = [n for n in left if _kind(n, reference) == _kind(name, other)]
        if len(here) == 1 and len(there) == 1:
            pairs[name] = there[0]
            left.remove(there[0])


def _kind(name: str, shapes: Shapes) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(shapes[name])


def _check_pairs(reference: Shapes, other: Shapes, pairs: Mapping[str, str]) -> None:
    unmatched = [name for name in reference if name not in pairs.values()]
    lines = [
        f"{name} {tuple(shape)} has no partner{_near(name, unmatched)}"
        for name, shape in other.items()
        if name not in pairs
    ]
    lines += [f"{name} {tuple(reference[name])} of the reference is left over" for name in unmatched]
    first: dict[str, str] = {}
    lines += [
        f"{name} and {first[partner]} would both be {partner}"
        for name, partner in pairs.items()
        if first.setdefault(partner, name) != name
    ]
    lines += [
        f"{name} {tuple(other[name])} and {partner} {tuple(reference[partner])} differ in shape"
        for name, partner in pairs.items()
        if tuple(other[name]) != tuple(reference[partner])
    ]
    if lines:
        raise ParameterMatchError(
            "the parameters of the two models do not pair up:"
            + "".join(f"\n  - {line}" for line in lines)
            + "\nGive both models the same names, or pass rename={name: name in the reference} to Model"
        )


def _near(name: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(options), n=2, cutoff=0.4)
    return f" (nearest: {', '.join(near)})" if near else ""
