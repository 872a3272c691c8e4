"""A bigram language model, embedding then linear, on padded sequences of uneven length.

    multibackend compare examples/token_lm.py --precision float64

The labels behind the end of a sequence are -100 and weigh nothing. An update divides by the tokens that count in its
whole window, so four micro-batches of eight sequences equal one batch of thirty-two, however uneven the lengths are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import multibackend as mb

if TYPE_CHECKING:
    import flax
    import torch

UPDATES = 200

IGNORED = -100


def build_torch(vocabulary: int, width: int) -> torch.nn.Module:
    from collections import OrderedDict

    from torch import nn

    layers = {"embedding": nn.Embedding(vocabulary, width), "head": nn.Linear(width, vocabulary)}
    return nn.Sequential(OrderedDict(layers))


def build_flax(rngs: flax.nnx.Rngs, vocabulary: int, width: int) -> flax.nnx.Module:
    from flax import nnx

    class BigramModel(nnx.Module):
        def __init__(self):
            # torch draws an embedding from a standard normal, flax from a far narrower one
            normal = nnx.initializers.normal(stddev=1.0)
            self.embedding = nnx.Embed(vocabulary, width, embedding_init=normal, rngs=rngs)
            self.head = nnx.Linear(width, vocabulary, rngs=rngs)

        def __call__(self, tokens):
            return self.head(self.embedding(tokens))

    return BigramModel()


def make_data(sequences: int, length: int, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """A Markov chain: each token has a favourite successor, which follows it nine times out of ten.

    Otherwise a token is drawn by Zipf's law. Lengths are uniform in [length / 2, length].
    """
    rng = np.random.default_rng(seed)
    frequencies = 1 / np.arange(1, vocabulary + 1)
    drawn = rng.choice(vocabulary, size=(sequences, length + 1), p=frequencies / frequencies.sum())
    follows = rng.random((sequences, length + 1)) < 0.9
    successor = rng.permutation(vocabulary)
    tokens = drawn.copy()
    for position in range(1, length + 1):
        tokens[:, position] = np.where(follows[:, position], successor[tokens[:, position - 1]], drawn[:, position])
    padding = np.arange(length) >= rng.integers(length // 2, length + 1, size=(sequences, 1))
    return {"tokens": np.where(padding, 0, tokens[:, :-1]), "labels": np.where(padding, IGNORED, tokens[:, 1:])}


def experiment(
    *,
    micro_batch_size: int = 8,
    gradient_accumulation_steps: int = 4,
    learning_rate: float = 1e-3,
    vocabulary: int = 1000,
    width: int = 128,
    sequence_length: int = 20,
    sequences: int = 2000,
    seed: int = 0,
) -> mb.Experiment:
    """Predict the next token of a noisy Markov chain.

    Args:
        micro_batch_size: sequences that go through the model at once.
        gradient_accumulation_steps: micro-batches per update.
        learning_rate: of Adam, constant.
        vocabulary: how many different tokens there are.
        width: of the embedding.
        sequence_length: of the longest sequences.
        sequences: how many to generate.
        seed: of the data, their order and the initial parameters.
    """
    shape = {"vocabulary": vocabulary, "width": width}
    return mb.Experiment(
        name="token-lm",
        model=mb.Model(torch=partial(build_torch, **shape), jax=partial(build_flax, **shape), inputs="tokens"),
        loss=mb.losses.CrossEntropy(target="labels", ignore_index=IGNORED),
        optimizer=mb.optimizers.Adam(learning_rate=learning_rate),
        train_data=make_data(sequences, sequence_length, vocabulary, seed),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
