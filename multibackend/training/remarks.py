"""What is said at the beginning of a call of `fit` because whoever called it may not expect it."""

from __future__ import annotations

from multibackend.schedules import Finite, LearningRate, learning_rate_at
from multibackend.training.stop_condition import StopCondition

__all__ = ["nothing_to_do", "schedule_cut_off"]


def nothing_to_do(stop: StopCondition, *, updates: int, epochs: int, micro_batches: int) -> str:
    """Say that the run has come to its end already, and which call goes on.

    Args:
        stop: where the call ends.
        updates, epochs, micro_batches: where the run stands.

    >>> nothing_to_do(StopCondition(updates=8), updates=8, epochs=1, micro_batches=16)
    "nothing to do: the run already stands at update 8, and fit(updates=8) counts from the run's beginning; \
fit(updates=16) goes on"
    """
    if stop.epochs is not None:
        name, limit, reached, place = "epochs", stop.epochs, epochs, f"has {epochs} epochs behind it"
    elif stop.micro_batches is not None:
        name, limit, reached = "micro_batches", stop.micro_batches, micro_batches
        place = f"has {micro_batches} micro-batches behind it"
    else:
        name, limit, reached, place = "updates", stop.updates or 0, updates, f"stands at update {updates}"
    return (
        f"nothing to do: the run already {place}, and fit({name}={limit}) counts from the run's beginning; "
        f"fit({name}={reached + max(limit, 1)}) goes on"
    )


def schedule_cut_off(learning_rate: LearningRate, end: int | None) -> str:
    """Say that a schedule is longer than the run, and at which rate it is cut off; "" where it is not.

    Args:
        learning_rate: a number, a schedule, or a function, which need not tell its length.
        end: the update at which the run ends; None where nobody knows.

    >>> from multibackend.schedules import Cosine
    >>> schedule_cut_off(Cosine(peak=0.1, total=150), end=69)
    'the schedule is 150 updates long, the run ends at 69: the rate ends at 5.7e-02'
    """
    if not end or not isinstance(learning_rate, Finite):
        return ""
    length = learning_rate.length
    if length is None or length <= end:
        return ""
    rate = learning_rate_at(learning_rate, end - 1)
    return f"the schedule is {length} updates long, the run ends at {end}: the rate ends at {rate:.1e}"
