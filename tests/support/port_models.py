"""A GPT block stack and a CNN in torch, nnx and linen under the same names; `mistake` plants one in the Flax side.

The GPT's mistakes are in its second block, where it has one.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

WIDTH, HEADS, WORDS, LENGTH = 8, 2, 11, 6


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = (layer(x).view(n, t, HEADS, d // HEADS).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(n, t, d))


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), TorchAttention()
        self.up, self.act, self.down, self.drop = (
            nn.Linear(WIDTH, 12),
            nn.GELU(),
            nn.Linear(12, WIDTH),
            nn.Dropout(0.0),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.drop(self.down(self.act(self.up(self.norm2(x)))))


class TorchGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH + 1, WIDTH)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mistake: str) -> jax.Array:
    """[n, t, d] each, heads split as torch splits them."""
    n, t, d = q.shape
    q, k = (k, q) if mistake == "swapped q and k" else (q, k)
    q, k, v = (a.reshape(n, t, HEADS, d // HEADS) for a in (q, k, v))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / (1.0 if mistake == "no scale" else math.sqrt(d // HEADS))
    mask = jnp.tril(jnp.ones((t, t), bool), 1 if mistake == "mask shifted" else 0)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, d)


def activate(x: jax.Array, mistake: str) -> jax.Array:
    x = jax.lax.stop_gradient(x) if mistake == "stopped gradient" else x
    return jax.nn.gelu(x, approximate=mistake == "tanh gelu")


class NnxAttention(nnx.Module):
    def __init__(self, mistake: str, rngs: nnx.Rngs) -> None:
        self.mistake = mistake
        self.q, self.k, self.v, self.proj = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(attend(self.q(x), self.k(x), self.v(x), self.mistake))


class NnxBlock(nnx.Module):
    def __init__(self, mistake: str, rngs: nnx.Rngs) -> None:
        epsilon = 1e-6 if mistake == "norm epsilon" else 1e-5
        self.mistake, self.attn = mistake, NnxAttention(mistake, rngs)
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 12, rngs=rngs), nnx.Linear(12, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.attn(self.norm1(x)) + (0 if self.mistake == "no residual" else x)
        return x + self.down(activate(self.up(self.norm2(x)), self.mistake))


class NnxGpt(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, mistake: str = "") -> None:
        self.mistake = mistake
        self.tokens, self.positions = (nnx.Embed(n, WIDTH, rngs=rngs) for n in (WORDS, LENGTH + 1))
        self.blocks = nnx.List([NnxBlock("", rngs), NnxBlock(mistake, rngs)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        start = 1 if self.mistake == "positions from 1" else 0
        x = self.tokens(tokens) + self.positions(jnp.arange(start, start + tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return logits / 2 if self.mistake == "temperature" else logits


class LinenAttention(linen.Module):
    mistake: str

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (linen.Dense(WIDTH, name=name)(x) for name in "qkv")
        return linen.Dense(WIDTH, name="proj")(attend(q, k, v, self.mistake))


class LinenBlock(linen.Module):
    mistake: str

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        epsilon = 1e-6 if self.mistake == "norm epsilon" else 1e-5
        attended = LinenAttention(self.mistake, name="attn")(linen.LayerNorm(epsilon=1e-5, name="norm1")(x))
        x = attended + (0 if self.mistake == "no residual" else x)
        hidden = linen.Dense(12, name="up")(linen.LayerNorm(epsilon=epsilon, name="norm2")(x))
        return x + linen.Dense(WIDTH, name="down")(activate(hidden, self.mistake))


class LinenGpt(linen.Module):
    mistake: str = ""

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.Embed(WORDS, WIDTH, name="tokens")(tokens)
        x = x + linen.Embed(LENGTH + 1, WIDTH, name="positions")(jnp.arange(tokens.shape[1]))
        for index in range(2):
            x = LinenBlock(self.mistake if index else "", name=f"blocks_{index}")(x)
        x = linen.LayerNorm(epsilon=1e-5, name="norm")(x)
        return linen.Dense(WORDS, use_bias=False, name="head")(x)


class TorchCnn(nn.Module):
    """Images [n, 3, 8, 8]: stem, norm, pooling, a residual convolution, a head on the flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = x + torch.nn.functional.silu(self.conv(x))
        return self.head(x.flatten(1))


class NnxCnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, mistake: str = "") -> None:
        self.mistake = mistake
        dilation = 2 if mistake == "dilation" else 1
        momentum = 0.99 if mistake == "norm momentum" else 0.9
        self.stem = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=momentum, epsilon=1e-5, rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3, 3), padding=dilation, kernel_dilation=dilation, rngs=rngs)
        self.head = nnx.Linear(4 * 16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.transpose(x, (0, 2, 3, 1))
        x = nnx.max_pool(jax.nn.relu(self.norm(self.stem(x))), (2, 2), (2, 2))
        act = jax.nn.relu if self.mistake == "another activation" else jax.nn.silu
        x = act(self.conv(x)) + x
        return self.head(jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1))


class LinenCnn(linen.Module):
    mistake: str = ""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Conv(4, (3, 3), padding=1, name="stem")(jnp.transpose(x, (0, 2, 3, 1)))
        norm: Any = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")
        x = linen.max_pool(jax.nn.relu(norm(x)), (2, 2), (2, 2))
        y = jax.nn.silu(linen.Conv(4, (3, 3), padding=1, name="conv")(x))
        x = y if self.mistake == "no residual" else x + y
        return linen.Dense(5, name="head")(jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1))
