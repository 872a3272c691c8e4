"""Learning rates as pure functions of the update index.

A schedule is called on the host with the index of an update, 0 for the first, and returns a Python
float in float64. Both backends are handed that number, so they cannot differ, and no schedule ever
causes a recompilation. Any function `int -> float` may stand where a schedule is accepted. Past its
horizon a schedule stays at its last value.

>>> schedule = WarmupCosine(peak=1.0, warmup=10, total=110)
>>> [round(schedule(update), 3) for update in (0, 5, 10, 60, 110, 500)]
[0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from multibackend.core.user_code import name_of, user_code
from multibackend.core.validation import Problems, is_real, shown
from multibackend.errors import ConfigurationError, UserCodeError

__all__ = [
    "LR_SCALINGS",
    "BatchScaled",
    "Constant",
    "Cosine",
    "Finite",
    "LearningRate",
    "LinearWarmup",
    "Polynomial",
    "RateTable",
    "Schedule",
    "Step",
    "WarmupCosine",
    "WarmupStableDecay",
    "learning_rate_at",
]

Schedule = Callable[[int], float]
LearningRate = float | Schedule
LR_SCALINGS = ("linear", "sqrt")


@runtime_checkable
class Finite(Protocol):
    """A schedule that tells its length; a function of the user's may have the attribute as well."""

    @property
    def length(self) -> int | None:
        """The update index from which on the rate stays as it is; None where it has none."""
        ...

    def __call__(self, update: int, /) -> float: ...


def learning_rate_at(learning_rate: LearningRate, update: int) -> float:
    """Return the learning rate of the update with that index, checked to be finite and >= 0."""
    if not callable(learning_rate):
        return float(learning_rate)
    with user_code(
        f"the learning_rate{name_of(learning_rate)} of update {update + 1}, a function of the update's index,"
    ):
        value = learning_rate(update)
    # compared, not converted: an integer may be beyond the largest float
    if not is_real(value) or not 0 <= value <= sys.float_info.max:
        problem = "learning_rate: the schedule must return a finite number >= 0"
        raise ConfigurationError("learning_rate", [f"{problem}, got {shown(value)} for update index {update}"])
    return float(value)


class RateTable:
    """The values of a learning rate by update index, each computed once.

    A run asks for ever later ones. Those before the first that was asked for last are forgotten, so
    that the table does not grow with the run; where a run goes back, they are computed anew.

    >>> RateTable(Step(initial=1.0, boundaries={1: 0.5})).between(0, 3).tolist()
    [1.0, 0.5, 0.5]
    """

    def __init__(self, learning_rate: LearningRate) -> None:
        self._learning_rate = learning_rate
        self._first = 0  # the update of the first value that is kept
        self._values: list[float] = []

    def between(self, first: int, stop: int) -> np.ndarray:
        """Return float64 [stop - first], the rates of the updates first, first + 1, ..., stop - 1."""
        if not callable(self._learning_rate):
            return np.full(stop - first, float(self._learning_rate))
        # A user's function may keep a state: called once for each update, in order, it gives the
        # device and the history the same rate.
        if first < self._first:
            self._first = first
            self._values = []
        for update in range(self._first + len(self._values), stop):
            self._values.append(learning_rate_at(self._learning_rate, update))
        del self._values[: first - self._first]
        self._first = first
        return np.array(self._values[: stop - first])


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A schedule whose arguments are checked when it is made, all problems together."""

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a schedule's own arguments."""

    def _check_rates(self, problems: Problems, *names: str) -> None:
        for name in names:
            problems.number(name, getattr(self, name), minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class BatchScaled(_Checked):
    """lr(u) = learning_rate(u) * r, r = examples(u) / base ("linear") or its root ("sqrt").

    The rule of `Experiment(lr_scaling=..., base_batch_size=...)`, which builds it with the examples
    of a full window. Linear: Goyal et al. 2017. The root suits Adam's kin (Malladi et al. 2022).

    Args:
        learning_rate: a number or a schedule, tuned for updates of `base` examples.
        scaling: "linear" or "sqrt".
        base: examples, > 0.
        examples: the number of examples of the update with index u.

    >>> BatchScaled(learning_rate=0.1, scaling="linear", base=32, examples=lambda update: 128)(0)
    0.4
    """

    learning_rate: LearningRate
    scaling: str
    base: int
    examples: Callable[[int], int]

    def _check(self, problems: Problems) -> None:
        check_learning_rate(problems, self.learning_rate)
        problems.choice("scaling", self.scaling, LR_SCALINGS)
        problems.integer("base", self.base, minimum=1)

    @property
    def length(self) -> int | None:
        return self.learning_rate.length if isinstance(self.learning_rate, Finite) else None

    def __call__(self, update: int) -> float:
        ratio = self.examples(update) / int(self.base)
        if self.scaling == "sqrt":
            ratio = math.sqrt(ratio)
        return learning_rate_at(self.learning_rate, update) * ratio


def _progress(update: int, start: int, end: int) -> float:
    """Return how far `update` is from `start` to `end`, within [0, 1]."""
    return min(max((update - start) / (end - start), 0.0), 1.0)


def _half_cosine(peak: float, final: float, progress: float) -> float:
    """Return the value on half a cosine from `peak` at progress 0 to `final` at progress 1."""
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class Constant(_Checked):
    """lr(u) = value."""

    value: float

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "value")

    def __call__(self, update: int) -> float:
        return float(self.value)


