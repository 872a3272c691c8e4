"""Where a run ends."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StopCondition"]


@dataclass(frozen=True)
class StopCondition:
    """Where a run ends, counted from its beginning; one of the three is given, or more where the nearest counts."""

    updates: int | None = None
    epochs: int | None = None
    micro_batches: int | None = None

    def before(self, *, updates: float | None = None, micro_batches: float | None = None) -> StopCondition:
        """This goal, or an earlier point on the way to it."""
        return StopCondition(_least(self.updates, updates), self.epochs, _least(self.micro_batches, micro_batches))

    def planned(self, per_epoch: int | None, steps: int) -> int | None:
        """The update at which the run ends, from the updates of an epoch and the micro-batches of an update: an
        estimate unless updates decide. None where the length of an epoch is unknown.
        """
        if self.updates is not None:
            return self.updates
        if self.micro_batches is not None:
            return self.micro_batches // steps
        return None if per_epoch is None else (self.epochs or 0) * per_epoch


def _least(first: float | None, second: float | None) -> int | None:
    given = [int(value) for value in (first, second) if value is not None and value != float("inf")]
    return min(given, default=None)
