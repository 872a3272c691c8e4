"""A small network with batch statistics and dropout, of one definition in torch and nnx, and an experiment on it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from multibackend_jax.model.norm import BatchNorm as NnxBatchNorm
from multibackend_torch.model.norm import BatchNorm as TorchBatchNorm

import multibackend as mb

EXAMPLES = 26


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = torch.nn.Linear(3, 5, bias=False), TorchBatchNorm(5)
        self.drop, self.head = torch.nn.Dropout(0.3), torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.stem(x)))))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.norm = nnx.Linear(3, 5, use_bias=False, rngs=rngs), NnxBatchNorm(5)
        self.drop, self.head = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(jnp.tanh(self.norm(self.stem(x)))))


def data(*, bad: bool = False, examples: int = EXAMPLES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    found = {
        "x": random.normal(size=(examples, 3)),
        "y": random.normal(size=(examples, 2)),
        "w": random.uniform(0.5, 2.0, size=examples),
    }
    if bad:
        found["x"][7] = np.nan
    return found


def experiment(**options: Any) -> mb.Experiment:
    """AdamW, warm-up-cosine, clipping, BatchNorm, portable dropout, EMA; windows of 3, 3 and 1 (a ragged one)."""
    arguments: dict[str, Any] = {
        "model": mb.Model(torch=TorchNet, jax=NnxNet, inputs="x"),
        "loss": mb.losses.MeanSquaredError(target="y", weights="w"),
        "optimizer": mb.optimizers.AdamW(
            learning_rate=mb.schedules.WarmupCosine(peak=0.03, warmup=5, total=200), weight_decay=0.05
        ),
        "train_data": data(),
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        "precision": "float64",
        "dropout": "portable",
        "ema_decay": 0.9,
    }
    return mb.Experiment(**{**arguments, **options})
