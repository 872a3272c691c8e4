"""Which parameter belongs to which group, once for every backend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
        spec: the law that they follow, without groups and with this group's weight decay.
        learning_rate_factor: what the rate of an update is multiplied by.
        frozen: whether they are left as they are.
    """

    names: tuple[str, ...]
    spec: Optimizer
    learning_rate_factor: float = 1.0
    frozen: bool = False


def resolve_groups(spec: Optimizer, shapes: Shapes) -> tuple[GroupedParameters, ...]:
    """The parameters by group: those that no group matches first, then group by group.

    Args:
        spec: an optimizer.
        shapes: the canonical shape of every parameter by canonical name.

    Raises:
        ConfigurationError: a group gets no parameter, its function fails, or every parameter is frozen.

    >>> from multibackend.optimizers import SGD
    >>> sgd = SGD(learning_rate=1.0, weight_decay=0.1, groups=[Group(is_vector, weight_decay=0.0)])
    >>> [(g.names, g.spec.weight_decay) for g in resolve_groups(sgd, {"weight": (2, 3), "bias": (2,)})]
    [(('weight',), 0.1), (('bias',), 0.0)]
    """
    problems = Problems(type(spec).__name__)
    matches = [_matched(group, index, shapes, problems) for index, group in enumerate(spec.groups)]
    owner = {name: next((i for i, names in enumerate(matches) if name in names), None) for name in shapes}
    for index, (group, matched) in enumerate(zip(spec.groups, matches, strict=True)):
        if matched and index not in owner.values():
            problems.add(
                f"groups[{index}] ({_label(group)}) matches only parameters that an earlier group has taken, such as "
                f"{sorted(matched)[0]!r}; the first group that matches wins, so put the narrower one first"
            )
    if shapes and all(index is not None and spec.groups[index].frozen for index in owner.values()):
        problems.add("every parameter is frozen, so there is nothing to train")
    spec.check_shapes(problems, shapes)
    problems.raise_if_any()
    plain = replace(spec, groups=()) if spec.groups else spec
    rest = tuple(name for name in shapes if owner[name] is None)
    parts = plain.split({name: shapes[name] for name in rest}) if rest else []
    resolved = [GroupedParameters(names, part) for names, part in parts]
    for index, group in enumerate(spec.groups):
        own = {name: shapes[name] for name in shapes if owner[name] == index}
        changed = plain if group.weight_decay is None else _with_decay(plain, group.weight_decay)
        parts = [(tuple(own), changed)] if group.frozen else changed.split(own)
        factor = float(group.learning_rate_factor)
        resolved += [GroupedParameters(names, part, factor, group.frozen) for names, part in parts]
    return tuple(resolved)


def frozen_names(groups: Iterable[GroupedParameters]) -> frozenset[str]:
    """The names of all frozen parameters."""
    return frozenset(name for group in groups if group.frozen for name in group.names)


def with_zeros(
    slots: Mapping[str, Mapping[str, np.ndarray]], parameters: Mapping[str, np.ndarray], names: Iterable[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Optimizer slots for a snapshot: zeros for the parameters `names`, which are frozen and have none."""
    frozen = {name: np.zeros_like(parameters[name]) for name in names}
    return {slot: {**frozen, **arrays} for slot, arrays in slots.items()}


def _with_decay(spec: Any, weight_decay: float) -> Any:
    assert any(field.name == "weight_decay" for field in fields(spec))
    return replace(spec, weight_decay=weight_decay)


def _matched(group: Group, index: int, shapes: Shapes, problems: Problems) -> set[str]:
    """The names that a group matches; a problem where there are none or its function fails."""
    try:
        matched = {name for name, shape in shapes.items() if group.matches(name, tuple(shape))}
    except Exception as error:  # the user's own function, whatever it raises
        problems.add(f"groups[{index}] ({_label(group)}): {type(error).__name__}: {error}")
        return set()
    if not matched:
        problems.add(f"groups[{index}] ({_label(group)}) matches no parameter{_nearest(group, tuple(shapes))}")
    return matched


def _nearest(group: Group, names: Sequence[str]) -> str:
    near: list[str] = []
    if isinstance(group.where, str):
        near = difflib.get_close_matches(group.where.replace("*", ""), names, n=3, cutoff=0.3)
    shown = ", ".join(near or names[:5])
    return f"; {'the nearest are' if near else 'there are'} {shown}{'' if near or len(names) <= 5 else ', ...'}"


def _label(group: Group) -> str:
    return repr(group.where) if isinstance(group.where, str) else getattr(group.where, "__name__", repr(group.where))
