"""Each contender in a process of its own, so that none runs with what another has set.

A process-wide setting of one contender, such as what the allocator keeps, otherwise speeds all of them up or down.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import multibackend as mb
from benchmarks.timing import OURS, Contender
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["RemoteContender", "local_contenders", "ours", "remote_contenders"]


class RemoteContender:
    """A contender that waits in its own process; see `Contender`."""

    def __init__(self, workload: str, framework: str, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(workload, framework, name, other), daemon=True)
        self._process.start()
        other.close()
        self.name = name
        self.granularity, self.details = self._answer()

    def seconds(self, updates: int) -> float:
        """How long so many more updates take, measured there."""
        self._pipe.send(updates)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name} ended; its error stands above") from None


@contextlib.contextmanager
def remote_contenders(workload: Workload, framework: str) -> Iterator[list[RemoteContender]]:
    """This library and the hand-written loops, each in its process."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one GPU
    loops = importlib.import_module(f"benchmarks.{framework}_loops")
    with contextlib.ExitStack() as processes:
        contenders = [RemoteContender(workload.name, framework, name) for name in (OURS, *loops.names(workload))]
        for contender in contenders:
            processes.callback(contender.close)
        yield contenders


def local_contenders(workload: Workload, framework: str) -> list[Contender]:
    """This library and the hand-written loops in this process, all with what this library sets."""
    loops = importlib.import_module(f"benchmarks.{framework}_loops")
    return [ours(workload, framework), *(loops.hand_written(workload, name) for name in loops.names(workload))]


def ours(workload: Workload, framework: str) -> Contender:
    """This library, through its public interface; each call goes on where the last one stopped."""
    trainer = mb.Trainer(workload.experiment(framework), backend=framework)
    made = 0

    def train(updates: int) -> np.ndarray:
        nonlocal made
        made += updates
        return trainer.fit(updates=made, progress=False).history["loss"][-updates:]

    windows = trainer.program.windows_per_dispatch
    details = (
        f"{trainer.program.execution.mode}, {windows} at once" if framework == "jax" else trainer.program.execution.mode
    )
    return Contender(OURS, train, granularity=windows, details=details)


def _serve(workload: str, framework: str, name: str, pipe: Connection) -> None:
    """Build one contender, then time it whenever asked, until told to end."""
    if name == OURS:
        contender = ours(WORKLOADS[workload], framework)
    else:
        contender = importlib.import_module(f"benchmarks.{framework}_loops").hand_written(WORKLOADS[workload], name)
    pipe.send((contender.granularity, contender.details))
    while (updates := pipe.recv()) is not None:
        pipe.send(contender.seconds(updates))
