"""Pairs of models that mean the same and look different: meaningless names, other layouts, fused and stacked arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

WIDTH, HEADS, LAYERS = 12, 3, 3
DIM = WIDTH // HEADS


class TorchNameless(nn.Module):
    """Squares and vectors called a to e, used as x @ w."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abe":
            setattr(self, name, nn.Parameter(torch.randn(WIDTH, WIDTH) / 3))
        for name in "cd":
            setattr(self, name, nn.Parameter(torch.randn(WIDTH)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.tanh(x @ self.a + self.c) @ self.b.T + self.d) @ self.e


class NnxNameless(nnx.Module):
    """The same, called otherwise, defined in another order, two of the three squares transposed."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ("m1", "m2", "zz"):
            setattr(self, name, nnx.Param(rngs.params.normal((WIDTH, WIDTH))))
        for name in ("v7", "u1"):
            setattr(self, name, nnx.Param(rngs.params.normal((WIDTH,))))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ self.zz.T + self.u1) @ self.m1 + self.v7) @ self.m2


class TorchFused(nn.Module):
    """Attention with one projection [heads * 3 * dim, in], the three alternating within each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        query, key, value = self.qkv(x).view(batch, time, HEADS, 3, DIM).unbind(3)
        weights = torch.softmax(torch.einsum("bthd,bshd->bhts", query, key) / DIM**0.5, -1)
        return self.proj(torch.einsum("bhts,bshd->bthd", weights, value).reshape(batch, time, WIDTH))


class NnxSplit(nnx.Module):
    """Attention with three projections, kept [in, heads, dim] without being of Flax's own layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, nnx.Param(rngs.params.normal((WIDTH, HEADS, DIM)) / 3))
            setattr(self, f"{name}_bias", nnx.Param(rngs.params.normal((HEADS, DIM))))
        self.to_out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def projected(name: str) -> jax.Array:
            kernel, bias = getattr(self, name).get_value(), getattr(self, f"{name}_bias").get_value()
            return jnp.einsum("btd,dhk->bthk", x, kernel) + bias

        scores = jnp.einsum("bthd,bshd->bhts", projected("to_q"), projected("to_k")) / DIM**0.5
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), projected("to_v"))
        return self.to_out(mixed.reshape(*x.shape))


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TorchLayers(nn.Module):
    """Blocks one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(TorchBlock() for _ in range(LAYERS)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        hidden = linen.Dense(WIDTH)(linen.LayerNorm(epsilon=1e-5)(x))
        return x + linen.Dense(WIDTH)(jnp.tanh(hidden)), None


class LinenStack(linen.Module):
    """The same blocks in one array per parameter, [layers, ...]."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stack = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return linen.Dense(WIDTH)(stack()(x, None)[0])


class NnxUnit(nnx.Module):
    """A linear layer of the user's own: a square of unknown layout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.w, self.b = nnx.Param(rngs.params.normal((WIDTH, WIDTH)) / 3), nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.w + self.b


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, *, residual: bool) -> None:
        self.layer_norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.fc_up, self.fc_down, self.residual = NnxUnit(rngs), NnxUnit(rngs), residual

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.fc_down(jnp.tanh(self.fc_up(self.layer_norm(x))))
        return x + hidden if self.residual else hidden


class NnxPort(nnx.Module):
    """A port of `TorchLayers`; `forgotten` is the block whose residual was left out."""

    def __init__(self, rngs: nnx.Rngs, forgotten: int | None = None) -> None:
        self.blocks = nnx.List([NnxBlock(rngs, residual=i != forgotten) for i in range(LAYERS)])
        self.classifier = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[..., object]]] = {
    "nameless": (TorchNameless, NnxNameless),
    "fused": (TorchFused, NnxSplit),
    "stacked": (TorchLayers, LinenStack),
    "port": (TorchLayers, NnxPort),
}
