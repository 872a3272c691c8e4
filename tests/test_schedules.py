"""Schedules against formulas, and against optax and torch inside their horizon."""

import math
from collections.abc import Callable

import numpy as np
import optax
import pytest
import torch

from multibackend import schedules as s
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FORMULA, SCHEDULE_FLOAT32

UPDATES = range(130)
COSINE = s.Cosine(peak=0.3, total=100, final=0.01)
WARM = s.WarmupCosine(peak=0.3, warmup=10, total=100, final=0.01, start=0.02)
LINEAR = s.LinearWarmup(peak=0.3, warmup=10, start=0.02)
POLYNOMIAL = s.Polynomial(peak=0.3, total=100, power=2.0, final=0.01)
STEP = s.Step(initial=0.3, boundaries={20: 0.5, 60: 0.1})
TRAPEZOID = s.WarmupStableDecay(peak=0.3, warmup=10, decay=20, total=100, final=0.03)


def rates(schedule: Callable[[int], float]) -> np.ndarray:
    return np.array([float(schedule(update)) for update in UPDATES])


def half_cosine(u: int, start: int, end: int) -> float:
    return 0.01 + 0.29 * (1 + math.cos(math.pi * min(1.0, (u - start) / (end - start)))) / 2


def trapezoid(u: int) -> float:
    if u < 10:
        return 0.03 * u
    return 0.3 if u <= 80 else max(0.03, 0.3 - 0.27 * (u - 80) / 20)


FORMULAS = {
    "constant": (s.Constant(value=0.2), lambda u: 0.2),
    "linear warm-up": (LINEAR, lambda u: 0.02 + 0.028 * min(u, 10)),
    "cosine": (COSINE, lambda u: half_cosine(u, 0, 100)),
    "warm-up, cosine": (WARM, lambda u: 0.02 + 0.028 * u if u < 10 else half_cosine(u, 10, 100)),
    "polynomial": (POLYNOMIAL, lambda u: 0.01 + 0.29 * (1 - min(u, 100) / 100) ** 2),
    "step": (STEP, lambda u: 0.3 * (0.5 if u >= 20 else 1) * (0.1 if u >= 60 else 1)),
    "trapezoid": (TRAPEZOID, trapezoid),
    "trapezoid without decay": (s.WarmupStableDecay(peak=0.3, warmup=0, decay=0, total=5), lambda u: 0.3),
}
OPTAX = {
    "linear warm-up": (LINEAR, optax.linear_schedule(0.02, 0.3, 10)),
    "cosine": (COSINE, optax.cosine_decay_schedule(0.3, 100, alpha=0.01 / 0.3)),
    "warm-up, cosine": (WARM, optax.warmup_cosine_decay_schedule(0.02, 0.3, 10, 100, 0.01)),
    "polynomial": (POLYNOMIAL, optax.polynomial_schedule(0.3, 0.01, 2.0, 100)),
    "step": (STEP, optax.piecewise_constant_schedule(0.3, {20: 0.5, 60: 0.1})),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    """Each rate is the formula's, past the horizon the last one."""
    schedule, formula = FORMULAS[name]
    assert_arrays_match(rates(schedule), rates(formula), relative=FORMULA)


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name: str) -> None:
    """optax's schedule of the same arguments, which computes in float32."""
    schedule, theirs = OPTAX[name]
    assert_arrays_match(rates(schedule), rates(theirs), relative=SCHEDULE_FLOAT32)


def torch_rates(build: Callable, updates: int) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, found = build(optimizer), []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def test_torch() -> None:
    """torch's cosine inside its horizon (it rises again afterwards), and its multi-step."""
    cosine = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.01), 101)
    assert_arrays_match(rates(COSINE)[:101], cosine, relative=FORMULA, floor=1.0)
    steps = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 60], gamma=0.5), 130)
    ours = s.Step(initial=0.3, boundaries={20: 0.5, 60: 0.5})
    assert_arrays_match(rates(ours), steps, relative=FORMULA)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_python_float_at_every_update(name: str) -> None:
    """Never a numpy scalar, an int or a negative number."""
    for update in UPDATES:
        rate = FORMULAS[name][0](update)
        assert type(rate) is float
        assert rate >= 0


@pytest.mark.parametrize(("scaling", "power"), [("linear", 1.0), ("sqrt", 0.5)])
def test_batch_scaled(scaling: str, power: float) -> None:
    """The schedule's rate times (examples / base), or its root; of a number, the number's."""
    for rate in (0.3, COSINE):
        scaled = s.BatchScaled(learning_rate=rate, scaling=scaling, base=32, examples=lambda u: 8 * (1 + u % 5))
        expected = [s.learning_rate_at(rate, u) * (8 * (1 + u % 5) / 32) ** power for u in UPDATES]
        assert_arrays_match(rates(scaled), np.array(expected), relative=FORMULA)
