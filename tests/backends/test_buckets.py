"""Sequences padded to a few lengths: the numbers of padding to the longest, one compilation for each length."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from support.variants import QUICK
from torch import nn

import multibackend as mb
from multibackend.data import IterableSource, pad_to_buckets
from multibackend.errors import ConfigurationError, DataError
from multibackend.testing import assert_arrays_match, assert_raises
from multibackend.testing.tolerances import SAME_ARITHMETIC

LENGTHS, CLASSES = (4, 8, 16), 5
FIELDS = {"tokens": 0, "labels": -100}


class TorchTokens(nn.Module):
    """Each position sees itself and the mean of all that are there: a model that has to mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(CLASSES, 6), nn.Linear(12, CLASSES)

    def forward(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.embed(tokens))
        mean = (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        return self.head(torch.cat([x, mean[:, None].expand_as(x)], -1))


class FlaxTokens(nnx.Module):
    """The same in flax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.head = nnx.Embed(CLASSES, 6, rngs=rngs), nnx.Linear(12, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array, weight: jax.Array) -> jax.Array:
        x = jax.numpy.tanh(self.embed(tokens))
        mean = (x * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        return self.head(jax.numpy.concatenate([x, jax.numpy.broadcast_to(mean[:, None], x.shape)], -1))


def sequences(count: int, *longest: int) -> list[dict[str, list[int]]]:
    """Random tokens; windows of six sequences in turn are at most as long as `longest` says."""
    random, found = np.random.default_rng(count), []
    for index in range(count):
        length = int(random.integers(1, longest[index // 6 % len(longest)] + 1))
        tokens = random.integers(0, CLASSES, length)
        found.append({"tokens": tokens.tolist(), "labels": ((tokens + 1) % CLASSES).tolist()})
    return found


def experiment(data: Any, lengths: tuple[int, ...], **options: Any) -> mb.Experiment:
    padded = pad_to_buckets(data, fields=FIELDS, lengths=lengths)
    arguments: dict[str, Any] = {
        "model": mb.Model(torch=TorchTokens, jax=FlaxTokens, inputs=("tokens", "weight")),
        "loss": mb.losses.CrossEntropy(target="labels", weights="weight"),
        "optimizer": mb.optimizers.AdamW(learning_rate=0.02),
        "train_data": padded,
        "eval_data": padded,
        "metrics": [mb.metrics.Accuracy(target="labels")],
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "precision": "float64",
    }
    return mb.Experiment(**{**arguments, **options})


def watch(trainer: mb.Trainer) -> set[int]:
    """The lengths that the trainer's data are padded to, as they are read."""
    order, seen = trainer._run.plan.feed._reader.order, set()
    read = order.take

    def take(*place: int) -> dict[str, np.ndarray]:
        rows = read(*place)
        seen.add(rows["tokens"].shape[1])
        return rows

    order.take = take  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("stream", [False, True])
def test_buckets_do_not_show(backend: str, stream: bool) -> None:
    """Padding to the smallest of three lengths gives the run, and the evaluation, of padding everything to 16."""
    items, runs, start, shapes = sequences(26, 3, 16, 7), [], None, set()
    for lengths in (LENGTHS, LENGTHS[-1:]):
        data = (lambda: iter(items)) if stream else items
        made = experiment(data, lengths, shuffle=not stream)
        execution = "dispatch" if backend == "jax" else "auto"  # scan is asked below
        trainer = mb.Trainer(made, backend, execution=execution, windows_per_dispatch=1)
        start = start or trainer.parameters()
        trainer.load_parameters(start)
        lengths_seen = watch(trainer)
        result = trainer.fit(epochs=3)
        shapes |= lengths_seen
        history = {name: result.history[name] for name in ("loss", "weight", "examples")}
        runs.append({**history, **trainer.parameters(), **trainer.evaluate(batch_size=5)})
        assert result.updates == 15
    assert shapes == set(LENGTHS) if stream else {8, 16} <= shapes <= set(LENGTHS)
    assert_arrays_match(runs[0], runs[1], relative=SAME_ARITHMETIC)


@pytest.mark.parametrize("windows", [1, 2])
def test_one_compilation_for_each_length(windows: int) -> None:
    """Several epochs over three lengths compile three programs; over the longest only, one."""
    items = sequences(36, 3, 3, 16, 16, 7, 7)
    for lengths, expected in ((LENGTHS, 3), (LENGTHS[-1:], 1)):
        trainer = mb.Trainer(
            experiment(items, lengths, shuffle=False), "jax", execution="scan", windows_per_dispatch=windows
        )
        trainer.fit(epochs=3)
        assert trainer.program.compilations() == expected


def test_backends_match() -> None:
    """compare over buckets."""
    report = mb.compare(experiment(sequences(26, 3, 16, 7), LENGTHS), updates=30, executions=QUICK)
    assert report.matches
    assert report.max_relative_difference < SAME_ARITHMETIC
    assert report.evaluations[0] == pytest.approx(dict(report.evaluations[1]), rel=SAME_ARITHMETIC)


def test_padding() -> None:
    """Each take has the smallest length that fits; weights are 1 where something is; other fields are stacked."""
    items = [{**item, "n": index} for index, item in enumerate(sequences(12, 16))]
    padded = pad_to_buckets(items, fields=FIELDS, lengths=LENGTHS, weights="w")
    assert padded.fields == ("tokens", "labels", "n", "w")
    for index in (np.array([2]), np.arange(12), np.array([5, 5, 1])):
        rows, sizes = padded.take(index), [len(items[i]["tokens"]) for i in index]
        assert rows["tokens"].shape == (len(index), min(length for length in LENGTHS if length >= max(sizes)))
        assert rows["w"].sum(axis=1).tolist() == sizes
        assert rows["n"].tolist() == index.tolist()
        for row, i in enumerate(index):
            assert rows["tokens"][row, : sizes[row]].tolist() == items[i]["tokens"]
            assert set(rows["labels"][row, sizes[row] :].tolist()) <= {-100}
    columns = {name: [item[name] for item in items] for name in items[0]}
    same = pad_to_buckets(columns, fields=FIELDS, lengths=LENGTHS, weights="w").take(np.arange(12))
    assert all(np.array_equal(same[name], array) for name, array in padded.take(np.arange(12)).items())
    assert "weight" not in pad_to_buckets(items, fields=FIELDS, lengths=LENGTHS, weights=None).fields


def test_wrong_padding() -> None:
    """Wrong arguments are one error, too long and unequal sequences another."""
    items = sequences(6, 7)
    for options, mentions in (
        ({"lengths": (8, 4)}, ("lengths", "ascend", "(8, 4)")),
        ({"lengths": ()}, ("lengths", "()")),
        ({"lengths": (0, 4)}, ("lengths", "0")),
        ({"fields": {}}, ("fields", "{}")),
        ({"weights": 3}, ("weights", "3")),
    ):
        wanted = {"fields": FIELDS, "lengths": LENGTHS, **options}
        assert_raises(ConfigurationError, lambda wanted=wanted: pad_to_buckets(items, **wanted), *mentions)
    for options, mentions in (
        ({"fields": {"words": 0}}, ("'words'", "tokens")),
        ({"weights": "labels"}, ("'labels'", "weights=")),
    ):
        wanted = {"fields": {"tokens": 0}, "lengths": LENGTHS, **options}
        assert_raises(DataError, lambda wanted=wanted: pad_to_buckets(items, **wanted), *mentions)
    assert_raises(
        DataError, lambda: mb.Trainer(experiment(sequences(60, 17), LENGTHS), "torch").fit(epochs=1), "17", "(4, 8, 16)"
    )
    unequal = [{"tokens": [1, 2], "labels": [1]}]
    assert_raises(DataError, lambda: pad_to_buckets(unequal, fields=FIELDS, lengths=LENGTHS).take(np.arange(1)), "(2,)")
    flat = [{"tokens": 1, "labels": 2}]
    assert_raises(DataError, lambda: pad_to_buckets(flat, fields=FIELDS, lengths=LENGTHS).take(np.arange(1)), "()")
    columns = {"tokens": [[1], [2]], "labels": [[1]]}
    assert_raises(DataError, lambda: pad_to_buckets(columns, fields=FIELDS, lengths=LENGTHS), "2", "1")


def test_batches_of_sequences() -> None:
    """A stream of batches that are padded within each batch is padded on."""
    whole = [{"tokens": np.ones((2, 3), int), "labels": np.ones((2, 3), int)}] * 2
    whole.append({"tokens": np.ones((2, 5), int), "labels": np.ones((2, 5), int)})
    padded = pad_to_buckets(IterableSource(whole, batched=True), fields=FIELDS, lengths=LENGTHS)
    rows = padded.join(list(padded.chunks(0, 0)))
    assert rows["weight"].sum(axis=1).tolist() == [3, 3, 3, 3, 5, 5]
    assert rows["tokens"].shape == (6, 8)


class TorchEyes(nn.Module):
    """A model that takes a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, image: dict[str, Any], scale: torch.Tensor) -> torch.Tensor:
        first, second = image["eyes"]
        return (self.left(first) + self.right(second)) * scale[:, None]


class FlaxEyes(nnx.Module):
    """The same in flax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.left, self.right = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, image: dict[str, Any], scale: jax.Array) -> jax.Array:
        first, second = image["eyes"]
        return (self.left(first) + self.right(second)) * scale[:, None]


def test_nested_inputs() -> None:
    """`inputs` may name a whole part or a dotted leaf; the model gets the structure on both backends."""
    random = np.random.default_rng(0)
    items = [
        {
            "image": {"eyes": (random.normal(size=3), random.normal(size=4)), "info": {"scale": random.normal()}},
            "y": random.normal(size=2),
        }
        for _ in range(17)
    ]
    made = mb.Experiment(
        model=mb.Model(torch=TorchEyes, jax=FlaxEyes, inputs=("image", "image.info.scale")),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=items,
        eval_data=items,
        micro_batch_size=3,
        gradient_accumulation_steps=2,
    )
    report = mb.compare(made, updates=30, precision="float64", executions=QUICK)
    assert report.matches
    assert report.max_relative_difference < SAME_ARITHMETIC
    assert report.histories[0][-1].loss < report.histories[0][0].loss
