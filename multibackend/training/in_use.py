"""One thread at a time uses a trainer, and one call of `fit`: what else is asked of it meanwhile is refused."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from multibackend.errors import TrainerInUseError

__all__ = ["InUse", "by_one_thread"]

P = ParamSpec("P")
T = TypeVar("T")


class InUse:
    """Whether a trainer is being used, by which thread, and whether that trains.

    The thread that uses it may go on asking: a listener, which runs inside `fit`, reads parameters
    and evaluates. Nobody waits, because whoever waited would find another state than the one it
    asked about.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # held by a thread, as often as it entered
        self._calls: list[str] = []  # of that thread, the outermost first

    @contextlib.contextmanager
    def by(self, call: str) -> Iterator[None]:
        """Use the trainer for a call of one of its methods.

        Raises:
            TrainerInUseError: another thread uses it, or `call` is "fit" and so is one that
                has not returned.
        """
        if not self._lock.acquire(blocking=False):
            raise TrainerInUseError(
                f"{call} was called while another thread is in {self._outermost()} of the same trainer, whose state "
                "would change under both. Nothing was changed. Call it when that has returned, or from a listener "
                "(callbacks=), which runs inside fit; to train at the same time make a second Trainer"
            )
        try:
            if call == "fit" and call in self._calls:
                raise TrainerInUseError(
                    "fit was called inside a call of fit of the same trainer, by a listener. Nothing was changed. "
                    "Call it when the outer one has returned; to train in between make a second Trainer"
                )
            self._calls.append(call)
            try:
                yield
            finally:
                self._calls.pop()
        finally:
            self._lock.release()

    def _outermost(self) -> str:
        # the other thread may be about to return, and then there is none
        return next(iter(self._calls), "another call")


class _HasUse(Protocol):
    in_use: InUse


S = TypeVar("S", bound=_HasUse)


def by_one_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let one thread at a time call the methods that are decorated with this."""

    @functools.wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.in_use.by(method.__name__):
            return method(self, *args, **kwargs)

    return guarded
