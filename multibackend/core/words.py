"""Durations and the ends of runs in words."""

from __future__ import annotations

import math

from multibackend.core.history import UpdateRecord

__all__ = ["clock", "duration", "ending", "made_updates"]


def clock(seconds: float) -> str:
    """Write a duration in hours, minutes and seconds.

    >>> clock(65.4)
    '0:01:05'
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def duration(seconds: float) -> str:
    """Write a duration in seconds, a long one in hours, minutes and seconds.

    >>> duration(3.21), duration(75)
    ('3.2 s', '0:01:15')
    """
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def made_updates(first: UpdateRecord, last: UpdateRecord) -> str:
    """Say which updates were made, and the loss from and to."""
    if first.update > 1:
        made = f"updates {first.update} to {last.update}"
    else:
        made = f"{last.update} update{'' if last.update == 1 else 's'}"
    return f"{made}, loss {first.loss:.4f} to {last.loss:.4f}"


def ending(made: str, seconds: float, saved: object, stopped: str | None) -> str:
    """Say in one line what was made, the time, where it is saved, and why it was stopped.

    >>> ending("nothing to do", 0.0, None, None)
    'nothing to do, 0.0 s'
    """
    sentence = f"{made}, {duration(seconds)}"
    if saved is not None:
        sentence += f", saved in {saved}"
    if stopped is not None:
        sentence += f"; stopped: {stopped}"
    return sentence
