"""What a user's own code raises is told by its role, its layer and its place, and stays catchable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import multibackend as mb
from multibackend.core.user_code import Layer, add_origin, user_code
from multibackend.errors import DataError, OutOfMemoryError, UserCodeError
from multibackend.testing.conformance.problems import regression

DATA = regression(12)


class OwnError(Exception):
    """A user's own class."""


def trainer(backend: str, build: Callable[..., Any], **changes: Any) -> mb.Trainer:
    arguments: dict[str, Any] = {
        "model": mb.Model(inputs="x", **{backend: build}),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.SGD(learning_rate=0.01),
        "train_data": DATA,
        "micro_batch_size": 3,
    }
    mode = {"execution": "dispatch"} if backend == "jax" else {}
    return mb.Trainer(mb.Experiment(**{**arguments, **changes}), backend, **mode)


def torch_blocks() -> Any:
    import torch  # noqa: PLC0415

    return torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()), torch.nn.Linear(4, 2))


def nnx_blocks(rngs: Any) -> Any:
    from flax import nnx  # noqa: PLC0415

    inner = nnx.Sequential(nnx.Linear(3, 5, rngs=rngs), nnx.relu)
    return nnx.Sequential(inner, nnx.Linear(4, 2, rngs=rngs))


def linen_blocks() -> Any:
    from flax import linen  # noqa: PLC0415

    class Scaled(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return x * self.param("scale", linen.initializers.ones, (4,))

    return linen.Sequential([linen.Dense(5), Scaled()])


@pytest.mark.parametrize(
    ("backend", "build", "layer", "words"),
    [
        ("torch", torch_blocks, "1", ("Linear, weight [2, 4], bias [2]", "float32 [3, 5]")),
        ("jax", nnx_blocks, "layers.1", ("Linear", "kernel [4, 2]", "float32 [3, 5]")),
        ("jax", linen_blocks, "layers_1", ("Scaled", "float32 [3, 5]")),
    ],
)
def test_the_layer_is_named(backend: str, build: Callable[..., Any], layer: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserCodeError) as caught:
        trainer(backend, build)
    assert caught.value.role == "the model"
    assert caught.value.layer == layer
    assert repr(layer) in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_place_in_the_users_file_and_the_cause_are_told(backend: str) -> None:
    def loss(xp: Any, outputs: Any, batch: Any) -> Any:
        raise OwnError("the loss's own trouble")

    build = torch_linear if backend == "torch" else nnx_linear
    with pytest.raises(UserCodeError, match="the loss 'loss' raised OwnError: the loss's own trouble") as caught:
        trainer(backend, build, loss=loss)
    assert isinstance(caught.value.__cause__, OwnError)
    assert "test_user_code.py, line" in str(caught.value)
    assert "in loss: raise OwnError" in str(caught.value)
    assert "'y' float32 [3, 2]" in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_integers_are_no_input_of_a_layer_of_floats(backend: str) -> None:
    """In JAX they would be made floats in silence, and an id or label train where it was not meant to."""
    build = torch_linear if backend == "torch" else nnx_linear
    with pytest.raises(UserCodeError, match=r"Linear.*int(32|64) \[3, 3\]"):
        trainer(backend, build, train_data={**DATA, "x": np.ones((12, 3), np.int64)})


def test_lack_of_memory_is_told_as_that() -> None:
    def loss(xp: Any, outputs: Any, batch: Any) -> Any:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="Ways out"):
        trainer("torch", torch_linear, loss=loss)


def test_what_reads_data_passes_on_as_it_is() -> None:
    def examples() -> Any:
        yield from ({"x": x, "y": y} for x, y in zip(DATA["x"][:4], DATA["y"], strict=False))
        raise OwnError("the disk is gone")

    with pytest.raises(OwnError, match="the disk is gone") as caught:
        trainer("torch", torch_linear, train_data=examples).fit(updates=2)
    assert any("train_data" in note for note in caught.value.__notes__)


def test_errors_of_the_library_and_interrupts_pass() -> None:
    for kind in (DataError, KeyboardInterrupt):
        with pytest.raises(kind), user_code("the model"):
            raise kind("as it is")


def test_an_origin_is_told_once() -> None:
    error = OwnError()
    add_origin(error, "the listener")
    add_origin(error, "the listener")
    assert error.__notes__ == ["raised by the listener"]


def test_a_layer_reads_as_a_sentence() -> None:
    assert str(Layer("fc1", "Linear", {"weight": (1, 4)})) == "layer 'fc1' (Linear, weight [1, 4])"
    assert str(Layer("", "Net")) == "the model itself (Net)"


def torch_linear() -> Any:
    import torch  # noqa: PLC0415

    return torch.nn.Linear(3, 2)


def nnx_linear(rngs: Any) -> Any:
    from flax import nnx  # noqa: PLC0415

    return nnx.Linear(3, 2, rngs=rngs)
