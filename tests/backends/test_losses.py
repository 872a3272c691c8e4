"""Every loss, values and gradients, against torch.nn.functional and against a numpy formula, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import multibackend_jax.step.losses
import multibackend_torch.step.losses
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from multibackend_jax.model.precision import Precision

from multibackend.losses import BinaryCrossEntropy, CrossEntropy, Custom, Huber, Loss, MeanSquaredError
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FORMULA

Array = np.ndarray
RANDOM = np.random.default_rng(11)
OUTPUTS = 3 * RANDOM.normal(size=(6, 4))
SCALARS = {
    "y": RANDOM.normal(size=(6, 4)),
    "w": RANDOM.uniform(0, 2, size=6) * (np.arange(6) != 2),
    "w2": RANDOM.uniform(0, 2, size=(6, 4)),
    "p": RANDOM.uniform(size=(6, 4)),
}
SCALARS["y"][0, :2] = OUTPUTS[0, :2]  # residual 0
SCALARS["y"][1, 0] = OUTPUTS[1, 0] + 0.7  # residual at Huber's bend
LOGITS = 3 * RANDOM.normal(size=(6, 3, 4))
LABELS = {
    "t": np.where(RANDOM.uniform(size=(6, 3)) < 0.3, -100, RANDOM.integers(0, 4, size=(6, 3))),
    "t7": np.where(RANDOM.uniform(size=(6, 3)) < 0.3, 7, RANDOM.integers(0, 4, size=(6, 3))),
    "w": SCALARS["w"],
    "w2": RANDOM.uniform(0, 2, size=(6, 3)),
}
CLASSES = (0.5, 2.0, 0.0, 1.5)
EVERY = slice(None)


@dataclass
class Case:
    """A loss; its torch functional giving values [batch, ...]; its numpy formula giving (values, slopes, weights)."""

    loss: Loss
    outputs: Array
    batch: dict[str, Array]
    functional: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]
    formula: Callable[[Array, dict[str, Array]], tuple[Array, Array, Array]]


def squared(o: Array, b: dict[str, Array]) -> tuple[Array, Array, Array]:
    return (o - b["y"]) ** 2, 2 * (o - b["y"]), np.ones_like(o)


def huber(o: Array, b: dict[str, Array]) -> tuple[Array, Array, Array]:
    r = o - b["y"]
    inside = np.abs(r) <= 0.7
    values = np.where(inside, r**2 / 2, 0.7 * (np.abs(r) - 0.35))
    return values, np.where(inside, r, 0.7 * np.sign(r)), np.ones_like(o)


def binary(o: Array, b: dict[str, Array]) -> tuple[Array, Array, Array]:
    return np.logaddexp(0, o) - b["p"] * o, 1 / (1 + np.exp(-o)) - b["p"], np.ones_like(o)


def weighted(formula: Callable, name: str) -> Callable:
    def with_weights(o: Array, b: dict[str, Array]) -> tuple[Array, Array, Array]:
        values, slopes, weights = formula(o, b)
        given = b[name].reshape(b[name].shape + (1,) * (weights.ndim - b[name].ndim))
        return values, slopes, weights * given

    return with_weights


def entropy(name: str, ignore: int, smoothing: float = 0.0, classes: tuple[float, ...] | None = None) -> Callable:
    def formula(o: Array, b: dict[str, Array]) -> tuple[Array, Array, Array]:
        used = b[name] != ignore
        label = np.where(used, b[name], 0)
        logs = o - np.log(np.exp(o).sum(axis=-1, keepdims=True))
        q = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
        weights = used * (np.array(classes)[label] if classes else 1.0)
        return -(q * logs).sum(axis=-1), np.exp(logs) - q, weights

    return formula


def cross(name: str, **options: object) -> Callable:
    def functional(o: torch.Tensor, b: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(o.flatten(0, 1), b[name].flatten(), **options)

    return functional


def mean(kernel: Callable, name: str, weights: str | None = None, **options: object) -> Callable:
    def functional(o: torch.Tensor, b: dict[str, torch.Tensor]) -> torch.Tensor:
        if weights is None:
            return kernel(o, b[name], **options)
        w = b[weights].reshape(b[weights].shape + (1,) * (o.ndim - b[weights].ndim)).expand(o.shape)
        return (w * kernel(o, b[name], reduction="none", **options)).sum() / w.sum()

    return functional


def cross_weighted(name: str, weights: str) -> Callable:
    def functional(o: torch.Tensor, b: dict[str, torch.Tensor]) -> torch.Tensor:
        values = F.cross_entropy(o.movedim(-1, 1), b[name], reduction="none")
        w = b[weights].reshape(b[weights].shape + (1,) * (2 - b[weights].ndim)) * (b[name] != -100)
        return (w * values).sum() / w.sum()

    return functional


BCE = F.binary_cross_entropy_with_logits
TABLE = torch.tensor(CLASSES, dtype=torch.float64)
CASES = {
    "mse": Case(MeanSquaredError(target="y"), OUTPUTS, SCALARS, mean(F.mse_loss, "y"), squared),
    "mse, weights": Case(
        MeanSquaredError(target="y", weights="w"), OUTPUTS, SCALARS, mean(F.mse_loss, "y", "w"), weighted(squared, "w")
    ),
    "mse, weights of scalars": Case(
        MeanSquaredError(target="y", weights="w2"),
        OUTPUTS,
        SCALARS,
        mean(F.mse_loss, "y", "w2"),
        weighted(squared, "w2"),
    ),
    "huber": Case(Huber(target="y", delta=0.7), OUTPUTS, SCALARS, mean(F.huber_loss, "y", delta=0.7), huber),
    "huber, weights": Case(
        Huber(target="y", delta=0.7, weights="w"),
        OUTPUTS,
        SCALARS,
        mean(F.huber_loss, "y", "w", delta=0.7),
        weighted(huber, "w"),
    ),
    "bce": Case(BinaryCrossEntropy(target="p"), OUTPUTS, SCALARS, mean(BCE, "p"), binary),
    "bce, large logits": Case(BinaryCrossEntropy(target="p"), 40 * OUTPUTS, SCALARS, mean(BCE, "p"), binary),
    "bce, weights": Case(
        BinaryCrossEntropy(target="p", weights="w"), OUTPUTS, SCALARS, mean(BCE, "p", "w"), weighted(binary, "w")
    ),
    "ce": Case(CrossEntropy(target="t"), LOGITS, LABELS, cross("t"), entropy("t", -100)),
    "ce, ignore 7": Case(
        CrossEntropy(target="t7", ignore_index=7), LOGITS, LABELS, cross("t7", ignore_index=7), entropy("t7", 7)
    ),
    "ce, smoothing": Case(
        CrossEntropy(target="t", label_smoothing=0.2),
        LOGITS,
        LABELS,
        cross("t", label_smoothing=0.2),
        entropy("t", -100, 0.2),
    ),
    "ce, classes": Case(
        CrossEntropy(target="t", class_weights=CLASSES),
        LOGITS,
        LABELS,
        cross("t", weight=TABLE),
        entropy("t", -100, classes=CLASSES),
    ),
    "ce, weights": Case(
        CrossEntropy(target="t", weights="w"),
        LOGITS,
        LABELS,
        cross_weighted("t", "w"),
        weighted(entropy("t", -100), "w"),
    ),
    "ce, weights of tokens": Case(
        CrossEntropy(target="t", weights="w2"),
        LOGITS,
        LABELS,
        cross_weighted("t", "w2"),
        weighted(entropy("t", -100), "w2"),
    ),
    "custom": Case(
        Custom(lambda xp, outputs, batch: (outputs - batch["y"]) ** 2), OUTPUTS, SCALARS, mean(F.mse_loss, "y"), squared
    ),
    "custom with weights": Case(
        Custom(lambda xp, outputs, batch: ((outputs - batch["y"]) ** 2, batch["w"])),
        OUTPUTS,
        SCALARS,
        mean(F.mse_loss, "y", "w"),
        weighted(squared, "w"),
    ),
    "custom with a field of weights": Case(
        Custom(lambda xp, outputs, batch: (outputs - batch["y"]) ** 2, weights="w"),
        OUTPUTS,
        SCALARS,
        mean(F.mse_loss, "y", "w"),
        weighted(squared, "w"),
    ),
    "custom, array functions": Case(
        Custom(lambda xp, outputs, batch: xp.sum(xp.square(outputs - batch["y"]), axis=-1) / 4),
        OUTPUTS,
        SCALARS,
        mean(F.mse_loss, "y"),
        squared,
    ),
    "custom, native": Case(
        Custom(
            {
                "torch": lambda outputs, batch: F.mse_loss(outputs, batch["y"], reduction="none"),
                "jax": lambda outputs, batch: jnp.square(outputs - batch["y"]),
            }
        ),
        OUTPUTS,
        SCALARS,
        mean(F.mse_loss, "y"),
        squared,
    ),
}


def expected_by_torch(case: Case) -> tuple[float, Array]:
    outputs = torch.tensor(case.outputs, requires_grad=True)
    value = case.functional(outputs, {name: torch.tensor(array) for name, array in case.batch.items()})
    value.backward()
    return value.item(), outputs.grad.numpy()


def expected_by_formula(case: Case) -> tuple[float, Array]:
    values, slopes, weights = case.formula(case.outputs, case.batch)
    share = weights / weights.sum()
    return float((share * values).sum()), share.reshape(share.shape + (1,) * (slopes.ndim - share.ndim)) * slopes


def measured_on_torch(case: Case) -> tuple[float, Array]:
    outputs = torch.tensor(case.outputs, requires_grad=True)
    batch = {name: torch.tensor(array) for name, array in case.batch.items()}
    total, weight = multibackend_torch.step.losses.weighted_sum(case.loss, outputs, batch)
    divisor = case.loss.weight_sums(case.batch, 0) if weight is None else weight.item()
    (total / float(divisor)).backward()
    return total.item() / float(divisor), outputs.grad.numpy()


def measured_on_jax(case: Case) -> tuple[float, Array]:
    with Precision("float64").scope():
        batch = {name: jnp.asarray(array) for name, array in case.batch.items()}

        def mean_loss(outputs: jax.Array) -> jax.Array:
            total, weight = multibackend_jax.step.losses.weighted_sum(case.loss, outputs, batch)
            return total / weight

        value, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(case.outputs))
        return float(value), np.asarray(gradient)


@pytest.mark.parametrize("measure", [measured_on_torch, measured_on_jax])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(name: str, measure: Callable[[Case], tuple[float, Array]]) -> None:
    """The weighted mean and its gradient equal torch's functional and the formula of the docstring."""
    value, gradient = measure(CASES[name])
    for expected in (expected_by_torch(CASES[name]), expected_by_formula(CASES[name])):
        assert_arrays_match(value, expected[0], relative=FORMULA, what="value")
        assert_arrays_match(gradient, expected[1], relative=FORMULA, what="gradient")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not isinstance(case.loss, Custom)])
