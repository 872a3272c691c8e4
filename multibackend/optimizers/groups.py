"""Which parameter belongs to which group, once for every backend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multibackend.core.validation import Problems
from multibackend.optimizers.base import Group, Optimizer, is_vector

__all__ = ["Group", "GroupedParameters", "frozen_names", "is_vector", "resolve_groups", "with_zeros"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GroupedParameters:
    """Parameters that are trained alike.

    Attributes:
        names: canonical, in the order of the model.
        spec: the optimizer that they follow, without groups and with this group's weight decay.
        learning_rate_factor: what the rate of an update is multiplied by.
        frozen: whether they are left as they are.
    """

    names: tuple[str, ...]
    spec: Optimizer
    learning_rate_factor: float = 1.0
    frozen: bool = False


def resolve_groups(spec: Optimizer, shapes: Shapes) -> tuple[GroupedParameters, ...]:
    """Divide parameters into groups: those that no group matches first, then group by group.

    Args:
        spec: an optimizer.
        shapes: the canonical shape of every parameter by canonical name.

    Raises:
        ConfigurationError: a group gets no parameter, its function fails, or all are frozen.

    >>> from multibackend.optimizers import SGD
    >>> sgd = SGD(learning_rate=1.0, weight_decay=0.1, groups=[Group(is_vector, weight_decay=0.0)])
    >>> groups = resolve_groups(sgd, {"weight": (2, 3), "bias": (2,)})
    >>> [(group.names, group.spec.weight_decay) for group in groups]
    [(('weight',), 0.1), (('bias',), 0.0)]
    """
    problems = Problems(type(spec).__name__)
    owners = _owners(spec.groups, shapes, problems)
    if shapes and all(index is not None and spec.groups[index].frozen for index in owners.values()):
        problems.add("every parameter is frozen, so there is nothing to train")
    spec.check_shapes(problems, shapes)
    problems.raise_if_any()
    plain = replace(spec, groups=()) if spec.groups else spec
    rest = {name: shape for name, shape in shapes.items() if owners[name] is None}
    # Where groups take every parameter, the rest would be split into a group of none.
    parts = plain.split(rest) if rest else []
    resolved = [GroupedParameters(names, part) for names, part in parts]
    for index, group in enumerate(spec.groups):
        members = {name: shape for name, shape in shapes.items() if owners[name] == index}
        changed: Any = plain if group.weight_decay is None else replace(plain, weight_decay=group.weight_decay)
        # Frozen parameters stay together: there is no update whose definition could differ.
        parts = [(tuple(members), changed)] if group.frozen else changed.split(members)
        factor = float(group.learning_rate_factor)
        resolved += [GroupedParameters(names, part, factor, group.frozen) for names, part in parts]
    return tuple(resolved)


def _owners(groups: Sequence[Group], shapes: Shapes, problems: Problems) -> dict[str, int | None]:
    """Find for each parameter the index of the first group that matches it; None where none does."""
    matches = [_matched(group, index, shapes, problems) for index, group in enumerate(groups)]
    owners: dict[str, int | None] = dict.fromkeys(shapes)
    for index, (group, matched) in enumerate(zip(groups, matches, strict=True)):
        free = [name for name in shapes if name in matched and owners[name] is None]
        owners.update(dict.fromkeys(free, index))
        if matched and not free:
            problems.add(
                f"groups[{index}] ({_label(group)}) matches only parameters that an earlier group "
                f"has taken, such as {min(matched)!r}; the first group that matches wins, so put the "
                "narrower one first"
            )
    return owners


def frozen_names(groups: Iterable[GroupedParameters]) -> frozenset[str]:
    """Return the names of all frozen parameters."""
    return frozenset(name for group in groups if group.frozen for name in group.names)


def with_zeros(
    slots: Mapping[str, Mapping[str, np.ndarray]], parameters: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Add zeros to a snapshot's optimizer slots for the parameters `names`, which are frozen."""
    frozen = {name: np.zeros_like(parameters[name]) for name in names}
    return {slot: {**frozen, **arrays} for slot, arrays in slots.items()}


def _matched(group: Group, index: int, shapes: Shapes, problems: Problems) -> set[str]:
    """Find the names that a group matches; add a problem where there are none or its function fails."""
    try:
        matched = {name for name, shape in shapes.items() if group.matches(name, tuple(shape))}
    except Exception as error:  # the user's own function, whatever it raises
        called = f"groups[{index}]: where ({_label(group)}), a function (name, shape) -> bool,"
        problems.add(f"{called} raised {type(error).__name__}: {error}")
        return set()
    if not matched:
        problems.add(f"groups[{index}] ({_label(group)}) matches no parameter{_nearest(group, tuple(shapes))}")
    return matched


def _nearest(group: Group, names: Sequence[str]) -> str:
    nearest: list[str] = []
    if isinstance(group.where, str):
        # Without its stars, which are like no letter of a name and would count as differences.
        pattern = group.where.replace("*", "")
        nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    if nearest:
        return f"; the nearest are {', '.join(nearest)}"
    more = ", ..." if len(names) > 5 else ""
    return f"; there are {', '.join(names[:5])}{more}"


def _label(group: Group) -> str:
    return repr(group.where) if isinstance(group.where, str) else getattr(group.where, "__name__", repr(group.where))
