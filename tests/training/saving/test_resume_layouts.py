"""Runs that go on in a model that keeps its parameters in other layouts and under other names."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from support.resume_models import data

import multibackend as mb
from multibackend.errors import ResumeError
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FEW_UPDATES_RESUMED


class Fused(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.encoder(x)))


class Raw(nnx.Module):
    """The same network with matrices of its own, stored the other way round."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder_w = nnx.Param(jax.random.normal(rngs.params(), (3, 5)))
        self.encoder_b = nnx.Param(jnp.zeros(5))
        self.head_w = nnx.Param(jax.random.normal(rngs.params(), (5, 2)))
        self.head_b = nnx.Param(jnp.zeros(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ self.encoder_w[...] + self.encoder_b[...])
        return hidden @ self.head_w[...] + self.head_b[...]


def experiment(**options: object) -> mb.Experiment:
    return mb.Experiment(
        model=mb.Model(torch=Fused, jax=Raw, inputs="x", **options),
        loss=mb.losses.MeanSquaredError(target="y", weights="w"),
        optimizer=mb.optimizers.AdamW(learning_rate=0.02, weight_decay=0.1),
        train_data=data(),
        micro_batch_size=4,
        gradient_accumulation_steps=3,
        max_grad_norm=0.5,
        ema_decay=0.9,
        precision="float64",
    )


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
@pytest.mark.parametrize("saved", [False, True], ids=["names and shapes", "saved matching"])
def test_moments_average_and_half_window_cross_transposed(first: str, second: str, saved: bool, tmp_path: Path) -> None:
    """Cut inside a window: everything linear in a parameter's layout is transposed with it."""
    matching = mb.compare(experiment(), updates=1).matching
    assert sum(link.change == "transposed" for link in matching.links) == 2
    chosen = experiment(matching=matching) if saved else experiment()
    straight = mb.Trainer(chosen, first)
    start = straight.snapshot()
    straight.fit(updates=12)
    part = mb.Trainer(chosen, first)
    part.restore(start)
    part.fit(micro_batches=11)
    other = mb.Trainer.resume(part.save(tmp_path / "half"), chosen, backend=second)
    other.fit(updates=12)
    assert_arrays_match(
        {"loss": other.fit(updates=12).history["loss"]},
        {"loss": straight.fit(updates=12).history["loss"]},
        relative=FEW_UPDATES_RESUMED,
    )
    move = matching.to_other if first == "torch" else matching.to_reference
    for part_of in ("parameters", "ema"):
        expected = move(getattr(straight.snapshot(), part_of))
        assert_arrays_match(getattr(other.snapshot(), part_of), expected, relative=FEW_UPDATES_RESUMED, what=part_of)
    moments = straight.snapshot().optimizer
    for slot, arrays in other.snapshot().optimizer.items():
        assert_arrays_match(arrays, move(moments[slot]), relative=FEW_UPDATES_RESUMED, what=slot)


def test_what_only_the_models_could_tell_is_refused(tmp_path: Path) -> None:
    """A square matrix may be transposed or not: without a matching nothing is guessed."""

    def squares(rngs: nnx.Rngs) -> nnx.Module:
        class Square(nnx.Module):
            def __init__(self) -> None:
                self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))

            def __call__(self, x: jax.Array) -> jax.Array:
                return x @ self.w[...]

        return Square()

    random = np.random.default_rng(0)
    square = mb.Experiment(
        model=mb.Model(torch=lambda: torch.nn.Linear(3, 3, bias=False), jax=squares, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data={"x": random.normal(size=(8, 3)), "y": random.normal(size=(8, 3))},
        micro_batch_size=4,
    )
    trainer = mb.Trainer(square, "torch")
    trainer.fit(updates=1)
    path = trainer.save(tmp_path / "run")
    with pytest.raises(ResumeError, match="matching"):
        mb.Trainer.resume(path, square, backend="jax")
    known = mb.compare(square, updates=1).matching
    given = square.replace(model=square.model.matched(known))
    other = mb.Trainer.resume(path, given, backend="jax")
    assert_arrays_match(other.parameters(), known.to_other(trainer.parameters()), relative=0.0)
