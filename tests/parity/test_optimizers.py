"""Every optimizer against the equations of its docstring: 200 updates, 2000 parameters, ill-scaled gradients."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from support.reference import adam, sgd

import multibackend as mb
from multibackend.optimizers import SGD, Adam, AdamW, Optimizer
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import MANY_UPDATES, MANY_UPDATES_FLOAT32

UPDATES, SIZE = 200, 2000
RANDOM = np.random.default_rng(3)
START = RANDOM.normal(size=SIZE)
SCALES = 10.0 ** RANDOM.uniform(-6, 3, size=SIZE)
GRADIENTS = SCALES * RANDOM.normal(size=(UPDATES, SIZE))
SCHEDULE = mb.schedules.WarmupCosine(peak=0.02, warmup=20, total=UPDATES, final=0.001, start=0.001)


def case(spec: type[Optimizer], formula: Callable[..., np.ndarray], **options: object) -> tuple[Optimizer, Callable]:
    def expected() -> np.ndarray:
        extra = {"decoupled": True} if spec is AdamW else {}
        return formula(START, GRADIENTS, SCHEDULE, **options, **extra)

    return spec(learning_rate=SCHEDULE, **options), expected


CASES = {
    "sgd": case(SGD, sgd),
    "sgd, decay": case(SGD, sgd, weight_decay=0.03),
    "momentum": case(SGD, sgd, momentum=0.9),
    "momentum, decay": case(SGD, sgd, momentum=0.9, weight_decay=0.03),
    "nesterov": case(SGD, sgd, momentum=0.9, nesterov=True),
    "nesterov, decay": case(SGD, sgd, momentum=0.9, nesterov=True, weight_decay=0.03),
    "adam": case(Adam, adam),
    "adam, betas and eps": case(Adam, adam, beta1=0.8, beta2=0.95, eps=1e-3),
    "adam, beta1 0": case(Adam, adam, beta1=0.0),
    "adam, decay": case(Adam, adam, weight_decay=0.03),
    "adamw": case(AdamW, adam, weight_decay=0.01),
    "adamw, decay": case(AdamW, adam, weight_decay=0.3, beta2=0.99),
    "adamw, no decay": case(AdamW, adam, weight_decay=0.0),
}


class TorchVector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(SIZE))


class FlaxVector(nnx.Module):
    def __init__(self) -> None:
        self.p = nnx.Param(jax.numpy.zeros(SIZE))


MODEL = mb.Model(
    torch=TorchVector,
    jax=FlaxVector,
    call={"torch": lambda model, batch, train: model.p[None], "jax": lambda model, batch, train: model.p[...][None]},
)


def trained(backend: str, optimizer: Optimizer, precision: str) -> mb.Trainer:
    """The gradient of sum(p * g) is g, whatever p is."""
    experiment = mb.Experiment(
        model=MODEL,
        loss=lambda xp, outputs, batch: xp.sum(outputs * batch["g"], axis=-1),
        optimizer=optimizer,
        train_data={"g": GRADIENTS},
        micro_batch_size=1,
        shuffle=False,
        precision=precision,
    )
    trainer = mb.Trainer(experiment, backend)
    trainer.load_parameters({"p": START})
    trainer.fit(updates=UPDATES)
    return trainer


def assert_each_matches(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Each parameter relative to itself (or to 1, the size it started with): large ones hide no small ones."""
    size = 1 + np.abs(expected)
    assert_arrays_match(actual / size, expected / size, relative=relative, floor=1.0)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", CASES)
def test_float64_follows_the_docstring(name: str, backend: str) -> None:
    """200 updates with the rates of a schedule, to 1e-10 of each parameter."""
    optimizer, expected = CASES[name]
    actual = trained(backend, optimizer, "float64").parameters()["p"]
    assert_each_matches(actual, expected(), MANY_UPDATES)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", ["nesterov, decay", "adam, decay", "adamw"])
def test_float32_stays_near(name: str, backend: str) -> None:
    """A smoke test: float32 follows the same law."""
    optimizer, expected = CASES[name]
    trainer = trained(backend, optimizer, "float32")
    assert_each_matches(trainer.parameters()["p"], expected(), MANY_UPDATES_FLOAT32)


@pytest.mark.parametrize(("name", "slots"), [("momentum", 1), ("adam, decay", 2), ("adamw", 2)])
def test_slots_agree_and_cross_over(name: str, slots: int) -> None:
    """Optimizer slots have the same names and values on both, and a run may go on with the other's."""
    optimizer, _ = CASES[name]
    first, second = (trained(backend, optimizer, "float64") for backend in ("torch", "jax"))
    ours, theirs = first.snapshot(), second.snapshot()
    assert len(ours.optimizer) == slots
    for slot in ours.optimizer:
        scale = np.abs(ours.optimizer[slot]["p"]) + np.finfo(float).tiny
        ratio = theirs.optimizer[slot]["p"] / scale, ours.optimizer[slot]["p"] / scale
        assert_arrays_match(*ratio, relative=MANY_UPDATES, what=slot)
    second.restore(ours)
    first.fit(updates=UPDATES + 20)
    second.fit(updates=UPDATES + 20)
    assert_each_matches(second.parameters()["p"], first.parameters()["p"], MANY_UPDATES)
