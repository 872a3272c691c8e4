"""TensorBoard event files, by way of tensorboardX, which needs no framework.

`pip install 'multibackend[tensorboard]'`.

>>> trainer = mb.Trainer(experiment, "jax", callbacks=[TensorBoardLog("runs/digits")])   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from multibackend.core.extras import import_extra
from multibackend.loggers.scalars import ScalarLog

__all__ = ["TensorBoardLog"]

_SECONDS_BETWEEN_FLUSHES = 5


class TensorBoardLog(ScalarLog):
    """A listener that writes the numbers of `scalars` to event files in a directory.

    A thread of tensorboardX writes them, some seconds late; `close()`, or the end of the process,
    writes the rest.

    Args:
        directory: of the event files; created if need be. `tensorboard --logdir DIRECTORY` shows
            them.
        every: write the numbers of every so many updates only; evaluations are always written.

    Raises:
        PackageNotInstalledError: tensorboardX is not installed.
        ConfigurationError: an argument is wrong.
    """

    def __init__(self, directory: str | Path, *, every: int = 1) -> None:
        super().__init__(every=every)
        writer = import_extra("tensorboardX", "tensorboard").SummaryWriter
        self._writer = writer(str(directory), flush_secs=_SECONDS_BETWEEN_FLUSHES)

    def write(self, update: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, update)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
