"""SIGTERM and Ctrl-C during a run that is saved: the window is finished and saved first."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multibackend.errors import Interrupted, KeyboardInterrupted

__all__ = ["RUN_FILE", "SignalHandler"]

RUN_FILE = "run.json"  # with which the command line remembers how a run was started


class SignalHandler:
    """Within it the first signal asks the run to stop, and a second one ends the process at once.

    Handlers are set in the main thread only, in place of Python's own only, and put back
    afterwards.

    Args:
        ask: called with the signal's name.
        active: whether to do anything.

    Attributes:
        caught: the signal that came, if one did.
    """

    def __init__(self, ask: Callable[[str], None], *, active: bool) -> None:
        self._ask = ask
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}
        self.caught: signal.Signals | None = None

    def __enter__(self) -> SignalHandler:
        if not self._active:
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = handler
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self, run_dir: Path, update: int, backend: str) -> None:
        """Where a signal came: say how to go on, and raise `Interrupted`, after Ctrl-C `KeyboardInterrupted`."""
        if self.caught is None:
            return
        if (run_dir / RUN_FILE).exists():  # a run of the command line
            way = f"multibackend resume {shlex.quote(os.fspath(run_dir))}"
        else:
            options = f'run_dir={os.fspath(run_dir)!r}, resume="auto"'
            way = f'Trainer(experiment, "{backend}", {options}), and fit as before'
        is_typed = self.caught is signal.SIGINT
        name = "Ctrl-C" if is_typed else self.caught.name
        message = f"{name}: the run is saved after update {update} in {run_dir}. To go on:\n  {way}"
        print(message, file=sys.stderr)
        kind = KeyboardInterrupted if is_typed else Interrupted
        raise kind(message, 128 + int(self.caught))

    def _handle(self, number: int, frame: object) -> None:
        self.caught = signal.Signals(number)
        for watched in self._before:
            signal.signal(watched, signal.SIG_DFL)  # even while the framework computes
        self._ask(self.caught.name)
