"""Golden traces across frameworks: recorded on one, held on the other, with dropout, BatchNorm and other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import multibackend as mb
from multibackend import golden
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import tolerance_for

BACKENDS = ("torch", "jax")
DATA = regression(30)


class TorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.drop, self.head = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.fc1(x)))))


class FlaxNet(nnx.Module):
    def __init__(self, epsilon: float, momentum: float, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=momentum, epsilon=epsilon, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.dropout(nnx.tanh(self.norm(self.dense(x)))))


def net(epsilon: float = 1e-5, momentum: float = 0.9) -> mb.Model:
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return FlaxNet(epsilon, momentum, rngs)

    return mb.Model(torch=TorchNet, jax=build, inputs="x", rename={"dense": "fc1"})


def experiment(**options: Any) -> mb.Experiment:
    arguments: dict[str, Any] = {
        "name": "net",
        "model": net(),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.Adam(learning_rate=1e-2),
        "train_data": DATA,
        "micro_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "precision": "float64",
    }
    return mb.Experiment(**{**arguments, **options})


@pytest.fixture(scope="module")
def traces() -> dict[str, golden.Golden]:
    """The same experiment recorded on each backend."""
    return {name: golden.record(experiment(), name, updates=6) for name in BACKENDS}


@pytest.mark.parametrize(("recorded", "now"), [("torch", "jax"), ("jax", "torch"), ("torch", "torch"), ("jax", "jax")])
def test_a_trace_of_one_framework_holds_the_other(recorded: str, now: str, traces: dict[str, golden.Golden]) -> None:
    """In float64 losses, gradients of each parameter, parameters and dropout masks agree; layers of other names too.

    The running variance is noted, and fails no run: flax keeps the biased one, torch the unbiased.
    """
    report = golden.check(traces[recorded], experiment(), now)
    assert report.losses.max() <= tolerance_for("float64").loss
    assert report.matches
    determined = {name: gap for name, gap in report.parameters.items() if report.golden.shares[name] > 1e-12}
    assert len(determined) == 5  # all but the bias in front of BatchNorm, whose gradient is nothing but rounding
    assert max(determined.values()) <= tolerance_for("float64").parameters
    assert report.golden.dropout_layers == ({"torch": "drop", "jax": "dropout"}[recorded],)
    assert report.identical is (recorded == now)
    assert [note.split()[1] for note in report.notes] == ([] if recorded == now else ["norm.running_var"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_recorded_gradients_are_those_of_the_framework(backend: str) -> None:
    """Of plain SGD with rate 1 an update is the gradient: its norms, by hand, are the recorded ones."""
    plain = experiment(model=net(), optimizer=mb.optimizers.SGD(learning_rate=1.0), dropout="portable")
    trace = golden.record(plain, backend, updates=1)
    trainer = mb.Trainer(plain, backend)
    start = {name: golden.draw(law, seed=0, name=name) for name, law in trace.laws.items()}
    trainer.load_parameters(start)
    trainer.fit(updates=1)
    for name, array in trainer.parameters().items():
        np.testing.assert_allclose(np.linalg.norm(start[name] - array), trace.gradients[name][0], rtol=1e-9, atol=1e-14)


def test_float32_is_held_to_its_own_bounds() -> None:
    trace = golden.record(experiment(precision="float32"), "torch", updates=3)
    report = golden.check(trace, experiment(precision="float32"), "jax")
    assert report.matches
    assert 0 < report.losses.max() <= tolerance_for("float32").loss


def other_loss(xp: Any, outputs: Any, batch: Any) -> Any:
    return 1.001 * (outputs - batch["y"]) ** 2


@pytest.mark.parametrize(
    ("change", "stage", "update", "what"),
    [
        (lambda: experiment(model=net(epsilon=1e-3)), "loss", 1, "loss"),
        (lambda: experiment(model=net(momentum=0.1)), "model state", 6, "norm.running_mean"),
        (lambda: experiment(loss=mb.losses.Custom(other_loss)), "loss", 1, "loss"),
        (lambda: experiment(optimizer=mb.optimizers.Adam(learning_rate=1e-2, eps=1e-4)), "loss", 2, "loss"),
        (lambda: experiment(optimizer=mb.optimizers.Adam(learning_rate=2e-2)), "update", 1, "learning_rate"),
        (lambda: experiment(train_data={**DATA, "x": DATA["x"] + 1e-3}), "data order", 1, "x"),
    ],
)
def test_a_mistake_on_the_other_side_is_found(
    change: Callable[[], mb.Experiment], stage: str, update: int, what: str, traces: dict[str, golden.Golden]
) -> None:
    """A layer's epsilon, a loss, an optimizer's epsilon, a rate, the data."""
    report = golden.check(traces["torch"], change(), "jax")
    found = report.first_divergence
    assert found is not None
    assert (found.stage, found.update, found.what) == (stage, update, what)