@dataclass(frozen=True, kw_only=True)
class LinearWarmup(_Checked):
    """lr(u) = start + (peak - start) * min(u / warmup, 1): linear to `peak`, which then stays.

    As `optax.linear_schedule(start, peak, warmup)` and transformers' `constant_with_warmup`.
    """

    peak: float
    warmup: int
    start: float = 0.0

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "peak", "start")
        problems.integer("warmup", self.warmup, minimum=1)

    @property
    def length(self) -> int | None:
        return int(self.warmup)

    def __call__(self, update: int) -> float:
        return self.start + (self.peak - self.start) * _progress(update, 0, self.warmup)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Checked):
    """lr(u) = final + (peak - final) * (1 + cos(pi * min(u / total, 1))) / 2.

    Half a cosine from `peak` to `final` over `total` updates (Loshchilov & Hutter 2017, without
    restarts). After `total` it stays at `final`; torch's `CosineAnnealingLR` would rise again.
    """

    peak: float
    total: int
    final: float = 0.0

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "peak", "final")
        problems.integer("total", self.total, minimum=1)

    @property
    def length(self) -> int | None:
        return int(self.total)

    def __call__(self, update: int) -> float:
        return _half_cosine(self.peak, self.final, _progress(update, 0, self.total))


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(_Checked):
    """Linear from `start` to `peak` over `warmup` updates, then half a cosine to `final` at `total`.

    The same as `optax.warmup_cosine_decay_schedule(start, peak, warmup, total, final)`: `total`
    includes the warm-up, and `lr(warmup) == peak`.
    """

    peak: float
    warmup: int
    total: int
    final: float = 0.0
    start: float = 0.0

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "peak", "final", "start")
        warmup_valid = problems.integer("warmup", self.warmup, minimum=0)
        total_valid = problems.integer("total", self.total, minimum=1)
        if warmup_valid and total_valid and self.warmup >= self.total:
            problems.add(f"warmup must be less than total, got warmup={self.warmup} and total={self.total}")

    @property
    def length(self) -> int | None:
        return int(self.total)

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return self.start + (self.peak - self.start) * update / self.warmup
        return _half_cosine(self.peak, self.final, _progress(update, self.warmup, self.total))


@dataclass(frozen=True, kw_only=True)
class Polynomial(_Checked):
    """lr(u) = final + (peak - final) * (1 - min(u / total, 1)) ** power; linear by default."""

    peak: float
    total: int
    power: float = 1.0
    final: float = 0.0

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "peak", "final")
        problems.number("power", self.power, minimum=0.0, above_minimum=True)
        problems.integer("total", self.total, minimum=1)

    @property
    def length(self) -> int | None:
        return int(self.total)

    def __call__(self, update: int) -> float:
        left = 1 - _progress(update, 0, self.total)
        return self.final + (self.peak - self.final) * left**self.power


@dataclass(frozen=True, kw_only=True)
class Step(_Checked):
    """`initial`, multiplied by each factor of `boundaries` once its update index is reached.

    >>> schedule = Step(initial=1.0, boundaries={100: 0.1, 200: 0.5})
    >>> schedule(99), schedule(100), schedule(200)
    (1.0, 0.1, 0.05)
    """

    initial: float
    boundaries: Mapping[int, float] = field(default_factory=dict)

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "initial")
        if not isinstance(self.boundaries, Mapping):
            problems.add(f"boundaries must map update indices to factors, got {self.boundaries!r}", wrong_type=True)
            return
        for update, factor in self.boundaries.items():
            problems.integer(f"boundaries: the update index {update!r}", update, minimum=0)
            problems.number(f"boundaries[{update!r}]", factor, minimum=0.0)

    @property
    def length(self) -> int | None:
        return max(self.boundaries, default=0)

    def __call__(self, update: int) -> float:
        factors = (factor for boundary, factor in self.boundaries.items() if update >= boundary)
        return math.prod(factors, start=float(self.initial))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_Checked):
    """Linear warm-up, `peak` kept, then linear decay to `final` over the last `decay` updates.

    The trapezoid of Hu et al. 2024 (MiniCPM) and Hägele et al. 2024, with their linear cool-down.
    """

    peak: float
    warmup: int
    decay: int
    total: int
    final: float = 0.0
    start: float = 0.0

    def _check(self, problems: Problems) -> None:
        self._check_rates(problems, "peak", "final", "start")
        valid = [
            problems.integer("warmup", self.warmup, minimum=0),
            problems.integer("decay", self.decay, minimum=0),
            problems.integer("total", self.total, minimum=1),
        ]
        if all(valid) and self.warmup + self.decay > self.total:
            problems.add(f"warmup + decay must be at most total, got {self.warmup} + {self.decay} > {self.total}")

    @property
    def length(self) -> int | None:
        return int(self.total)

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return self.start + (self.peak - self.start) * update / self.warmup
        if self.decay == 0:  # no interval to be divided by
            return float(self.peak)
        progress = _progress(update, self.total - self.decay, self.total)
        return self.peak + (self.final - self.peak) * progress


def check_learning_rate(problems: Problems, learning_rate: Any) -> None:
    """Add a problem unless `learning_rate` is a finite number >= 0 or a function of the index."""
    if is_real(learning_rate):
        problems.number("learning_rate", learning_rate, minimum=0.0)
        return
    if not callable(learning_rate):
        what = "learning_rate must be a finite number >= 0 or a function of the update index"
        problems.add(f"{what}, got {learning_rate!r}", wrong_type=True)
        return
    # Tried at index 0, so that a wrong schedule fails where it was written, not at the
    # first update.
    try:
        learning_rate_at(cast(Schedule, learning_rate), 0)
    except ConfigurationError as error:
        for sentence in error.problems:
            problems.add(sentence)
    except UserCodeError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        # a class that was not called, or a function of more arguments
        what = "learning_rate must be a function of the update index alone"
        problems.add(f"{what}, got {shown(learning_rate)}: {error.__cause__}", wrong_type=True)
