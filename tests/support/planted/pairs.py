"""The pairs of models as experiments, with a mistake on one side or without."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import multibackend as mb
from support.planted import flax_side, torch_side
from support.planted.bigram import FlaxBigram, TorchBigram

__all__ = ["ROWS", "TEXT", "Mistake", "bigram", "cnn", "gpt", "table"]

Experiments = mb.Experiment | Mapping[str, mb.Experiment]


@dataclass(frozen=True)
class Mistake:
    """A mistake that was planted.

    Attributes:
        experiment: builds the pair.
        stage: where the runs first part.
        layer: the reference's name of the layer (or parameter, or "loss") that is to be named.
        cause: the name of the cause.
    """

    experiment: Callable[[], Experiments]
    stage: str
    layer: str
    cause: str


RANDOM = np.random.default_rng(5)
TOKENS = RANDOM.integers(0, torch_side.VOCABULARY, size=(8, torch_side.LENGTH + 1))
TEXT = {"tokens": TOKENS[:, :-1], "label": TOKENS[:, 1:]}
IMAGES = {
    "image": RANDOM.normal(size=(12, 3, 12, 12)),
    "label": RANDOM.integers(0, torch_side.CLASSES, size=12),
}
ROWS = {"x": RANDOM.normal(size=(12, 6)), "y": RANDOM.normal(size=(12, 1))}

_BLOCK = {
    "norm1": "ln1",
    "norm2": "ln2",
    "up": "fc1",
    "down": "fc2",
    "drop": "drop",
    "attention.query": "attn.q",
    "attention.key": "attn.k",
    "attention.value": "attn.v",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
}
RENAME = {
    "embed": "tok_emb",
    "position": "pos_emb",
    "final_norm": "ln_f",
    "lm_head": "head",
    **{f"layers.{i}.{new}": f"blocks.{i}.{old}" for i in range(2) for new, old in _BLOCK.items()},
    **{f"layers_{i}.{new}": f"blocks.{i}.{old}" for i in range(2) for new, old in _BLOCK.items()},
}
DEFAULTS: dict[str, Any] = {
    "optimizer": mb.optimizers.AdamW(learning_rate=0.01, weight_decay=0.01),
    "micro_batch_size": 4,
    "shuffle": False,
    "precision": "float64",
}


def gpt(
    mistake: str = "", *, side: str = "jax", jax: Any = flax_side.Gpt, name: str = "gpt", **options: Any
) -> mb.Experiment:
    """The GPT pair with a mistake on one side; `options` of the models or of the experiment."""
    models = {key: options.pop(key) for key in ("norm", "fused", "rate", "scaled") if key in options}
    wrong = {"torch": "", "jax": "", side: mistake}
    return mb.Experiment(
        name=name,
        model=mb.Model(
            torch=functools.partial(torch_side.Gpt, wrong["torch"], **models),
            jax=functools.partial(jax, mistake=wrong["jax"], **models),
            inputs="tokens",
            rename=RENAME,
        ),
        **{"loss": mb.losses.CrossEntropy(target="label"), "train_data": TEXT, **DEFAULTS, **options},
    )


def cnn(mistake: str = "", *, side: str = "jax", jax: Any = flax_side.Cnn, **options: Any) -> mb.Experiment:
    """The CNN pair."""
    models = {key: options.pop(key) for key in ("pooling", "head") if key in options}
    wrong = {"torch": "", "jax": "", side: mistake}
    return mb.Experiment(
        name="cnn",
        model=mb.Model(
            torch=functools.partial(torch_side.Cnn, wrong["torch"], **models),
            jax=functools.partial(jax, mistake=wrong["jax"], **models),
            inputs="image",
        ),
        **{"loss": mb.losses.CrossEntropy(target="label"), "train_data": IMAGES, **DEFAULTS, **options},
    )


def table(mistake: str = "", **options: Any) -> mb.Experiment:
    """A network on numbers; with a mean far from 0 where the variance is to lose its digits."""
    if mistake == "fast variance":
        options = {"train_data": {**ROWS, "x": ROWS["x"] * 1e-2 + 1e4}, **options}
    return mb.Experiment(
        name="table",
        model=mb.Model(torch=torch_side.Table, jax=functools.partial(flax_side.Table, mistake=mistake), inputs="x"),
        **{"loss": mb.losses.MeanSquaredError(target="y"), "train_data": ROWS, **DEFAULTS, **options},
    )


def bigram(**options: Any) -> mb.Experiment:
    """The smallest language model."""
    return mb.Experiment(
        name="bigram",
        model=mb.Model(torch=TorchBigram, jax=FlaxBigram, inputs="tokens"),
        **{"loss": mb.losses.CrossEntropy(target="label"), "train_data": TEXT, **DEFAULTS, **options},
    )
