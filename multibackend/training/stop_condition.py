"""Where a run ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from multibackend.core.validation import Problems

__all__ = ["StopCondition"]


@dataclass(frozen=True)
class StopCondition:
    """Where a run ends, counted from its beginning.

    One of the three is given, or more where the nearest counts.
    """

    updates: int | None = None
    epochs: int | None = None
    micro_batches: int | None = None

    @classmethod
    def checked(cls, problems: Problems, *, updates: Any, epochs: Any, micro_batches: Any) -> StopCondition:
        """Take what `fit` was given, entering what is wrong with it: call `raise_if_any` first."""
        values = {"updates": updates, "epochs": epochs, "micro_batches": micro_batches}
        given = {name: value for name, value in values.items() if value is not None}
        if len(given) != 1:
            problem = f"got updates={updates!r} and epochs={epochs!r}"
            if micro_batches is not None:
                problem += f" and micro_batches={micro_batches!r}"
            problems.add(f"give either updates= or epochs= (or micro_batches=), {problem}")
        limits = {}
        for name, value in given.items():
            if problems.integer(name, value, minimum=0):
                limits[name] = int(value)
        return cls(**limits)

    def before(self, *, updates: float = math.inf, micro_batches: float = math.inf) -> StopCondition:
        """This condition, or an earlier point on the way to it."""
        nearest = _least(self.micro_batches, micro_batches)
        # epochs stay as they are: the loop asks the feed where one ends
        return StopCondition(_least(self.updates, updates), self.epochs, nearest)

    def planned_updates(self, windows_per_epoch: int | None, steps: int) -> int | None:
        """The update at which the run ends: an estimate unless updates decide.

        Args:
            windows_per_epoch: None where the length of an epoch is unknown, and so is the answer
                where it decides.
            steps: micro-batches of an update.
        """
        if self.updates is not None:
            return self.updates
        if self.micro_batches is not None:
            return self.micro_batches // steps
        if windows_per_epoch is None or self.epochs is None:
            return None
        return self.epochs * windows_per_epoch


def _least(limit: int | None, point: float) -> int | None:
    if math.isinf(point) or (limit is not None and limit <= point):
        return limit
    return int(point)
