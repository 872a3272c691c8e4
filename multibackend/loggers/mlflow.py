"""A run of MLflow: `pip install 'multibackend[mlflow]'`.

>>> log = MlflowLog(tracking_uri="sqlite:///mlflow.db")                    # doctest: +SKIP
>>> trainer = mb.Trainer(experiment, "jax", callbacks=[log])               # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from multibackend.core.extras import import_extra
from multibackend.events import FitStarted
from multibackend.loggers.scalars import ScalarLog, describe_run

__all__ = ["MlflowLog"]

_MOST_METRICS = 1000  # of one request, by MLflow's rules
_SECONDS_BETWEEN_REQUESTS = 1.0


class MlflowLog(ScalarLog):
    """A listener that logs the numbers of `scalars` to a run, which begins with the first `fit`.

    Numbers go out together, once a second, because each request waits for the server. `close()`
    ends the run as finished, or as failed where the last `fit` failed. The process's active MLflow
    run is left alone.

    Args:
        tracking_uri: where to; MLflow's own setting unless given.
        experiment_name: MLflow's experiment; the name of the first run's experiment unless given.
        run_name: MLflow chooses one unless given.
        tags: of the run, beside backend, device and execution.
        every: log the numbers of every so many updates only; evaluations are always logged.

    Raises:
        PackageNotInstalledError: mlflow is not installed.
        ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        *,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(every=every)
        self._mlflow = import_extra("mlflow", "mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tags = dict(tags or {})
        self._run_id: str | None = None
        self._unsent: list[Any] = []
        self._sent = time.monotonic()

    def begin(self, event: FitStarted) -> None:
        if self._run_id is not None:
            return
        name = self._experiment_name or event.experiment
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        # no `mlflow.start_run`, which would take the place of the process's active run
        tags = describe_run(event) | self._tags
        run = self._client.create_run(experiment_id, run_name=self._run_name, tags=tags)
        self._run_id = run.info.run_id

    def write(self, update: int, numbers: Mapping[str, float]) -> None:
        if self._run_id is None:  # an evaluation before the first fit belongs to no run
            return
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._unsent += [metric(name, float(value), now, update) for name, value in numbers.items()]
        if len(self._unsent) >= _MOST_METRICS or time.monotonic() - self._sent > _SECONDS_BETWEEN_REQUESTS:
            self.flush()

    def flush(self) -> None:
        while self._unsent:
            batch = self._unsent[:_MOST_METRICS]
            self._unsent = self._unsent[_MOST_METRICS:]  # before a request that may fail
            self._client.log_batch(self._run_id, metrics=batch)
        self._sent = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._run_id is not None:
            self._client.set_terminated(self._run_id, status="FAILED" if self.failed else "FINISHED")
            self._run_id = None
