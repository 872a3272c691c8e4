"""`mb.summary`: each layer with what it learns and how large it is, before anything is trained."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from support import resume_models
from support.variants import STUB

import multibackend as mb
from multibackend.testing.conformance.problems import regression

BACKENDS = ("torch", "jax")


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_totals_and_memory(backend: str) -> None:
    """A frozen group shows at its layer and in the totals; running statistics are state and no parameters."""
    optimizer = mb.optimizers.SGD(learning_rate=0.1, groups=[mb.optimizers.Group("stem.*", frozen=True)])
    summary = mb.summary(resume_models.experiment(optimizer=optimizer), backend)
    layers = {layer.name: layer for layer in summary.layers}
    assert [name for name in layers if name] == ["stem", "norm", "drop", "head"]
    assert [layer.parameters for layer in layers.values() if layer.name] == [15, 10, 0, 12]
    assert layers["head"].output_shapes == ((4, 2),)
    assert layers["stem"].trainable == 0
    assert layers["norm"].state >= 10  # torch counts batches too
    assert summary.parameters == 37
    assert summary.trainable == 22
    assert summary.frozen == ("stem.weight",)
    assert summary.bytes == sum(layer.bytes for layer in summary.layers)
    assert summary.memory is not None
    assert summary.memory > summary.bytes
    printed = str(summary)
    assert "stem" in printed
    assert "37 parameters, 59.5 % of them trained" in printed
    assert "frozen by a group: stem.weight" in printed
    assert "memory of training on a micro-batch: about" in printed
    assert "<table>" in summary._repr_html_()


class TorchTied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.unused = torch.nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.first(x)))


class NnxTied(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.unused = nnx.Linear(2, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(self.first(x)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_parameters_count_once_and_uncalled_ones_are_shown(backend: str) -> None:
    data: dict[str, Any] = {"x": np.ones((8, 3)), "y": np.ones((8, 3))}
    described = mb.Experiment(
        model=mb.Model(torch=TorchTied, jax=NnxTied, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=data,
        micro_batch_size=4,
    )
    summary = mb.summary(described, backend, memory=False)
    layers = {layer.name: layer for layer in summary.layers}
    assert summary.parameters == 9 + 15
    assert layers["first"].parameters + layers["second"].parameters == 9
    assert layers["first"].calls == 2
    assert layers["unused"].calls == 0
    assert layers["unused"].parameters == 15
    assert summary.memory is None
    assert "memory" not in str(summary)


def test_a_backend_that_tells_little() -> None:
    """No layers and no memory are known of it; the parameters are."""
    summary = mb.summary(STUB.experiment(regression(10)), "stub")
    assert [(layer.name, layer.parameters) for layer in summary.layers] == [("", 8)]
    assert "not known, for the backend 'stub' does not tell" in str(summary)
