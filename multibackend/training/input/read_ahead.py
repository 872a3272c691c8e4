"""One read in the background, while the device is busy with what was read before."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ReadAhead"]


@dataclass
class _Read:
    key: Hashable
    function: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.value = self.function()
        except BaseException as error:  # raised again where the result is claimed
            self.error = error
        finally:
            self.done.set()


class ReadAhead:
    """At most one read is under way or waits to be claimed.

    The thread starts with the first and ends with `end_thread`.
    """

    def __init__(self) -> None:
        self._read: _Read | None = None
        self._jobs: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, key: Hashable, function: Callable[[], Any]) -> None:
        """Begin a read; what was not claimed is forgotten."""
        self._wait()
        if self._thread is None:
            # a daemon, so that a source that blocks for ever does not keep the process from ending
            self._thread = threading.Thread(target=self._work, args=(self._jobs,), name="read ahead", daemon=True)
            self._thread.start()
        self._read = _Read(key, function)
        self._jobs.put(self._read)

    def claim(self, key: Hashable) -> Any:
        """What the read of this key gave, or raised; None if another one or none was begun.

        No read is under way afterwards.
        """
        self._wait()
        read = self._read
        self._read = None
        if read is None or read.key != key:
            return None
        if read.error is not None:
            raise read.error
        return read.value

    def end_thread(self) -> None:
        """End the thread, after the read that is under way; its result stays to be claimed."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _wait(self) -> None:
        if self._read is not None:
            self._read.done.wait()

    @staticmethod
    def _work(jobs: queue.SimpleQueue[_Read | None]) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            while (read := jobs.get()) is not None:
                read.run()
