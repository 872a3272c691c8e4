"""Where a run ends."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Goal"]


@dataclass(frozen=True)
class Goal:
    """Where a run ends, counted from its beginning; one of the three is given, or more where the nearest counts."""

    updates: int | None = None
    epochs: int | None = None
    micro_batches: int | None = None

    def before(self, *, updates: float | None = None, micro_batches: float | None = None) -> Goal:
        """This goal, or an earlier point on the way to it."""
        return Goal(_least(self.updates, updates), self.epochs, _least(self.micro_batches, micro_batches))


def _least(first: float | None, second: float | None) -> int | None:
    given = [int(value) for value in (first, second) if value is not None and value != float("inf")]
    return min(given, default=None)
