"""How many micro-batches make one update.

A number, a mapping from update indices to numbers, a function of the update index, or an effective
batch size from which the number is derived.

>>> Accumulation.parse({0: 8, 1000: 4}, micro_batch_size=2).steps(999)
8
>>> Accumulation.parse(EffectiveBatch(128), micro_batch_size=32).steps(0)
4
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from multibackend.core.user_code import name_of, user_code
from multibackend.core.validation import Problems, is_integer
from multibackend.errors import ConfigurationError

__all__ = ["Accumulation", "AccumulationSteps", "EffectiveBatch"]

_NAME = "gradient_accumulation_steps"


@dataclass(frozen=True)
class EffectiveBatch:
    """As many micro-batches as make `examples` examples, a multiple of the micro-batch size."""

    examples: int

    def __post_init__(self) -> None:
        problems = Problems("EffectiveBatch")
        problems.integer("examples", self.examples, minimum=1)
        problems.raise_if_any()


AccumulationSteps = int | Mapping[int, int] | Callable[[int], int] | EffectiveBatch


@dataclass(frozen=True)
class Accumulation:
    """The parsed form: breakpoints `(first update index, steps)`, or a function of the index.

    `largest` is the most steps any window can have, None where a function decides.
    """

    breakpoints: tuple[tuple[int, int], ...] = ()
    function: Callable[[int], int] | None = None

    @classmethod
    def parse(cls, value: AccumulationSteps, *, micro_batch_size: int) -> Accumulation:
        """Read what a user gave; raise `ConfigurationError`."""
        problems = Problems(_NAME)
        result = cls._parse(value, micro_batch_size, problems)
        problems.raise_if_any()
        return result

    @classmethod
    def _parse(cls, value: Any, micro_batch_size: int, problems: Problems) -> Accumulation:
        if isinstance(value, EffectiveBatch):
            steps, remainder = divmod(int(value.examples), micro_batch_size)
            if remainder:
                # At least one: fewer examples than a micro-batch has are no effective batch either.
                multiple = max(steps, 1) * micro_batch_size
                problems.add(
                    f"EffectiveBatch({value.examples}) is not a multiple of "
                    f"micro_batch_size={micro_batch_size}; use {multiple} or another micro-batch size"
                )
            return cls(breakpoints=((0, steps),))
        if isinstance(value, Mapping):
            return cls(breakpoints=_breakpoints(value, problems))
        if callable(value):
            return cls(function=cast(Callable[[int], int], value))
        problems.integer(_NAME, value, minimum=1)
        return cls(breakpoints=((0, int(value)),)) if is_integer(value) else cls()

    @property
    def constant(self) -> bool:
        """Tell whether all windows have as many micro-batches (but for an epoch's last)."""
        return len(self.breakpoints) == 1

    @property
    def largest(self) -> int | None:
        return None if self.function is not None else max(steps for _, steps in self.breakpoints)

    def steps(self, update: int) -> int:
        """Return the micro-batches of the window that makes the update with index `update`."""
        if self.function is None:
            return next(steps for first, steps in reversed(self.breakpoints) if update >= first)
        # A function is asked anew each time and so checked anew: only its answer at 0
        # was validated.
        with user_code(f"{_NAME}{name_of(self.function)}, which is called with the update index {update},"):
            steps = self.function(update)
        if not is_integer(steps) or steps < 1:
            problem = f"{_NAME}({update}) must return an integer >= 1, got {steps!r}"
            raise ConfigurationError(_NAME, [problem])
        return int(steps)


def _breakpoints(value: Mapping[Any, Any], problems: Problems) -> tuple[tuple[int, int], ...]:
    valid = True
    for update, steps in value.items():
        valid &= problems.integer(f"{_NAME}: the update index {update!r}", update, minimum=0)
        valid &= problems.integer(f"{_NAME}[{update!r}]", steps, minimum=1)
    if not valid:
        return ()
    if 0 not in value:
        problems.add(f"{_NAME} must say how many micro-batches update 0 has; add the key 0, got {dict(value)!r}")
    # Sorted: a mapping may list its updates in any order, and `steps` looks from the last one back.
    return tuple(sorted((int(update), int(steps)) for update, steps in value.items()))
