"""Indices outside a table of the model: one typed error on both backends, which names field, value and example."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import multibackend as mb
from multibackend.errors import DataError, NonFiniteError, UserCodeError
from multibackend.losses import Custom, MeanSquaredError
from multibackend.protocol import IndexRange
from multibackend.testing import assert_raises

ROWS, LENGTH, EXAMPLES = 5, 3, 8
both = pytest.mark.parametrize("backend", ["torch", "jax"])
LOSS = MeanSquaredError(target="y")


def data(value: int | None = None, example: int = 6, dtype: str = "int64") -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, ROWS, size=(EXAMPLES, LENGTH)).astype(dtype)
    if value is not None:
        ids[example, 1] = value
    return {"ids": ids, "y": np.zeros((EXAMPLES, LENGTH, 2), np.float32)}


class TorchTable(torch.nn.Module):
    """Looks ids up in a table, in a way of the test's own."""

    def __init__(self, look_up: Callable[[torch.nn.Embedding, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(ROWS, 2)
        self.look_up = look_up

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.look_up(self.embed, ids)


class FlaxTable(nnx.Module):
    def __init__(self, look_up: Callable[[nnx.Embed, Any], Any], rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(ROWS, 2, rngs=rngs)
        self.look_up = look_up

    def __call__(self, ids: Any) -> Any:
        return self.look_up(self.embed, ids)


class LinenTable(linen.Module):
    @linen.compact
    def __call__(self, ids: Any) -> Any:
        return linen.Embed(ROWS, 2, name="embed")(ids)


Pair = tuple[Callable[..., Any], Callable[..., Any]]
# the same on both, by what is done with the field before it is looked up
UNCHANGED: dict[str, Pair] = {
    "layer": (lambda embed, ids: embed(ids), lambda embed, ids: embed(ids)),
    "indexing": (lambda embed, ids: embed.weight[ids], lambda embed, ids: embed.embedding[...][ids]),
    "reshaped": (
        lambda embed, ids: embed(ids.reshape(-1, 1)).reshape(*ids.shape, 2),
        lambda embed, ids: embed(ids.reshape(-1, 1)).reshape(*ids.shape, 2),
    ),
    "widened": (lambda embed, ids: embed(ids.long()), lambda embed, ids: embed(ids.astype(jnp.int32))),
    "prefixed": (
        lambda embed, ids: embed(torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1))[:, 1:],
        lambda embed, ids: embed(jnp.concatenate([jnp.zeros_like(ids[:, :1]), ids], axis=1))[:, 1:],
    ),
}
CHANGED: dict[str, Pair] = {
    "masked": (
        lambda embed, ids: embed(torch.where(ids < 0, 0, ids)),
        lambda embed, ids: embed(jnp.where(ids < 0, 0, ids)),
    ),
    "modulo": (lambda embed, ids: embed(ids % ROWS), lambda embed, ids: embed(ids % ROWS)),
    "a part": (
        lambda embed, ids: embed(ids[:, 2:]).expand(-1, LENGTH, -1),
        lambda embed, ids: jnp.broadcast_to(embed(ids[:, 2:]), (*ids.shape, 2)),
    ),
}


def described(pair: Pair, train: dict[str, np.ndarray] | Any, **options: Any) -> mb.Experiment:
    on_torch, on_jax = pair
    return mb.Experiment(
        model=mb.Model(torch=lambda: TorchTable(on_torch), jax=lambda rngs: FlaxTable(on_jax, rngs), inputs="ids"),
        **{
            "loss": LOSS,
            "optimizer": mb.optimizers.SGD(learning_rate=0.1),
            "micro_batch_size": 2,
            "shuffle": True,
            "train_data": train,
            **options,
        },
    )


@both
@pytest.mark.parametrize("name", UNCHANGED)
def test_fields_that_are_looked_up(backend: str, name: str) -> None:
    """The field, the table and its rows are what the program is known by."""
    dtype = "uint8" if name == "widened" else "int64"
    program = mb.Trainer(described(UNCHANGED[name], data(dtype=dtype)), backend).program
    assert dict(program.info.index_ranges) == {"ids": IndexRange("embed.weight", ROWS)}


@both
@pytest.mark.parametrize("name", CHANGED)
def test_fields_that_a_model_changes_first(backend: str, name: str) -> None:
    """What becomes of them is the model's affair: nothing is refused."""
    trainer = mb.Trainer(described(CHANGED[name], data(-1)), backend)
    assert trainer.program.info.index_ranges == {}
    assert np.isfinite(trainer.fit(epochs=1).history["loss"]).all()


def test_a_linen_table() -> None:
    """As one of nnx; also in bf16 and under rematerialisation, which wrap the lookup."""
    model = mb.Model(jax=LinenTable, inputs="ids")
    for options in ({}, {"precision": "bf16"}, {"rematerialize": True}):
        experiment = described(UNCHANGED["layer"], data(), **options).replace(model=model)
        assert mb.Trainer(experiment, "jax").program.info.index_ranges == {"ids": IndexRange("embed.weight", ROWS)}


@both
def test_options_around_the_lookup(backend: str) -> None:
    for options in ({"precision": "bf16"}, {"rematerialize": "embed"}):
        program = mb.Trainer(described(UNCHANGED["layer"], data(), **options), backend).program
        assert dict(program.info.index_ranges) == {"ids": IndexRange("embed.weight", ROWS)}


@pytest.mark.parametrize("value", [99, -1])
def test_one_error(value: int) -> None:
    """In training, in evaluation, in prediction, in the first micro-batch: the same words on both backends."""
    on_torch = [str(error) for error in refusals("torch", value)]
    assert on_torch == [str(error) for error in refusals("jax", value)]
    for message in on_torch:
        for mention in (f"the index {value}", "'ids'", "outside [0, 5)", "'embed.weight'", "5 rows", "of example"):
            assert mention in message


def refusals(backend: str, value: int) -> list[DataError]:
    """What an index outside is answered with, wherever it is met."""
    layer = UNCHANGED["layer"]
    trainer = mb.Trainer(described(layer, data()), backend)
    # example 6 is not in the first micro-batch, on which programs are built; example 1 is
    bad = mb.Trainer(described(layer, data(value)), backend)
    errors = [
        assert_raises(DataError, lambda: trainer.evaluate(data(value), batch_size=2), "of example 6,"),
        assert_raises(DataError, lambda: trainer.predict(data(value), batch_size=2), "of example 6,"),
        assert_raises(DataError, lambda: bad.fit(epochs=1), "of example 6,"),
        assert_raises(DataError, lambda: mb.Trainer(described(layer, data(value, 1)), backend), "of example 1,"),
    ]
    assert np.isfinite(bad.parameters()["embed.weight"]).all()
    return errors


@both
def test_examples_are_named(backend: str) -> None:
    """In a ragged micro-batch, and in a stream."""

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for index in range(EXAMPLES):
            yield {name: array[index] for name, array in data(9, 7).items()}

    for source, mention in ((data(9, 7), "of example 7,"), (stream, "of example 7 of epoch 0,")):
        experiment = described(UNCHANGED["layer"], source, micro_batch_size=3, shuffle=False)
        trainer = mb.Trainer(experiment, backend)
        assert_raises(DataError, lambda trainer=trainer: trainer.fit(epochs=1), "the index 9", mention)


def test_an_index_that_the_model_computes() -> None:
    """torch refuses it where it happens; JAX reads NaN there, and a loss that is not finite ends the run."""
    shifted: Pair = (lambda embed, ids: embed(ids + 1), lambda embed, ids: embed(ids + 1))
    small = {name: array.clip(0, ROWS - 2) if name == "ids" else array for name, array in data().items()}
    late = {**small, "ids": small["ids"].copy()}
    late["ids"][6, 1] = ROWS - 1
    trainer = mb.Trainer(described(shifted, late, shuffle=False), "torch")
    error = assert_raises(UserCodeError, lambda: trainer.fit(epochs=1), "index out of range", "[0, rows)")
    assert error.layer == "embed"
    trainer = mb.Trainer(described(shifted, late, shuffle=False), "jax")
    failure = assert_raises(NonFiniteError, lambda: trainer.fit(epochs=1), "loss = nan")
    assert (failure.update, failure.terms) == (4, ("loss",))


@both
def test_labels_that_are_no_indices(backend: str) -> None:
    """A field that only the loss reads, or one that picks from what was computed, is looked up in no table."""
    pick: Pair = (
        lambda embed, ids: embed(ids) * 1.0,
        lambda embed, ids: embed(ids) * 1.0,
    )
    loss = Custom(lambda xp, outputs, batch: xp.sum(outputs**2, axis=-1) * (batch["tag"] < 100)[:, None])
    experiment = described(pick, {**data(), "tag": np.arange(EXAMPLES) * 50}, loss=loss)
    trainer = mb.Trainer(experiment, backend)
    assert set(trainer.program.info.index_ranges) == {"ids"}
    assert trainer.fit(epochs=1).updates == EXAMPLES // 2