def test_host_and_device_agree_on_weights(name: str) -> None:
    """The divisor that the host computes from the batch is the sum of weights that the device sees."""
    case = CASES[name]
    with Precision("float64").scope():
        batch = {field: jnp.asarray(array) for field, array in case.batch.items()}
        _, weight = multibackend_jax.step.losses.weighted_sum(case.loss, jnp.asarray(case.outputs), batch)
    assert_arrays_match(case.loss.weight_sums(case.batch, 0), np.asarray(weight), relative=FORMULA)
    by_example = case.loss.weight_sums(case.batch, 1)
    assert_arrays_match(by_example.sum(), np.asarray(weight), relative=FORMULA)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64"])
def test_labels_of_every_integer_type(dtype: str) -> None:
    """A label is a number, not a type: 156 in uint8, whose bits are those of -100, is class 156."""
    labels = np.array([0, 3, 100 if dtype == "int8" else 156]).astype(dtype)
    case = Case(CrossEntropy(target="t"), np.linspace(-2, 2, 3 * 160).reshape(3, 160), {"t": labels}, EVERY, EVERY)
    logs = case.outputs - np.log(np.exp(case.outputs).sum(axis=1, keepdims=True))
    expected = -logs[np.arange(3), labels.astype(int)].mean()
    for measure in (measured_on_torch, measured_on_jax):
        batch = {"t": labels.astype(np.int64)} if measure is measured_on_torch and dtype == "uint16" else {"t": labels}
        value, _ = measure(Case(case.loss, case.outputs, batch, EVERY, EVERY))
        assert_arrays_match(value, expected, relative=FORMULA, what=measure.__name__)
