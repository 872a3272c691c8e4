"""What every optimizer has: a learning rate, and groups of parameters that differ from the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from multibackend.core.names import glob_matches
from multibackend.core.validation import Problems
from multibackend.schedules import LearningRate, check_learning_rate

__all__ = ["Group", "Optimizer", "Where", "is_vector"]

Where = Callable[[str, tuple[int, ...]], bool] | str


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a bias, a norm's scale or a single number: at most one axis. For `Group(is_vector)`.

    >>> is_vector("0.bias", (10,)), is_vector("0.weight", (10, 4))
    (True, False)
    """
    return len(shape) <= 1


@dataclass(frozen=True)
class Group:
    """Parameters that are trained otherwise than the rest. The first group that matches a parameter wins.

    Args:
        where: which parameters: a function `(name, shape) -> bool` of the canonical name and the canonical shape, or a
            pattern for the whole name, in which * stands for any characters, also dots (`fnmatch`). Differences of
            style do not count: "layers.0.*" matches `layers_0.weight` too.
        learning_rate_factor: what the schedule's rate is multiplied by; >= 0. The history has the rate without it.
        weight_decay: in place of the optimizer's own; None keeps that.
        frozen: the parameters stay as they are: no update, no decay, no gradient is computed for them, they do not
            count in the global norm, and they have no optimizer state (a snapshot holds zeros for them). They keep
            taking part in the model.

    Raises:
        ConfigurationError: an argument is wrong. A group that turns out to match nothing is reported when the model is
            built, with the nearest names.

    >>> AdamW(learning_rate=1e-3, groups=[Group(is_vector, weight_decay=0.0), Group("head.*", frozen=True)])
    ... # doctest: +SKIP
    """

    where: Where
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        problems = Problems("Group")
        if not callable(self.where) and not (isinstance(self.where, str) and self.where):
            problems.add(
                f"where must be a function (name, shape) -> bool or a pattern such as '*.bias', got {self.where!r}",
                wrong_type=True,
            )
        problems.number("learning_rate_factor", self.learning_rate_factor, minimum=0.0)
        if self.weight_decay is not None:
            problems.number("weight_decay", self.weight_decay, minimum=0.0)
        changed = self.weight_decay is not None or self.learning_rate_factor != 1.0
        if problems.boolean("frozen", self.frozen) and self.frozen and changed:
            problems.add("frozen=True leaves nothing to decay or to scale; drop the group's other arguments")
        problems.raise_if_any()

    def matches(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a parameter belongs to this group; a function's answer must be a bool, else TypeError."""
        if isinstance(self.where, str):
            return glob_matches(name, self.where)
        answer = self.where(name, shape)
        if answer is not True and answer is not False and type(answer).__name__ not in ("bool", "bool_"):
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
        """Add the problems that this optimizer has with the parameters of a model, by canonical name and shape."""

    def split(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[tuple[str, ...], Optimizer]]:
        """The parameters by the law that they follow: one for all, unless a subclass has several."""
        return [(tuple(shapes), self)]

    def _check_groups(self, problems: Problems) -> None:
        given: Any = (self.groups,) if isinstance(self.groups, Group) else self.groups
        if not isinstance(given, Sequence) or not all(isinstance(group, Group) for group in given):
            problems.add(f"groups must be a sequence of multibackend.optimizers.Group, got {given!r}", wrong_type=True)
            return
        object.__setattr__(self, "groups", tuple(given))
        decays = any(field.name == "weight_decay" for field in fields(self))
        if not decays and any(group.weight_decay is not None for group in given):
            problems.add(f"a group sets weight_decay, but {type(self).__name__} has none; drop it from the group")


def check_betas(problems: Problems, optimizer: Any, *names: str) -> None:
    """Add a problem for each decay rate that is not in [0, 1)."""
    for name in names:
        problems.number(name, getattr(optimizer, name), minimum=0.0, below=1.0)


def check_decay_and_eps(problems: Problems, optimizer: Any) -> None:
    """Add a problem for a weight decay < 0 and an eps <= 0."""
    problems.number("weight_decay", optimizer.weight_decay, minimum=0.0)
    if hasattr(optimizer, "eps"):
        problems.number("eps", optimizer.eps, minimum=0.0, above_minimum=True)
