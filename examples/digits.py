"""Handwritten digits, a small convolutional network with BatchNorm: 97 % and more on held-out images.

    multibackend compare examples/digits.py

The 1797 images of 8 × 8 pixels come with scikit-learn. Images are [height, width, channel], flax's layout; the torch
model permutes them itself. Pooling over all pixels before the last layer keeps the order of axes out of the rest.

The activation is smooth for a reason: with ReLU, after 100 updates in float32, the losses of the backends differed by a
quarter of their size, with GELU by some millionths. In float64 both agree to 1e-14. A kink makes rounding a choice,
and the background of these images holds many equal pixels that would make the same choice at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import multibackend as mb

if TYPE_CHECKING:
    import flax
    import torch

UPDATES = 150

HELD_OUT = 360


def build_torch() -> torch.nn.Module:
    from torch import nn
    from torch.nn.functional import gelu

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            # no bias in front of BatchNorm, which would subtract it again
            self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(16, momentum=0.1, eps=1e-5)
            self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False)
            self.norm2 = nn.BatchNorm2d(32, momentum=0.1, eps=1e-5)
            self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
            self.norm3 = nn.BatchNorm2d(64, momentum=0.1, eps=1e-5)
            self.head = nn.Linear(64, 10)

        def forward(self, image):
            x = image.permute(0, 3, 1, 2)
            x = gelu(self.norm1(self.conv1(x)))
            x = gelu(self.norm2(self.conv2(x)))
            x = gelu(self.norm3(self.conv3(x)))
            return self.head(x.mean(dim=(2, 3)))

    return Net()


def build_flax(rngs: flax.nnx.Rngs) -> flax.nnx.Module:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            # the momentum of flax weighs the old statistics, that of torch the new batch: 0.9 here is 0.1 there.
            # torch keeps the unbiased variance for evaluation, flax the biased one: training is the same, a loss on
            # held-out data differs in its third digit
            self.conv1 = nnx.Conv(1, 16, (3, 3), padding=1, use_bias=False, rngs=rngs)
            self.norm1 = nnx.BatchNorm(16, momentum=0.9, epsilon=1e-5, rngs=rngs)
            self.conv2 = nnx.Conv(16, 32, (3, 3), padding=1, strides=2, use_bias=False, rngs=rngs)
            self.norm2 = nnx.BatchNorm(32, momentum=0.9, epsilon=1e-5, rngs=rngs)
            self.conv3 = nnx.Conv(32, 64, (3, 3), padding=1, use_bias=False, rngs=rngs)
            self.norm3 = nnx.BatchNorm(64, momentum=0.9, epsilon=1e-5, rngs=rngs)
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, image):
            x = nnx.gelu(self.norm1(self.conv1(image)), approximate=False)
            x = nnx.gelu(self.norm2(self.conv2(x)), approximate=False)
            x = nnx.gelu(self.norm3(self.conv3(x)), approximate=False)
            return self.head(x.mean(axis=(1, 2)))

    return Net()


def load_data() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and held-out data, split once and for all."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    data = {"image": digits.images[order, :, :, None] / 16, "label": digits.target[order]}
    return (
        {name: array[HELD_OUT:] for name, array in data.items()},
        {name: array[:HELD_OUT] for name, array in data.items()},
    )


def experiment(
    *,
    micro_batch_size: int = 32,
    gradient_accumulation_steps: int = 2,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    updates: int = UPDATES,
    seed: int = 0,
) -> mb.Experiment:
    """Classify handwritten digits.

    Args:
        micro_batch_size: images that go through the model at once; BatchNorm takes its statistics from them.
        gradient_accumulation_steps: micro-batches per update.
        learning_rate: the highest one, after a tenth of the run; it then falls to zero by a cosine.
        momentum: of SGD.
        updates: when the learning rate reaches zero.
        seed: of the order of the images and of the initial parameters.
    """
    schedule = mb.schedules.WarmupCosine(peak=learning_rate, warmup=updates // 10, total=updates)
    train_data, eval_data = load_data()
    return mb.Experiment(
        name="digits",
        model=mb.Model(torch=build_torch, jax=build_flax, inputs="image"),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.SGD(learning_rate=schedule, momentum=momentum),
        train_data=train_data,
        eval_data=eval_data,
        metrics=(mb.metrics.Accuracy(target="label"),),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
