"""A small GPT on real English, character by character: the reference pages that ship with Python (`help("for")`).

    multibackend train examples/char_gpt.py --backend jax
    multibackend compare examples/char_gpt.py --precision float64 --updates 100

After the training the model continues a line, on whichever framework it was trained.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import multibackend as mb

if TYPE_CHECKING:
    import flax
    import torch

UPDATES = 400

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
EPSILON = 1e-5  # of every LayerNorm; the frameworks' own defaults differ


def build_torch(sequence_length: int, width: int, layers: int, heads: int, tied: bool) -> torch.nn.Module:
    import torch
    from torch import nn

    causal = torch.ones(sequence_length, sequence_length, dtype=torch.bool).tril()

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            # without bias: that of the keys cancels in the softmax, so its gradient would be rounding noise
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width)

        def forward(self, x):
            batch, time, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, time, 3, heads, -1).permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / k.shape[-1] ** 0.5
            weights = torch.where(causal, scores, -torch.inf).softmax(dim=-1)
            return self.out((weights @ v).transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1 = nn.LayerNorm(width, eps=EPSILON)
            self.attention = Attention()
            self.norm2 = nn.LayerNorm(width, eps=EPSILON)
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(len(ALPHABET), width)
            self.positions = nn.Embedding(sequence_length, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width, eps=EPSILON)
            if not tied:
                self.head = nn.Linear(width, len(ALPHABET), bias=False)
            for embedding in (self.tokens, self.positions):
                nn.init.normal_(embedding.weight, std=0.02)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            x = self.norm(x)
            return x @ self.tokens.weight.T if tied else self.head(x)

    return GPT()


def build_flax(sequence_length: int, width: int, layers: int, heads: int, tied: bool) -> flax.linen.Module:
    import jax.numpy as jnp
    from flax import linen as nn

    causal = np.tri(sequence_length, dtype=bool)
    narrow = nn.initializers.normal(stddev=0.02)

    class Attention(nn.Module):
        def setup(self):
            self.qkv = nn.Dense(3 * width, use_bias=False)
            self.out = nn.Dense(width)

        def __call__(self, x):
            batch, time, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, time, 3, heads, -1).transpose(2, 0, 3, 1, 4)
            scores = q @ k.mT / k.shape[-1] ** 0.5
            weights = nn.softmax(jnp.where(causal, scores, -jnp.inf))
            return self.out((weights @ v).swapaxes(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def setup(self):
            self.norm1 = nn.LayerNorm(epsilon=EPSILON)
            self.attention = Attention()
            self.norm2 = nn.LayerNorm(epsilon=EPSILON)
            self.up = nn.Dense(4 * width)
            self.down = nn.Dense(width)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(nn.gelu(self.up(self.norm2(x)), approximate=True))

    class GPT(nn.Module):
        def setup(self):
            self.tokens = nn.Embed(len(ALPHABET), width, embedding_init=narrow)
            self.positions = nn.Embed(sequence_length, width, embedding_init=narrow)
            self.blocks = [Block() for _ in range(layers)]
            self.norm = nn.LayerNorm(epsilon=EPSILON)
            if not tied:
                self.head = nn.Dense(len(ALPHABET), use_bias=False)

        def __call__(self, tokens):
            x = self.tokens(tokens) + self.positions.embedding
            for block in self.blocks:
                x = block(x)
            x = self.norm(x)
            return self.tokens.attend(x) if tied else self.head(x)

    return GPT()


def sample(
    trainer: mb.Trainer, *, prompt: str = "The ", length: int = 300, temperature: float = 0.7, seed: int = 0
) -> str:
    """`prompt`, continued by `length` characters that the trained model draws one after the other."""
    rng, text = np.random.default_rng(seed), encode(prompt).tolist()
    window = trainer.experiment.model.builder(trainer.backend).keywords["sequence_length"]
    for _ in range(length):
        recent = text[-window:]
        # always a whole window, for one shape is compiled once; no character looks at those behind it
        tokens = np.array([recent + [0] * (window - len(recent))], np.int32)
        logits = trainer.predict({"tokens": tokens})[0, len(recent) - 1]
        # the largest of logits with Gumbel noise is a draw from their softmax
        text.append(int(np.argmax(logits / temperature + rng.gumbel(size=logits.shape))))
    return "".join(ALPHABET[token] for token in text)


def after(trainer: mb.Trainer) -> None:
    """Print a sample of what the trained model writes."""
    print(sample(trainer))


def encode(text: str) -> np.ndarray:
    """The tokens of a text; characters outside the alphabet are left out."""
    return np.array([ALPHABET.index(character) for character in text if character in ALPHABET], np.int32)


def make_data(sequence_length: int) -> dict[str, np.ndarray]:
    """The text in sequences, and the same moved on by one character. Indentation and rules shrink to one character."""
    from pydoc_data.topics import topics

    text = encode(re.sub(r"(\W)\1+", r"\1", "\n".join(topics.values())))
    end = (len(text) - 1) // sequence_length * sequence_length
    return {"tokens": text[:end].reshape(-1, sequence_length), "next": text[1 : end + 1].reshape(-1, sequence_length)}


def experiment(
    *,
    micro_batch_size: int = 16,
    gradient_accumulation_steps: int = 4,
    learning_rate: float = 3e-3,
    warmup: int = 20,
    updates: int = UPDATES,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    sequence_length: int = 64,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    tied: bool = True,
    seed: int = 0,
) -> mb.Experiment:
    """Write Python documentation, character by character.

    Args:
        micro_batch_size: sequences that go through the model at once.
        gradient_accumulation_steps: micro-batches per update.
        learning_rate: the highest one, after the warm-up; it then falls to zero by a cosine.
        warmup: updates until the learning rate is highest; in a shorter run, all but the last.
        updates: when the learning rate reaches zero.
        weight_decay: of AdamW.
        max_grad_norm: a gradient with a larger norm is scaled down to it.
        sequence_length: characters that the model sees.
        width: of the residual stream, a multiple of `heads`.
        layers: how many blocks of attention and MLP.
        heads: of each attention.
        tied: whether the last layer uses the embedding's weights instead of its own.
        seed: of the order of the sequences and of the initial parameters.
    """
    shape = {"sequence_length": sequence_length, "width": width, "layers": layers, "heads": heads, "tied": tied}
    schedule = mb.schedules.WarmupCosine(peak=learning_rate, warmup=min(warmup, updates - 1), total=updates)
    return mb.Experiment(
        name="char-gpt",
        model=mb.Model(torch=partial(build_torch, **shape), jax=partial(build_flax, **shape), inputs="tokens"),
        loss=mb.losses.CrossEntropy(target="next"),
        optimizer=mb.optimizers.AdamW(learning_rate=schedule, weight_decay=weight_decay),
        train_data=make_data(sequence_length),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_grad_norm=max_grad_norm,
        seed=seed,
    )
