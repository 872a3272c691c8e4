"""What is trained in the benchmarks: four models, their data and their settings, the same for every contender.

Each data set divides into full micro-batches and windows, 32 windows to an epoch or a multiple of that, so that no
contender has a partial window to deal with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import multibackend as mb

__all__ = ["WORKLOADS", "Fields", "Workload", "windows_of_rows"]

Fields = dict[str, np.ndarray]

_OPTIMIZERS: dict[str, Callable[[float], mb.optimizers.Optimizer]] = {
    "sgd": lambda rate: mb.optimizers.SGD(learning_rate=rate),
    "momentum": lambda rate: mb.optimizers.SGD(learning_rate=rate, momentum=0.9),
    "adam": lambda rate: mb.optimizers.Adam(learning_rate=rate),
    "adamw": lambda rate: mb.optimizers.AdamW(learning_rate=rate, weight_decay=0.01),
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model with its data and settings.

    Attributes:
        name: also of the model's builder in `torch_models` and `jax_models`.
        title: for the table.
        micro_batch, steps: examples per micro-batch, micro-batches per window.
        optimizer, learning_rate: the optimizer by its key in every framework's table.
        loss: "mean_squared_error" or "cross_entropy".
        data: fields "x" and "y" in a framework's own layout, by its name.
        convolutions: whether the model has some; JAX on CPU must not run them in a loop.
    """

    name: str
    title: str
    micro_batch: int
    steps: int
    optimizer: str
    learning_rate: float
    loss: str
    data: Callable[[str], Fields]
    convolutions: bool = False

    def experiment(self, framework: str, *, steps: int | dict[int, int] | None = None) -> mb.Experiment:
        """The workload as this library has it described, with other accumulation `steps` if given."""
        losses = {"mean_squared_error": mb.losses.MeanSquaredError, "cross_entropy": mb.losses.CrossEntropy}
        return mb.Experiment(
            name=self.name,
            model=mb.Model(
                torch=f"benchmarks.torch_models:{self.name}", jax=f"benchmarks.jax_models:{self.name}", inputs="x"
            ),
            loss=losses[self.loss](target="y"),
            optimizer=_OPTIMIZERS[self.optimizer](self.learning_rate),
            train_data=self.data(framework),
            micro_batch_size=self.micro_batch,
            gradient_accumulation_steps=steps or self.steps,
        )


def windows_of_rows(data: Fields, rows: int, seed: int = 0) -> Iterator[Fields]:
    """Groups of `rows` examples for ever, in a new random order each epoch: the data loading of hand-written loops."""
    random, length = np.random.default_rng(seed), len(data["x"])
    while True:
        order = random.permutation(length)
        for start in range(0, length - rows + 1, rows):
            index = order[start : start + rows]
            yield {name: array.take(index, axis=0) for name, array in data.items()}


def _linear_data(framework: str) -> Fields:
    random = np.random.default_rng(1)
    x = random.normal(size=(40960, 2)).astype(np.float32)
    noise = 0.1 * random.normal(size=(40960, 1)).astype(np.float32)
    return {"x": x, "y": x @ np.array([[2.0], [-1.0]], np.float32) + 0.5 + noise}


def _labels(random: np.random.Generator, examples: int) -> np.ndarray:
    return random.integers(0, 10, size=examples)


def _mlp_data(framework: str) -> Fields:
    random = np.random.default_rng(2)
    x = random.normal(size=(8192, 784)).astype(np.float32)
    return {"x": x, "y": _labels(random, 8192).astype(_integers(framework))}


def _gpt_data(framework: str) -> Fields:
    tokens = np.random.default_rng(3).integers(0, 1000, size=(2048, 65)).astype(_integers(framework))
    return {"x": np.ascontiguousarray(tokens[:, :-1]), "y": np.ascontiguousarray(tokens[:, 1:])}


def _cnn_data(framework: str) -> Fields:
    random = np.random.default_rng(4)
    shape = (3, 32, 32) if framework == "torch" else (32, 32, 3)
    x = random.normal(size=(4096, *shape)).astype(np.float32)
    return {"x": x, "y": _labels(random, 4096).astype(_integers(framework))}


def _integers(framework: str) -> type[np.integer]:
    """The integers a framework indexes with by default, so that no contender has to convert."""
    return np.int64 if framework == "torch" else np.int32


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="linear",
            title="linear regression",
            micro_batch=4,
            steps=10,
            optimizer="sgd",
            learning_rate=0.01,
            loss="mean_squared_error",
            data=_linear_data,
        ),
        Workload(
            name="mlp",
            title="MLP, Adam",
            micro_batch=32,
            steps=8,
            optimizer="adam",
            learning_rate=1e-3,
            loss="cross_entropy",
            data=_mlp_data,
        ),
        Workload(
            name="gpt",
            title="GPT, AdamW",
            micro_batch=8,
            steps=4,
            optimizer="adamw",
            learning_rate=1e-3,
            loss="cross_entropy",
            data=_gpt_data,
        ),
        Workload(
            name="cnn",
            title="BatchNorm CNN",
            micro_batch=32,
            steps=4,
            optimizer="momentum",
            learning_rate=0.01,
            loss="cross_entropy",
            data=_cnn_data,
            convolutions=True,
        ),
    )
}
