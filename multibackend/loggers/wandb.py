"""A run of Weights & Biases: `pip install 'multibackend[wandb]'`.

>>> log = WandbLog(project="digits", config={"width": 64})                 # doctest: +SKIP
>>> trainer = mb.Trainer(experiment, "jax", callbacks=[log])               # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multibackend.core.extras import import_extra
from multibackend.events import FitStarted
from multibackend.loggers.scalars import ScalarLog, describe_run

__all__ = ["WandbLog"]


class WandbLog(ScalarLog):
    """A listener that logs the numbers of `scalars` to a run, which begins with the first `fit`.

    The run's config names backend, device and execution beside what `config` gives. `close()`
    finishes the run, as failed where the last `fit` failed; where it is not called, wandb does so
    as the process ends.

    Args:
        config: of the run.
        every: log the numbers of every so many updates only; evaluations are always logged.
        options: for `wandb.init`, for example `project=`, `name=` (the experiment's unless given),
            `mode="offline"`.

    Raises:
        PackageNotInstalledError: wandb is not installed.
        ConfigurationError: an argument is wrong.
    """

    def __init__(self, *, config: Mapping[str, Any] | None = None, every: int = 1, **options: Any) -> None:
        super().__init__(every=every)
        self._wandb = import_extra("wandb", "wandb")
        self._config = dict(config or {})
        self._options = options
        self._run: Any = None

    def begin(self, event: FitStarted) -> None:
        if self._run is None:
            options = {"name": event.experiment, **self._options}  # the user's come last
            self._run = self._wandb.init(config=describe_run(event) | self._config, **options)

    def write(self, update: int, numbers: Mapping[str, float]) -> None:
        if self._run is not None:  # an evaluation before the first fit belongs to no run
            self._run.log(dict(numbers), step=update)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(self.failed))
            self._run = None
