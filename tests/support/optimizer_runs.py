"""Every optimizer with its formula, and runs of it on gradients that do not depend on the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import multibackend as mb
from multibackend import optimizers
from support import formulas

BACKENDS = ("torch", "jax")
UPDATES, SIZE = 200, 2000
RANDOM = np.random.default_rng(3)
START = RANDOM.normal(size=SIZE)
SCALES = 10.0 ** RANDOM.uniform(-6, 3, size=SIZE)
GRADIENTS = SCALES * RANDOM.normal(size=(UPDATES, SIZE))
SCHEDULE = mb.schedules.WarmupCosine(peak=0.02, warmup=20, total=UPDATES, final=0.001, start=0.001)


@dataclass(frozen=True)
class Case:
    """A spec with options, and the formula of the same options."""

    spec: Callable[..., optimizers.Optimizer]
    formula: Callable[..., formulas.Result]
    options: dict[str, Any]
    shape: tuple[int, ...] = (SIZE,)

    def optimizer(self, **more: Any) -> optimizers.Optimizer:
        return self.spec(learning_rate=SCHEDULE, **self.options, **more)

    @functools.cached_property
    def expected(self) -> formulas.Result:
        """The parameters and the slots after 200 updates."""
        extra = {} if len(self.shape) == 1 else {"shape": self.shape}
        return self.formula(START, GRADIENTS, SCHEDULE, **self.options, **extra)

    def trained(self, backend: str, precision: str = "float64", updates: int = UPDATES) -> mb.Trainer:
        """A trainer after `updates` updates from `START`."""
        return trained(backend, self.optimizer(), precision, updates, self.shape)


def case(spec: Callable[..., optimizers.Optimizer], formula: Callable[..., formulas.Result], **options: Any) -> Case:
    return Case(spec, formula, options)


CASES = {
    "SGD": case(optimizers.SGD, formulas.sgd),
    "SGD, decay": case(optimizers.SGD, formulas.sgd, weight_decay=0.03),
    "SGD, momentum": case(optimizers.SGD, formulas.sgd, momentum=0.9),
    "SGD, momentum, decay": case(optimizers.SGD, formulas.sgd, momentum=0.9, weight_decay=0.03),
    "SGD, nesterov": case(optimizers.SGD, formulas.sgd, momentum=0.9, nesterov=True),
    "SGD, nesterov, decay": case(optimizers.SGD, formulas.sgd, momentum=0.9, nesterov=True, weight_decay=0.03),
    "Adam": case(optimizers.Adam, formulas.adam),
    "Adam, betas and eps": case(optimizers.Adam, formulas.adam, beta1=0.8, beta2=0.95, eps=1e-3),
    "Adam, beta1 0": case(optimizers.Adam, formulas.adam, beta1=0.0),
    "Adam, decay": case(optimizers.Adam, formulas.adam, weight_decay=0.03),
    "Adam, amsgrad": case(optimizers.Adam, formulas.adam, amsgrad=True, beta2=0.9, weight_decay=0.03),
    "AdamW": case(optimizers.AdamW, formulas.adamw),
    "AdamW, decay": case(optimizers.AdamW, formulas.adamw, weight_decay=0.3, beta2=0.99),
    "AdamW, no decay": case(optimizers.AdamW, formulas.adamw, weight_decay=0.0),
    "AdamW, amsgrad": case(optimizers.AdamW, formulas.adamw, amsgrad=True, beta2=0.9, weight_decay=0.1),
    "Adamax": case(optimizers.Adamax, formulas.adamax),
    "Adamax, decay": case(optimizers.Adamax, formulas.adamax, beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.03),
    "NAdam": case(optimizers.NAdam, formulas.nadam),
    "NAdam, decay": case(optimizers.NAdam, formulas.nadam, momentum_decay=0.1, beta2=0.99, weight_decay=0.03),
    "NAdam, no schedule": case(optimizers.NAdam, formulas.nadam, momentum_decay=0.0),
    "RAdam": case(optimizers.RAdam, formulas.radam),
    "RAdam, decay": case(optimizers.RAdam, formulas.radam, beta1=0.8, beta2=0.97, eps=1e-3, weight_decay=0.03),
    "RAdam, never rectified": case(optimizers.RAdam, formulas.radam, beta2=0.6),
    "RMSprop": case(optimizers.RMSprop, formulas.rmsprop),
    "RMSprop, momentum, decay": case(optimizers.RMSprop, formulas.rmsprop, momentum=0.9, weight_decay=0.03),
    "RMSprop, centered": case(optimizers.RMSprop, formulas.rmsprop, centered=True, beta2=0.9, eps=1e-3),
    "RMSprop, centered, momentum": case(optimizers.RMSprop, formulas.rmsprop, centered=True, momentum=0.8),
    "Adagrad": case(optimizers.Adagrad, formulas.adagrad),
    "Adagrad, accumulator": case(
        optimizers.Adagrad, formulas.adagrad, initial_accumulator=0.1, eps=1e-3, weight_decay=0.03
    ),
    "Adadelta": case(optimizers.Adadelta, formulas.adadelta),
    "Adadelta, decay": case(optimizers.Adadelta, formulas.adadelta, rho=0.95, eps=1e-4, weight_decay=0.03),
    "Lion": case(optimizers.Lion, formulas.lion),
    "Lion, decay": case(optimizers.Lion, formulas.lion, beta1=0.8, beta2=0.95, weight_decay=0.1),
    "Muon, wide matrix": Case(optimizers.Muon, formulas.muon, {}, (40, 50)),
    "Muon, tall matrix": Case(
        optimizers.Muon, formulas.muon, {"momentum": 0.8, "nesterov": False, "weight_decay": 0.1}, (80, 25)
    ),
}


class TorchArray(torch.nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(shape))


class FlaxArray(nnx.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.p = nnx.Param(jax.numpy.zeros(shape))


def one_array(shape: tuple[int, ...]) -> mb.Model:
    """A model of one parameter p, which it returns, flat: [1, size]."""
    return mb.Model(
        torch=functools.partial(TorchArray, shape),
        jax=functools.partial(FlaxArray, shape),
        call={
            "torch": lambda model, batch, train: model.p.reshape(1, -1),
            "jax": lambda model, batch, train: model.p[...].reshape(1, -1),
        },
    )


def experiment(
    optimizer: optimizers.Optimizer, precision: str = "float64", shape: tuple[int, ...] = (SIZE,), **options: Any
) -> mb.Experiment:
    """The gradient of sum(p * g) is g, whatever p is."""
    return mb.Experiment(
        model=one_array(shape),
        loss=lambda xp, outputs, batch: xp.sum(outputs * batch["g"], axis=-1),
        optimizer=optimizer,
        train_data={"g": GRADIENTS},
        micro_batch_size=1,
        shuffle=False,
        precision=precision,
        **options,
    )


def trained(
    backend: str,
    optimizer: optimizers.Optimizer,
    precision: str = "float64",
    updates: int = UPDATES,
    shape: tuple[int, ...] = (SIZE,),
) -> mb.Trainer:
    """A trainer after `updates` updates from `START`."""
    trainer = mb.Trainer(experiment(optimizer, precision, shape), backend)
    trainer.load_parameters({"p": START.reshape(shape)})
    trainer.fit(updates=updates)
    return trainer


def largest_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of each parameter relative to itself (or to 1, the size it started with): large ones hide no small ones."""
    return float((np.abs(actual - expected) / (1 + np.abs(expected))).max())
