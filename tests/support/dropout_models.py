"""An MLP and a transformer block with dropout after each layer: torch, nnx, linen. Names differ on purpose."""

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx

WIDTH, HEADS, HIDDEN = 8, 2, 16


class TorchMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = torch.nn.Linear(3, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)
        self.zdrop, self.drop = torch.nn.Dropout(0.2), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.zdrop(torch.tanh(self.first(x)))
        return self.head(self.drop(torch.tanh(self.second(x))))


class NnxMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)
        self.zdrop, self.drop = nnx.Dropout(0.2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.zdrop(jnp.tanh(self.first(x)))
        return self.head(self.drop(jnp.tanh(self.second(x))))


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dropout(0.2)(jnp.tanh(linen.Dense(8, name="first")(x)), deterministic=not train)
        x = linen.Dropout(0.5, deterministic=not train)(jnp.tanh(linen.Dense(8, name="second")(x)))
        return linen.Dense(2, name="head")(x)


class TorchBlock(torch.nn.Module):
    """Pre-norm attention and MLP; dropout on the attention weights, on both outputs, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Linear(3, WIDTH), torch.nn.Linear(WIDTH, 2)
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH, eps=1e-5), torch.nn.LayerNorm(WIDTH, eps=1e-5)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, HIDDEN), torch.nn.Linear(HIDDEN, WIDTH)
        self.attention_drop, self.residual_drop = torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.residual_drop(self.attend(self.norm1(x)))
        x = x + self.residual_drop(self.down(torch.tanh(self.up(self.norm2(x)))))
        return self.head(x)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(qkv[0] @ qkv[1].transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1)
        return self.out((self.attention_drop(weights) @ qkv[2]).transpose(1, 2).reshape(batch, length, WIDTH))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, rngs=rngs)

        self.embed, self.head = linear(3, WIDTH), linear(WIDTH, 2)
        self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)
        self.attention_drop, self.residual_drop = nnx.Dropout(0.1, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        x = x + self.residual_drop(self.out(attended(self.qkv(self.norm1(x)), self.attention_drop)))
        x = x + self.residual_drop(self.down(jnp.tanh(self.up(self.norm2(x)))))
        return self.head(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        attention_drop = linen.Dropout(0.1, deterministic=not train, name="attention_drop")
        residual_drop = linen.Dropout(0.2, deterministic=not train, name="residual_drop")
        x = linen.Dense(WIDTH, name="embed")(x)
        qkv = linen.Dense(3 * WIDTH, name="qkv")(linen.LayerNorm(1e-5, name="norm1")(x))
        x = x + residual_drop(linen.Dense(WIDTH, name="out")(attended(qkv, attention_drop)))
        hidden = jnp.tanh(linen.Dense(HIDDEN, name="up")(linen.LayerNorm(1e-5, name="norm2")(x)))
        x = x + residual_drop(linen.Dense(WIDTH, name="down")(hidden))
        return linen.Dense(2, name="head")(x)


def attended(qkv: jax.Array, drop: object) -> jax.Array:
    batch, length, _ = qkv.shape
    q, k, v = qkv.reshape(batch, length, 3, HEADS, WIDTH // HEADS).transpose(2, 0, 3, 1, 4)
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (WIDTH // HEADS) ** 0.5, axis=-1)
    return (drop(weights) @ v).swapaxes(1, 2).reshape(batch, length, WIDTH)
