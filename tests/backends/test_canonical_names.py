"""Canonical names and layouts of Flax parameters: those of the layers are torch's, those of the user stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import ParameterMatchError


class TorchScaled(torch.nn.Module):
    """A Linear, then parameters of its own that are called as Flax calls those of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 4)
        self.scale = torch.nn.Parameter(torch.arange(4.0))
        self.kernel = torch.nn.Parameter(torch.arange(16.0).reshape(4, 4) / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.fc(x) * self.scale) @ self.kernel


class NnxScaled(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(4))
        self.kernel = nnx.Param(jnp.ones((4, 4)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return (self.fc(x) * self.scale[...]) @ self.kernel[...]


class LinenScaled(linen.Module):
    """The same in linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", linen.initializers.ones, (4,))
        kernel = self.param("kernel", linen.initializers.ones, (4, 4))
        return (linen.Dense(4, name="fc")(x) * scale) @ kernel


def experiment(build_flax: Any) -> mb.Experiment:
    rng = np.random.default_rng(0)
    return mb.Experiment(
        model=mb.Model(torch=TorchScaled, jax=build_flax, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.Adam(learning_rate=1e-2),
        train_data={"x": rng.normal(size=(12, 3)), "y": rng.normal(size=(12, 4))},
        micro_batch_size=4,
        precision="float64",
    )


@pytest.mark.parametrize("build_flax", [NnxScaled, LinenScaled])
def test_the_users_own_leaves_keep_name_and_layout(build_flax: Any) -> None:
    """`kernel` and `scale` of a user's module are no weights of a layer: nothing is renamed or transposed."""
    report = mb.compare(experiment(build_flax), updates=5, executions=QUICK)
    assert sorted(report.parameter_differences) == ["fc.bias", "fc.weight", "kernel", "scale"]
    assert report.matches, report.first_divergence


@pytest.mark.parametrize("build_flax", [NnxScaled, LinenScaled])
def test_parameters_of_one_backend_load_into_the_other(build_flax: Any) -> None:
    """Values cross over in canonical layout, bit for bit, either way."""
    torch_trainer, jax_trainer = (mb.Trainer(experiment(build_flax), name) for name in ("torch", "jax"))
    jax_trainer.load_parameters(torch_trainer.parameters())
    loaded = jax_trainer.parameters()
    for name, array in torch_trainer.parameters().items():
        np.testing.assert_array_equal(loaded[name], array)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_loading_refuses_what_does_not_pair_up(backend: str) -> None:
    """A missing name, an unknown one and a wrong shape are each reported with the name."""
    trainer = mb.Trainer(experiment(NnxScaled), backend)
    good = trainer.parameters()
    without = {name: array for name, array in good.items() if name != "fc.bias"}
    for bad, name in (
        (without, "fc.bias"),
        ({**good, "fc.extra": np.ones(2)}, "fc.extra"),
        ({**good, "fc.weight": np.ones((3, 4))}, "fc.weight"),
    ):
        with pytest.raises(ParameterMatchError, match=name):
            trainer.load_parameters(bad)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_state_of_another_optimizer_is_refused(backend: str) -> None:
    """Adam's moments do not restore into SGD with momentum; the message names the slots of both."""
    adam = mb.Trainer(experiment(NnxScaled), backend)
    adam.fit(updates=2)
    sgd = mb.Trainer(
        experiment(NnxScaled).replace(optimizer=mb.optimizers.SGD(learning_rate=0.1, momentum=0.9)), backend
    )
    with pytest.raises(ParameterMatchError, match=r"exp_avg.*momentum_buffer"):
        sgd.restore(adam.snapshot())
