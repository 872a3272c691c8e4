"""What every optimizer has: a learning rate, and groups of parameters that differ from the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from multibackend.core.names import glob_matches
from multibackend.core.validation import Problems
from multibackend.schedules import LearningRate, check_learning_rate

__all__ = ["Group", "Optimizer", "Where", "is_rule", "is_vector"]

Where = Callable[[str, tuple[int, ...]], bool] | str


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a parameter has at most one axis: a bias, a norm's scale. For `Group(is_vector)`.

    >>> is_vector("0.bias", (10,)), is_vector("0.weight", (10, 4))
    (True, False)
    """
    return len(shape) <= 1


@dataclass(frozen=True)
class Group:
    """Parameters that are trained otherwise than the rest. The first group that matches wins.

    Args:
        where: which parameters: a function `(name, shape) -> bool` of the canonical name and the
            canonical shape, or a pattern for the whole name (`fnmatch`), in which * stands for any
            characters, also dots. Style does not count: "layers.0.*" matches `layers_0.weight` too.
        learning_rate_factor: what the schedule's rate, which the history has, is multiplied
            by; >= 0.
        weight_decay: in place of the optimizer's own; None keeps that.
        frozen: the parameters stay as they are: no update, no decay, no gradient is computed for
            them, they do not count in the global norm, and they have no optimizer state (a snapshot
            holds zeros for them). They keep taking part in the model.

    Raises:
        ConfigurationError: an argument is wrong. A group that turns out to match nothing is
            reported when the model is built, with the nearest names.

    >>> groups = [Group(is_vector, weight_decay=0.0), Group("head.*", frozen=True)]
    >>> AdamW(learning_rate=1e-3, groups=groups)  # doctest: +SKIP
    """

    where: Where
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        problems = Problems("Group")
        if not is_rule(self.where):
            what = "a function (name, shape) -> bool or a pattern such as '*.bias'"
            problems.add(f"where must be {what}, got {self.where!r}", wrong_type=True)
        problems.number("learning_rate_factor", self.learning_rate_factor, minimum=0.0)
        if self.weight_decay is not None:
            problems.number("weight_decay", self.weight_decay, minimum=0.0)
        changed = self.weight_decay is not None or self.learning_rate_factor != 1.0
        if problems.boolean("frozen", self.frozen) and self.frozen and changed:
            problems.add("frozen=True leaves nothing to decay or to scale; drop the group's other arguments")
        problems.raise_if_any()

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a parameter is in this group; TypeError if a function's answer is no bool."""
        if isinstance(self.where, str):
            return glob_matches(name, self.where)
        answer = self.where(name, shape)
        # A forgotten `return` gives None, a forgotten comparison a match or a list: as truth values
        # they would choose parameters by accident. numpy's class of bools is "bool" or "bool_".
        if type(answer).__name__ not in ("bool", "bool_"):
            raise TypeError(f"the function must return True or False, got {answer!r} for {name!r}")
        return bool(answer)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer has.

    Args:
        learning_rate: a number or a function of the update index (0 for the first).
        groups: parameters that are trained otherwise than the rest, see `Group`.
    """

    learning_rate: LearningRate
    groups: Sequence[Group] = ()

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        check_learning_rate(problems, self.learning_rate)
        self._check_groups(problems)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a subclass's own arguments."""

    def check_shapes(self, problems: Problems, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Add the problems that this optimizer has with a model's parameters, by canonical name."""

    def split(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[tuple[str, ...], Optimizer]]:
        """Split parameters by the optimizer that they follow: this one, unless a subclass differs."""
        return [(tuple(shapes), self)]

    def _check_groups(self, problems: Problems) -> None:
        groups: Any = self.groups
        if isinstance(groups, Group):
            groups = (groups,)
        if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
            problems.add(f"groups must be a sequence of multibackend.optimizers.Group, got {groups!r}", wrong_type=True)
            return
        # A list of the caller's could change later, and a frozen dataclass has no other way to set.
        object.__setattr__(self, "groups", tuple(groups))
        # By its fields: `Native` has no weight_decay, its decay is the builder's affair.
        decays = any(field.name == "weight_decay" for field in fields(self))
        if not decays and any(group.weight_decay is not None for group in groups):
            kind = type(self).__name__
            problems.add(f"a group sets weight_decay, but {kind} has none; drop it from the group")


def is_rule(rule: object) -> bool:
    """Tell whether `rule` can choose parameters: a function, or a pattern that is not empty."""
    return callable(rule) or (isinstance(rule, str) and rule != "")


def check_betas(problems: Problems, optimizer: Any, *names: str) -> None:
    """Add a problem for each decay rate that is not in [0, 1)."""
    for name in names:
        problems.number(name, getattr(optimizer, name), minimum=0.0, below=1.0)


def check_decay_and_eps(problems: Problems, optimizer: Any) -> None:
    """Add a problem for a weight decay < 0 and an eps <= 0."""
    problems.number("weight_decay", optimizer.weight_decay, minimum=0.0)
    if hasattr(optimizer, "eps"):
        problems.number("eps", optimizer.eps, minimum=0.0, above_minimum=True)
