"""What the conformance suite runs on: a backend, an execution, and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.experiment import Experiment, Model
from multibackend.losses import MeanSquaredError
from multibackend.optimizers import SGD
from multibackend.training.trainer import Trainer

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """One way to execute on one backend.

    Attributes:
        backend: its registered name.
        models: builders by name; which ones a part of the suite needs is said in its docstring.
        execution, windows_per_dispatch: as for `Trainer`.
        label: tells this variant from others in the names of tests, for example "nnx".
    """

    backend: str
    models: Mapping[str, Callable[..., Any]] = field(repr=False)
    execution: str = "auto"
    windows_per_dispatch: int | None = None
    label: str = ""

    def __str__(self) -> str:
        parts = (self.backend, self.execution, self.windows_per_dispatch, self.label)
        return ":".join(str(part) for part in parts if part not in ("", None))

    def experiment(self, data: Any, *, model: str = "linear", inputs: Any = "x", **options: Any) -> Experiment:
        """Describe a float64 experiment, with squared error against "y" and SGD unless told else."""
        defaults: dict[str, Any] = {
            "loss": MeanSquaredError(target="y"),
            "optimizer": SGD(learning_rate=0.1),
            "micro_batch_size": 3,  # an epoch of 29 examples, say, ends in a ragged one
            "precision": "float64",  # whose rounding hides no mistake
            "shuffle": False,  # so that a reference can name the examples of each window
        }
        builders: dict[str, Any] = {self.backend: self.models[model]}
        network = Model(inputs=inputs, **builders)
        if isinstance(data, Mapping):
            data = dict(data)
        return Experiment(model=network, train_data=data, **{**defaults, **options})

    def trainer(
        self,
        experiment: Experiment,
        start: Mapping[str, np.ndarray] | None = None,
        *,
        windows_per_dispatch: int | None = None,
        **options: Any,
    ) -> Trainer:
        """Make a trainer for an experiment, from the parameters `start` where they are given."""
        if windows_per_dispatch is None:
            windows_per_dispatch = self.windows_per_dispatch
        how = {"execution": self.execution, "windows_per_dispatch": windows_per_dispatch}
        trainer = Trainer(experiment, self.backend, **how, **options)
        if start is not None:
            trainer.load_parameters(start)
        return trainer
