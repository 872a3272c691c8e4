"""A port with five typical mistakes, found one after another: docs/porting.md walks through them.

    multibackend compare examples/port.py --precision float64 --updates 5 --step 0     # ... 1, 2, 3, 4, 5

The network is a small GPT in torch, the port the same in Flax, as one writes it in an afternoon. `--step n` is the port
with its first n mistakes corrected; step 5 matches.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import multibackend as mb

if TYPE_CHECKING:
    import flax
    import torch

UPDATES = 20

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 24, 12, 32, 4, 2

MISTAKES = (
    "positions are counted from 1",
    "LayerNorm has Flax's default epsilon, 1e-6",
    "attention is scaled by the width of the model, not of a head",
    "GELU is the tanh approximation, Flax's default",
    "the second residual branches off behind the norm",
)


def build_torch() -> torch.nn.Module:
    """The original."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            batch, time, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, time, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            causal = torch.ones(time, time, dtype=torch.bool).tril()
            weights = scores.masked_fill(~causal, -torch.inf).softmax(dim=-1)
            return self.out((weights @ v).transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
            self.norm2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH + 1, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


def build_flax(rngs: flax.nnx.Rngs, *, step: int) -> flax.nnx.Module:
    """The port, with its first `step` mistakes corrected."""
    import jax.numpy as jnp
    from flax import nnx

    def right(mistake: int) -> bool:
        return step > mistake

    layer_norm = partial(nnx.LayerNorm, epsilon=1e-5 if right(1) else 1e-6, rngs=rngs)

    class Attention(nnx.Module):
        def __init__(self):
            self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, use_bias=False, rngs=rngs)
            self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            batch, time, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, time, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
            scores = q @ k.swapaxes(-2, -1) / (q.shape[-1] if right(2) else WIDTH) ** 0.5
            weights = nnx.softmax(jnp.where(jnp.tri(time, dtype=bool), scores, -jnp.inf))
            return self.out((weights @ v).swapaxes(1, 2).reshape(x.shape))

    class Block(nnx.Module):
        def __init__(self):
            self.norm1, self.attention = layer_norm(WIDTH), Attention()
            self.norm2 = layer_norm(WIDTH)
            self.up, self.down = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, WIDTH, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x))
            y = self.norm2(x)
            return (x if right(4) else y) + self.down(nnx.gelu(self.up(y), approximate=not right(3)))

    class GPT(nnx.Module):
        def __init__(self):
            self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
            self.positions = nnx.Embed(LENGTH + 1, WIDTH, rngs=rngs)
            self.blocks = nnx.List([Block() for _ in range(LAYERS)])
            self.norm, self.head = layer_norm(WIDTH), nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

        def __call__(self, tokens):
            x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]) + (0 if right(0) else 1))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


def make_data(sequences: int, seed: int) -> dict[str, np.ndarray]:
    """Counting in steps of 1 to 3, modulo the vocabulary; the next token is to be told."""
    rng = np.random.default_rng(seed)
    start, stride = rng.integers(VOCABULARY, size=(sequences, 1)), rng.integers(1, 4, size=(sequences, 1))
    tokens = (start + stride * np.arange(LENGTH + 1)) % VOCABULARY
    return {"tokens": tokens[:, :-1], "next": tokens[:, 1:]}


def experiment(
    *,
    step: int = len(MISTAKES),
    micro_batch_size: int = 8,
    gradient_accumulation_steps: int = 2,
    learning_rate: float = 3e-3,
    sequences: int = 256,
    seed: int = 0,
) -> mb.Experiment:
    """Train a small GPT to count, and its port.

    Args:
        step: how many of the port's five mistakes are corrected.
        micro_batch_size: sequences that go through the model at once.
        gradient_accumulation_steps: micro-batches per update.
        learning_rate: of AdamW, constant.
        sequences: how many there are.
        seed: of the data, of their order and of the initial parameters.
    """
    return mb.Experiment(
        name="port",
        model=mb.Model(torch=build_torch, jax=partial(build_flax, step=step), inputs="tokens"),
        loss=mb.losses.CrossEntropy(target="next"),
        optimizer=mb.optimizers.AdamW(learning_rate=learning_rate),
        train_data=make_data(sequences, seed),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
