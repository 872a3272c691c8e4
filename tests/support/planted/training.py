"""Mistakes outside the network: losses, optimizers, clipping, schedules, data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional as F

import multibackend as mb
from support.planted.pairs import ROWS, TEXT, Mistake, bigram, table

__all__ = ["TRAINING"]

RATE = 0.01
AdamW, SGD = mb.optimizers.AdamW, mb.optimizers.SGD


def apart(first: Mapping[str, Any], second: Mapping[str, Any], pair: Callable[..., mb.Experiment] = bigram) -> Any:
    """The same pair, described apart for each backend."""
    return {"torch": pair(**first), "jax": pair(**second)}


def native(torch_builder: Callable[..., Any], jax_builder: Callable[..., Any]) -> mb.Experiment:
    return bigram(optimizer=mb.optimizers.Native(learning_rate=RATE, torch=torch_builder, jax=jax_builder))


def uncorrected_adam() -> optax.GradientTransformation:
    """Adam whose author forgot the bias correction."""

    def init(parameters: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters)

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], gradients)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], gradients)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    return optax.GradientTransformation(init, update)


def token_losses(backend: str, z: Any, batch: Any) -> Any:
    """[n, t]."""
    if backend == "torch":
        return F.cross_entropy(z.flatten(0, 1), batch["label"].flatten().long(), reduction="none").view(z.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(z, batch["label"])


def losses(torch_way: str, jax_way: str) -> mb.losses.Custom:
    ways: dict[str, Callable[[Any], Any]] = {
        "mean": lambda values: values,
        "sum": lambda values: values * float(np.prod(values.shape)),
        "mean over examples": lambda values: values.sum(-1),
    }
    return mb.losses.Custom(
        {
            "torch": lambda z, batch: ways[torch_way](token_losses("torch", z, batch)),
            "jax": lambda z, batch: ways[jax_way](token_losses("jax", z, batch)),
        }
    )


def two_losses(torch_way: str, jax_way: str) -> mb.Experiment:
    return bigram(loss=losses(torch_way, jax_way))


def smoothed() -> Any:
    plain, soft = (mb.losses.CrossEntropy(target="label", label_smoothing=s) for s in (0.0, 0.1))
    return apart({"loss": plain}, {"loss": soft})


def padding_counted() -> Any:
    """Label 0 is padding, which one side counts."""
    one, other = (mb.losses.CrossEntropy(target="label", ignore_index=index) for index in (0, -100))
    return apart({"loss": one}, {"loss": other})


def optimizers(first: Any, second: Any, **both: Any) -> Any:
    return apart({"optimizer": first, **both}, {"optimizer": second, **both})


def warmup(ahead: int) -> Any:
    schedule = mb.schedules.LinearWarmup(peak=RATE, warmup=10)
    return SGD(learning_rate=lambda update: schedule(update + ahead + 1))


def reordered() -> Any:
    """The same examples, every two neighbours exchanged."""
    order = np.arange(8) ^ 1
    return apart({}, {"train_data": {name: array[order] for name, array in TEXT.items()}})


def unscaled() -> Any:
    rows = {**ROWS, "x": ROWS["x"] * 255.0}
    return apart({}, {"train_data": rows}, table)


def _row(build: Callable[..., Any], stage: str, what: str, cause: str, *arguments: Any, **options: Any) -> Mistake:
    return Mistake(functools.partial(build, *arguments, **options), stage, what, cause)


TRAINING: dict[str, Mistake] = {
    "loss summed": _row(two_losses, "loss", "loss", "loss reduction", "mean", "sum"),
    "loss averaged over examples": _row(two_losses, "loss", "loss", "loss reduction", "mean", "mean over examples"),
    "label smoothing": _row(smoothed, "loss", "loss", "label smoothing"),
    "padding label counted": _row(padding_counted, "loss", "loss", "ignored label"),
    "weight decay": _row(
        optimizers,
        "update",
        "embed.weight",
        "weight decay",
        AdamW(learning_rate=RATE, weight_decay=0.01),
        AdamW(learning_rate=RATE, weight_decay=0.0001),
    ),
    "weight decay by the libraries' defaults": _row(
        native,
        "update",
        "embed.weight",
        "weight decay",
        torch.optim.AdamW,
        lambda: optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(1e-4)),
    ),
    "coupled weight decay": _row(
        optimizers,
        "update",
        "embed.weight",
        "coupling of weight decay",
        AdamW(learning_rate=RATE, weight_decay=0.01),
        mb.optimizers.Adam(learning_rate=RATE, weight_decay=0.01),
    ),
    "epsilon in the root": _row(
        native,
        "update",
        "embed.weight",
        "optimizer epsilon's place",
        torch.optim.Adam,
        lambda: optax.scale_by_adam(eps=0.0, eps_root=1e-8),
    ),
    "beta2": _row(
        optimizers,
        "update",
        "embed.weight",
        "optimizer beta2",
        AdamW(learning_rate=RATE, beta2=0.999, weight_decay=0.01),
        AdamW(learning_rate=RATE, beta2=0.95, weight_decay=0.01),
    ),
    "bias correction forgotten": _row(
        native, "update", "embed.weight", "bias correction", torch.optim.Adam, uncorrected_adam
    ),
    "Nesterov": _row(
        optimizers,
        "update",
        "embed.weight",
        "Nesterov momentum",
        SGD(learning_rate=RATE, momentum=0.9, nesterov=True),
        SGD(learning_rate=RATE, momentum=0.9),
    ),
    "momentum": _row(
        optimizers,
        "update",
        "embed.weight",
        "optimizer momentum",
        SGD(learning_rate=RATE, momentum=0.9),
        SGD(learning_rate=RATE, momentum=0.99),
    ),
    "schedule one update ahead": _row(optimizers, "update", "embed.weight", "learning rate", warmup(0), warmup(1)),
    "clip value": _row(
        lambda: apart(
            {"optimizer": SGD(learning_rate=RATE), "max_grad_norm": 0.1},
            {"optimizer": SGD(learning_rate=RATE), "max_grad_norm": 0.2},
        ),
        "clip",
        "clip factor",
        "clip value",
    ),
    "clip by value for norm": _row(
        lambda: apart(
            {"optimizer": SGD(learning_rate=RATE), "max_grad_norm": 0.1},
            {"optimizer": mb.optimizers.Native(learning_rate=RATE, jax=lambda: optax.clip(0.01))},
        ),
        "clip",
        "clip factor",
        "gradient clipping",
    ),
    "shuffled on one side": _row(
        lambda: apart({"shuffle": False}, {"shuffle": True}), "data order", "tokens", "data order"
    ),
    "examples reordered": _row(reordered, "data order", "tokens", "data order"),
    "pixels not divided by 255": _row(unscaled, "data order", "x", "data values"),
}
