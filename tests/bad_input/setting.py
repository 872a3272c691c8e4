"""What the cases share: small models written once for every backend, small data, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import multibackend as mb
from multibackend.losses import MeanSquaredError
from multibackend.optimizers import SGD
from multibackend.testing.conformance.problems import regression

__all__ = ["DATA", "LABELS", "Setting", "with_field"]

DATA = regression(12)
LABELS = {"x": DATA["x"], "label": np.arange(12) % 2}

_OF_TRAINER = (
    "run_dir",
    "device",
    "callbacks",
    "execution",
    "windows_per_dispatch",
    "read_ahead",
    "record_gradient_norms",
    "checkpointing",
    "resume",
    "may_differ",
)

Forward = Callable[[Any, Any, Any], Any]


def with_field(name: str, value: Any, data: Mapping[str, Any] = DATA) -> dict[str, Any]:
    """Return the data with one field more, or another one."""
    return {**data, name: value}


@dataclass(frozen=True)
class Setting:
    """A backend to run on, and an empty directory."""

    backend: str
    directory: Path

    @property
    def path(self) -> Path:
        """The directory, which is there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory

    def builder(self, inputs: int = 3, outputs: int = 2) -> Callable[..., Any]:
        """Return what builds a linear layer in the backend's framework."""
        return _linear_builder(self.backend, inputs, outputs)

    def model(self, builder: Any = None, **options: Any) -> mb.Model:
        """Return a model of the backend's own builder; linear unless given."""
        return mb.Model(**{"inputs": "x", self.backend: builder or self.builder(), **options})

    def network(self, forward: Forward, layers: Mapping[str, tuple[int, int]], **options: Any) -> mb.Model:
        """Return a model with linear layers by name and `forward(self, x, xp)`, on either framework."""
        return self.model(_network_builder(self.backend, forward, layers), **options)

    def embedding(self, ids: int, width: int) -> mb.Model:
        """Return an embedding table followed by nothing."""
        if self.backend == "torch":
            import torch  # noqa: PLC0415 - a setting imports its own framework only

            return self.model(lambda: torch.nn.Embedding(ids, width))
        from flax import nnx  # noqa: PLC0415

        return self.model(lambda rngs: nnx.Embed(ids, width, rngs=rngs))

    def experiment(self, **changes: Any) -> mb.Experiment:
        """Return the linear experiment with these arguments in place of its own."""
        arguments: dict[str, Any] = {
            "loss": MeanSquaredError(target="y"),
            "optimizer": SGD(learning_rate=0.01),
            "train_data": DATA,
            "micro_batch_size": 3,
        }
        if "model" not in changes:
            backend = Setting("stub", self.directory) if self.backend == "any" else self
            arguments["model"] = backend.model()
        return mb.Experiment(**{**arguments, **changes})

    def trainer(self, **changes: Any) -> mb.Trainer:
        """Return a trainer of it; what is a trainer's own argument goes to the trainer."""
        options = {name: changes.pop(name) for name in _OF_TRAINER if name in changes}
        if self.backend == "jax":
            options.setdefault("execution", "dispatch")  # the quickest to compile
        return mb.Trainer(self.experiment(**changes), self.backend, **options)

    def fit(self, updates: int = 2, **changes: Any) -> mb.FitResult:
        """Train for two updates."""
        return self.trainer(**changes).fit(updates=updates)

    def loss(self, function: Any, **options: Any) -> mb.FitResult:
        """Train with a custom loss."""
        return self.fit(loss=mb.losses.Custom(function, **options))

    def evaluate(self, *metrics: Any, **changes: Any) -> dict[str, Any]:
        """Evaluate with these metrics on the training data."""
        arguments = {"eval_data": changes.get("train_data", DATA), **changes}
        return self.trainer(metrics=metrics, **arguments).evaluate()


def _linear_builder(backend: str, inputs: int, outputs: int) -> Callable[..., Any]:
    if backend == "torch":
        import torch  # noqa: PLC0415

        return lambda: torch.nn.Linear(inputs, outputs)
    if backend == "jax":
        from flax import nnx  # noqa: PLC0415

        return lambda rngs: nnx.Linear(inputs, outputs, rngs=rngs)
    from multibackend_stub.backend import Linear  # noqa: PLC0415

    return lambda: Linear(inputs, outputs)


def _network_builder(backend: str, forward: Forward, layers: Mapping[str, tuple[int, int]]) -> Callable[..., Any]:
    if backend == "torch":
        import torch  # noqa: PLC0415

        class TorchNetwork(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, sizes in layers.items():
                    setattr(self, name, torch.nn.Linear(*sizes))

            def forward(self, x: Any) -> Any:
                return forward(self, x, torch)

        return TorchNetwork

    import jax.numpy as jnp  # noqa: PLC0415
    from flax import nnx  # noqa: PLC0415

    class FlaxNetwork(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            for name, sizes in layers.items():
                setattr(self, name, nnx.Linear(*sizes, rngs=rngs))

        def __call__(self, x: Any) -> Any:
            return forward(self, x, jnp)

    return FlaxNetwork
