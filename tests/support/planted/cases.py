"""Planted mistakes, each with the stage, the layer and the cause that a comparison should name; and correct pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import multibackend as mb
from support.planted import flax_side, linen_side, torch_side

__all__ = ["CORRECT", "MISTAKES", "Mistake", "cnn", "gpt", "table"]

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
    rows = {**ROWS, "x": ROWS["x"] * 1e-2 + 1e4} if mistake == "fast variance" else ROWS
    return mb.Experiment(
        name="table",
        model=mb.Model(torch=torch_side.Table, jax=functools.partial(flax_side.Table, mistake=mistake), inputs="x"),
        **{"loss": mb.losses.MeanSquaredError(target="y"), "train_data": rows, **DEFAULTS, **options},
    )


def _model(pair: Callable[..., mb.Experiment], mistake: str, layer: str, cause: str, **options: Any) -> Mistake:
    return Mistake(functools.partial(pair, mistake, **options), "activations", layer, cause)


MISTAKES: dict[str, Mistake] = {
    "LayerNorm epsilon": _model(gpt, "layer norm epsilon", "blocks.1.ln2", "LayerNorm epsilon"),
    "LayerNorm unbiased, epsilon outside": _model(gpt, "unbiased norm", "blocks.1.ln2", "LayerNorm variance"),
    "LayerNorm fast variance": _model(table, "fast variance", "norm", "LayerNorm variance"),
    "RMSNorm epsilon": _model(gpt, "rms epsilon", "blocks.1.ln2", "RMSNorm epsilon", norm="rms"),
    "BatchNorm epsilon": _model(cnn, "batch norm epsilon", "bn1", "BatchNorm2d epsilon"),
    "GELU tanh in Flax": _model(gpt, "gelu tanh", "blocks.1.fc2", "GELU tanh or erf"),
    "GELU tanh in torch": _model(gpt, "gelu tanh", "blocks.1.fc2", "GELU tanh or erf", side="torch"),
    "ReLU for GELU": _model(gpt, "relu", "blocks.1.fc2", "activation"),
    "SiLU for GELU": _model(gpt, "silu", "blocks.1.fc2", "activation"),
    "leaky slope": _model(cnn, "leaky slope", "fc", "leaky relu slope"),
    "attention scale forgotten": _model(gpt, "no scale", "blocks.1.attn.proj", "attention scale"),
    "attention scale by width": _model(gpt, "scale by width", "blocks.1.attn.proj", "attention scale"),
    "attention scale by width in torch": _model(
        gpt, "scale by width", "blocks.1.attn.proj", "attention scale", side="torch"
    ),
    "causal mask missing": _model(gpt, "no mask", "blocks.1.attn.proj", "attention mask"),
    "causal mask shifted": _model(gpt, "mask shifted", "blocks.1.attn.proj", "attention mask"),
    "mask value": _model(gpt, "mask value", "blocks.1.attn.proj", "attention mask value"),
    "tril on scores": _model(gpt, "tril on scores", "blocks.1.attn.proj", "attention mask value", side="torch"),
    "softmax over queries": _model(gpt, "softmax over queries", "blocks.1.attn.proj", "attention softmax axis"),
    "swapped query and key": _model(
        gpt, "swapped query and key", "blocks.1.attn.proj", "roles of query, key and value", side="torch"
    ),
    "heads split as [dim, heads]": _model(gpt, "heads split as [dim, heads]", "blocks.1.attn.proj", "order of heads"),
    "heads not transposed back": _model(
        gpt, "heads not transposed back", "blocks.1.attn.proj", "order of heads", side="torch"
    ),
    "missing residual in the GPT": _model(gpt, "missing residual", "ln_f", "missing residual"),
    "branch halved": _model(gpt, "halved branch", "ln_f", "scale"),
    "post-norm": _model(gpt, "post-norm", "blocks.1.ln1", "pre-norm or post-norm"),
    "embedding scale forgotten": _model(gpt, "no embedding scale", "blocks.0.ln1", "embedding scale", scaled=True),
    "positions from 1": _model(gpt, "positions from 1", "pos_emb", "shifted positions"),
    "head tied to the embedding": _model(gpt, "tied head", "head", "tied weight"),
    "bias not added": _model(gpt, "missing bias", "blocks.1.fc1", "missing bias"),
    "weight transposed": _model(gpt, "transposed weight", "blocks.1.attn.v", "transposed weight"),
    "temperature": _model(gpt, "temperature", "", "scale"),
    "softmax before the loss": _model(gpt, "softmax twice", "", "activation"),
    "dropout active": _model(gpt, "dropout", "blocks.1.drop", "dropout active"),
    "float32 layer in Flax": _model(gpt, "float32", "blocks.1.fc1", "dtype"),
    "float32 layer in torch": _model(gpt, "float32", "blocks.1.fc1", "dtype", side="torch"),
    "bf16 layer": _model(gpt, "bf16", "blocks.1.fc1", "dtype"),
    "tf32 product": _model(gpt, "tf32", "blocks.1.fc1", "matmul precision"),
    "SAME padding with stride 2": _model(cnn, "same padding", "conv1", "padding"),
    "stride": _model(cnn, "stride", "conv1", "stride", head="mean"),
    "dilation": _model(cnn, "dilation", "conv2", "dilation"),
    "max for average pooling": _model(cnn, "max pooling", "conv2", "pooling"),
    "padding not counted in torch": _model(cnn, "padding not counted", "pool", "pooling counts padding", side="torch"),
    "padding not counted in Flax": _model(cnn, "padding not counted", "conv2", "pooling counts padding"),
    "missing residual in the CNN": _model(cnn, "missing residual", "fc", "missing residual"),
    "flatten order": _model(cnn, "flatten order", "fc", "order of axes"),
    "stopped gradient": Mistake(
        functools.partial(gpt, "stopped gradient"), "gradients", "blocks.1.fc1.weight", "stopped gradient"
    ),
    "BatchNorm momentum": Mistake(
        functools.partial(cnn, "norm momentum"), "model state", "bn1.running_mean", "BatchNorm momentum"
    ),
    "BatchNorm running variance": Mistake(cnn, "model state", "bn1.running_var", "BatchNorm running variance"),
}
