"""Linear regression by SGD: the smallest experiment, with a published result to compare with.

    multibackend compare examples/linear_regression.py --precision float64

1000 samples, two features, three epochs from zero. Mean loss of each epoch, divided by the 40 examples of an update:
0.5434, 0.1914, 0.0675 published, 0.5309, 0.1944, 0.0716 here; the data are another random draw. Forty examples at once,
`--micro-batch-size 40 --gradient-accumulation-steps 1`, make the same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import multibackend as mb

if TYPE_CHECKING:
    import flax
    import torch

EPOCHS = 3
UPDATES = EPOCHS * 1000 // 40

TRUE_WEIGHTS = np.array([-2.0, 3.4])
TRUE_BIAS = 4.2


def build_torch() -> torch.nn.Module:
    import torch

    model = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model


def build_flax(rngs: flax.nnx.Rngs) -> flax.nnx.Module:
    from flax import nnx

    return nnx.Linear(2, 1, kernel_init=nnx.initializers.zeros, bias_init=nnx.initializers.zeros, rngs=rngs)


def make_data(samples: int, noise: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 2))
    y = x @ TRUE_WEIGHTS + TRUE_BIAS + rng.normal(scale=noise, size=samples)
    return {"x": x, "y": y[:, None]}


def experiment(
    *,
    micro_batch_size: int = 4,
    gradient_accumulation_steps: int = 10,
    learning_rate: float = 0.01,
    samples: int = 1000,
    noise: float = 0.01,
    seed: int = 0,
) -> mb.Experiment:
    """Recover two weights and a bias from noisy samples.

    Args:
        micro_batch_size: examples that go through the model at once.
        gradient_accumulation_steps: micro-batches per update.
        learning_rate: of plain SGD, constant.
        samples: how many examples to draw.
        noise: standard deviation of the noise on the targets.
        seed: of the data and of their order.
    """
    return mb.Experiment(
        name="linear-regression",
        model=mb.Model(torch=build_torch, jax=build_flax, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=learning_rate),
        train_data=make_data(samples, noise, seed),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
