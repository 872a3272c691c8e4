"""Residual blocks with batch statistics and dropout, in torch, nnx and linen; rematerialisation must change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

WIDTH, DEPTH = 6, 2


class TorchBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, *, scale: float, residual: torch.Tensor | None = None) -> torch.Tensor:
        return x + scale * self.down(self.drop(torch.tanh(self.up(self.norm(x)))))


class TorchBlocks(nn.Module):
    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(TorchBlock(width) for _ in range(depth))

    def forward(self, x: torch.Tensor, train: bool) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


class NnxBlock(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm, self.drop = nnx.BatchNorm(width, momentum=0.9, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, *, scale: float, residual: jax.Array | None = None) -> jax.Array:
        assert isinstance(scale, float)
        return x + scale * self.down(self.drop(jnp.tanh(self.up(self.norm(x)))))


class NnxBlocks(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = WIDTH, depth: int = DEPTH) -> None:
        self.stem, self.head = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
        self.blocks = nnx.List(NnxBlock(width, rngs) for _ in range(depth))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


class LinenBlock(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool, scale: float) -> jax.Array:
        hidden = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        hidden = jnp.tanh(linen.Dense(4 * self.width)(hidden))
        hidden = linen.Dropout(0.3, deterministic=not train)(hidden)
        return x + scale * linen.Dense(self.width)(hidden)


class LinenBlocks(linen.Module):
    width: int = WIDTH
    depth: int = DEPTH

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dense(self.width, name="stem")(x)
        for _ in range(self.depth):
            x = LinenBlock(self.width)(x, train, scale=0.5)
        return linen.Dense(2, name="head")(x)


class LinenSetup(linen.Module):
    """The same with its blocks made in `setup`."""

    width: int = WIDTH
    depth: int = DEPTH

    def setup(self) -> None:
        self.stem, self.head = linen.Dense(self.width), linen.Dense(2)
        self.blocks = [LinenBlock(self.width) for _ in range(self.depth)]

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, train, scale=0.5)
        return self.head(x)
