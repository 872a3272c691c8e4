"""Planted mistakes, each with the stage, the layer and the cause that a comparison should name; and correct pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import multibackend as mb
from support.planted import linen_side
from support.planted.pairs import Mistake, cnn, gpt, table
from support.planted.training import TRAINING

__all__ = ["CORRECT", "MISTAKES", "NOTED"]


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
    "missing residual in the GPT": _model(gpt, "missing residual", "blocks.1", "missing residual"),
    "branch halved": _model(gpt, "halved branch", "blocks.1", "scale"),
    "post-norm": _model(gpt, "post-norm", "blocks.1.ln1", "pre-norm or post-norm"),
    "embedding scale forgotten": _model(gpt, "no embedding scale", "blocks.0.ln1", "embedding scale", scaled=True),
    "positions from 1": _model(gpt, "positions from 1", "pos_emb", "shifted positions"),
    "head tied to the embedding": _model(gpt, "tied head", "", "tied weight"),
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
    "padding not counted in torch": _model(cnn, "padding not counted", "conv2", "pooling counts padding", side="torch"),
    "padding not counted in Flax": _model(cnn, "padding not counted", "conv2", "pooling counts padding"),
    "missing residual in the CNN": _model(cnn, "missing residual", "fc", "missing residual"),
    "flatten order": _model(cnn, "flatten order", "fc", "order of axes"),
    "stopped gradient": Mistake(
        functools.partial(gpt, "stopped gradient"), "gradients", "blocks.1.fc1.weight", "stopped gradient"
    ),
    "BatchNorm momentum": Mistake(
        functools.partial(cnn, "norm momentum"), "model state", "bn1.running_mean", "BatchNorm momentum"
    ),
    "attention scale forgotten in linen": _model(
        gpt, "no scale", "blocks.1.attn.proj", "attention scale", jax=linen_side.Gpt
    ),
    "SAME padding in linen": _model(cnn, "same padding", "conv1", "padding", jax=linen_side.Cnn),
    **TRAINING,
}

NOTED: dict[str, Mistake] = {
    "BatchNorm running variance": Mistake(cnn, "note", "bn1.running_var", "unbiased variance"),
    "initial law": Mistake(functools.partial(gpt, "initial law"), "note", "tok_emb.weight", "standard deviation"),
}
"""What is no mistake of a run: `cause` is in the note about `layer`."""

CORRECT: dict[str, Callable[[], mb.Experiment]] = {
    "GPT": gpt,
    "GPT, RMSNorm": functools.partial(gpt, norm="rms"),
    "GPT, fused projections": functools.partial(gpt, fused=True),
    "GPT, scaled embedding": functools.partial(gpt, scaled=True),
    "GPT, portable dropout": functools.partial(gpt, rate=0.2),
    "GPT, 2 micro-batches": functools.partial(gpt, gradient_accumulation_steps=2, micro_batch_size=2),
    "GPT, clipped": functools.partial(gpt, max_grad_norm=0.5),
    "GPT in linen": functools.partial(gpt, jax=linen_side.Gpt),
    "CNN, flattened": cnn,
    "CNN, mean": functools.partial(cnn, head="mean"),
    "CNN, max pooling": functools.partial(cnn, pooling="max"),
    "CNN in linen": functools.partial(cnn, jax=linen_side.Cnn),
    "table": table,
}
