"""The models of the workloads in Flax nnx, images as [batch, height, width, channels]."""

from __future__ import annotations

import jax
from flax import nnx

__all__ = ["cnn", "gpt", "linear", "mlp"]


def linear(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Linear(2, 1, rngs=rngs)


def mlp(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(
        nnx.Linear(784, 512, rngs=rngs),
        nnx.relu,
        nnx.Linear(512, 512, rngs=rngs),
        nnx.relu,
        nnx.Linear(512, 10, rngs=rngs),
    )


class _CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        shapes = ((3, 16, 1), (16, 32, 2), (32, 64, 2))
        self.convolutions = nnx.List(
            nnx.Conv(i, o, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs) for i, o, stride in shapes
        )
        self.norms = nnx.List(nnx.BatchNorm(o, momentum=0.9, epsilon=1e-5, rngs=rngs) for _, o, _ in shapes)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(convolution(x)))
        return self.head(x.mean(axis=(1, 2)))


def cnn(rngs: nnx.Rngs) -> nnx.Module:
    return _CNN(rngs)


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm_attention = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.projection = nnx.Linear(width, width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + self.projection(mixed.reshape(batch, length, width))
        return x + self.down(jax.nn.gelu(self.up(self.norm_mlp(x)), approximate=True))


class _GPT(nnx.Module):
    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List(_Block(width, heads, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions.embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt(rngs: nnx.Rngs) -> nnx.Module:
    return _GPT(vocabulary=1000, length=64, width=128, layers=4, heads=4, rngs=rngs)
