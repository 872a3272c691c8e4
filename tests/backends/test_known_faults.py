"""Faults that other trainers have, each as the smallest case that shows it, with the number that is right.

The model is y = w * x with the outputs as loss, so the gradient of a window is the weighted mean of its x; SGD with
rate 1 then makes w the sum of what was subtracted.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import multibackend as mb
from multibackend.losses import Custom
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FORMULA

backends = pytest.mark.parametrize(
    ("backend", "execution"),
    [("torch", "eager"), ("jax", "scan"), ("jax", "dispatch")],
    ids=["torch", "jax:scan", "jax:dispatch"],
)


class TorchSlopes(torch.nn.Module):
    """`w` in every example, `rare` where the gate is open; never touched where it is shut for a whole micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.rare = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        outputs = x * self.w
        return outputs + gate * x * self.rare if bool(gate.any()) else outputs


class FlaxSlopes(nnx.Module):
    def __init__(self) -> None:
        self.w, self.rare = nnx.Param(jnp.zeros(1)), nnx.Param(jnp.zeros(1))

    def __call__(self, x: Any, gate: Any) -> Any:
        return x * self.w[...] + gate * x * self.rare[...]


MODEL = mb.Model(torch=TorchSlopes, jax=FlaxSlopes, inputs=("x", "gate"))
MEAN = Custom(lambda xp, outputs, batch: outputs, per="example")


def trained(
    backend: str, execution: str, x: list[float], *, steps: Any, gate: list[float] | None = None, **options: Any
) -> tuple[mb.Trainer, mb.FitResult]:
    updates = options.pop("updates", None)
    defaults: dict[str, Any] = {
        "loss": MEAN,
        "optimizer": mb.optimizers.SGD(learning_rate=1.0),
        "micro_batch_size": 1,
        "precision": "float64",
        "shuffle": False,
    }
    experiment = mb.Experiment(
        model=MODEL,
        train_data={"x": np.array(x), "gate": np.array(gate or [0.0] * len(x))},
        gradient_accumulation_steps=steps,
        **{**defaults, **options},
    )
    trainer = mb.Trainer(experiment, backend, execution=execution)
    return trainer, trainer.fit(epochs=1) if updates is None else trainer.fit(updates=updates)


def weight(trainer: mb.Trainer, name: str = "w") -> float:
    return float(trainer.parameters()[name][0])


def assert_is(actual: float, expected: float) -> None:
    assert_arrays_match(np.array(actual), np.array(expected), relative=FORMULA, floor=1.0)


@backends
def test_a_ragged_micro_batch_weighs_by_its_examples(backend: str, execution: str) -> None:
    """3 + 1 examples: their mean is 3, the mean of the two means 4."""
    trainer, _ = trained(backend, execution, [1.0, 2.0, 3.0, 6.0], steps=2, micro_batch_size=3)
    assert_is(weight(trainer), -3.0)


@backends
def test_the_tail_is_divided_by_what_it_has(backend: str, execution: str) -> None:
    """6 unit gradients in windows of 4: two updates of 1 each, where a tail divided by 4 makes half an update."""
    trainer, result = trained(backend, execution, [1.0] * 6, steps=4)
    assert_is(weight(trainer), -2.0)
    assert result.updates == 2


@backends
def test_the_tail_does_not_leak_into_the_next_epoch(backend: str, execution: str) -> None:
    """6 micro-batches a pass, windows of 4, two passes: 4 updates of 1, each with its own examples."""
    trainer, result = trained(backend, execution, [1.0] * 6, steps=4, updates=4)
    assert_is(weight(trainer), -4.0)
    assert result.history["examples"].tolist() == [4, 2, 4, 2]


@backends
def test_a_schedule_is_fed_updates(backend: str, execution: str) -> None:
    """Rate 1 for the first 4 updates, then 0; windows of 4: -4. Fed with micro-steps it would be -1."""
    sgd = mb.optimizers.SGD(learning_rate=lambda update: 1.0 if update < 4 else 0.0)
    trainer, _ = trained(backend, execution, [1.0] * 32, steps=4, optimizer=sgd)
    assert_is(weight(trainer), -4.0)


@backends
def test_the_moving_average_moves_once_per_update(backend: str, execution: str) -> None:
    """w is -1, -2, -3, -4 after the updates; e = (e + w) / 2 ends at -3.0625. Per micro-batch it would be nearer -4."""
    trainer, _ = trained(backend, execution, [1.0] * 16, steps=4, ema_decay=0.5)
    assert_is(float(trainer.ema_parameters()["w"][0]), -3.0625)


@backends
def test_a_nan_is_gone_with_its_window(backend: str, execution: str) -> None:
    """One NaN micro-batch, then two clean windows: the accumulator holds nothing of it."""
    x = [1.0, np.nan, 1.0, 1.0, *[1.0] * 8]
    trainer, result = trained(backend, execution, x, steps=4, on_nonfinite="skip")
    assert_is(weight(trainer), -2.0)
    assert [skipped.reason for skipped in result.skipped] == ["nonfinite"]


@backends
def test_a_parameter_unused_in_the_last_micro_batch_keeps_its_gradient(backend: str, execution: str) -> None:
    """Used in the first of two micro-batches only: half of its gradient, neither 0 nor left for the next window."""
    trainer, _ = trained(backend, execution, [1.0] * 4, steps=2, gate=[1.0, 0.0, 0.0, 0.0])
    assert_is(weight(trainer, "rare"), -0.5)


@backends
@pytest.mark.parametrize("steps", [1, 4])
def test_an_auxiliary_term_keeps_its_size(backend: str, execution: str, steps: int) -> None:
    """A mean-style term beside a per-example one: its gradient is 10 whatever k is, not 10 / k or 10 / examples."""
    terms = {"main": MEAN, "auxiliary": Custom(auxiliary, per="micro_batch", scale=10.0)}
    trainer, result = trained(backend, execution, [1.0] * 4, steps=steps, loss=terms, micro_batch_size=4 // steps)
    assert_is(weight(trainer), -11.0)
    assert result.history["loss/auxiliary"].tolist() == [0.0]


def auxiliary(xp: Any, outputs: Any, batch: Any) -> Any:
    return xp.mean(outputs)


@backends
def test_uneven_weights_are_divided_once_per_window(backend: str, execution: str) -> None:
    """Weights 3 and 1 in two micro-batches: (3 * 1 + 1 * 5) / 4 = 2, where the mean of means is 3."""
    loss = Custom(lambda xp, outputs, batch: outputs, weights="gate", per="weight")
    trainer, _ = trained(backend, execution, [1.0, 5.0], steps=2, gate=[3.0, 1.0], loss=loss)
    assert_is(weight(trainer), -2.0)


@backends
def test_a_schedule_of_k_changes_windows_and_compiles_nothing_new(backend: str, execution: str) -> None:
    """k = 4, then 2 from update 2 on: every update has its own number of examples, with one program."""
    trainer, result = trained(backend, execution, [1.0] * 12, steps={0: 4, 2: 2})
    assert result.history["examples"].tolist() == [4, 4, 2, 2]
    assert_is(weight(trainer), -4.0)
    constant, _ = trained(backend, execution, [1.0] * 12, steps=4)
    assert trainer.program.compilations() == constant.program.compilations()
