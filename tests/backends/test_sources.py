"""Data from torch, grain, HuggingFace and generators, on both backends: one order, and the numbers of plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.examples import examples, in_batches
from support.variants import QUICK, SCAN, SCAN_MANY, TORCH

import multibackend as mb
from multibackend.core.rng import epoch_order
from multibackend.data import IterableSource, MapSource
from multibackend.errors import ConfigurationError
from multibackend.testing import Variant, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import START, assert_matches_reference, regression
from multibackend.testing.reference import cut, train
from multibackend.testing.tolerances import ONE_WINDOW
from multibackend.training.input.order import batches

COUNT = 29
BACKENDS = pytest.mark.parametrize("variant", [TORCH, SCAN_MANY], ids=str)


class Pairs(torch.utils.data.Dataset):
    """A torch dataset of tensors, examples as tuples or dicts."""

    def __init__(self, *, as_dict: bool) -> None:
        self.tensors = {name: torch.from_numpy(array) for name, array in regression(COUNT).items()}
        self.as_dict = as_dict

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        example = {name: tensor[index] for name, tensor in self.tensors.items()}
        return example if self.as_dict else tuple(example.values())


class Iterable(torch.utils.data.IterableDataset):
    """With a length, which torch allows, and no random access."""

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[Any]:
        return iter([Pairs(as_dict=True)[i] for i in range(COUNT)])


def loader(**options: Any) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Pairs(as_dict=True), batch_size=5, **options)


def grain_maps() -> Any:
    grain = pytest.importorskip("grain", reason="pip install 'multibackend[grain]'")
    return grain.MapDataset.source(examples(COUNT))


def grain_iterable() -> Any:
    return grain_maps().to_iter_dataset()


def grain_batches() -> Any:
    return IterableSource(grain_maps().batch(4).to_iter_dataset(), batched=True)


def grain_loader() -> Any:
    grain = pytest.importorskip("grain", reason="pip install 'multibackend[grain]'")
    sampler = grain.samplers.SequentialSampler(COUNT, shard_options=grain.sharding.NoSharding())
    return grain.DataLoader(data_source=examples(COUNT), sampler=sampler)


def table(**options: Any) -> Any:
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    return datasets.Dataset.from_dict({**regression(COUNT), **options})


RANDOM_ACCESS: dict[str, Callable[[], Any]] = {
    "torch dataset": lambda: Pairs(as_dict=True),
    "torch dataset of tuples": lambda: MapSource(Pairs(as_dict=False), fields=("x", "y")),
    "torch tensors": lambda: MapSource(
        torch.utils.data.TensorDataset(*Pairs(as_dict=True).tensors.values()), fields=("x", "y")
    ),
    "grain map dataset": grain_maps,
    "datasets": table,
}
STREAMS: dict[str, Callable[[], Any]] = {
    "torch loader": loader,
    "torch loader of tuples": lambda: IterableSource(
        torch.utils.data.DataLoader(Pairs(as_dict=False), batch_size=7), fields=("x", "y")
    ),
    "torch loader of examples": lambda: torch.utils.data.DataLoader(Pairs(as_dict=True), batch_size=None),
    "torch iterable": Iterable,
    "generator function": lambda: lambda: iter(examples(COUNT)),
    "batches": lambda: IterableSource(in_batches(examples(COUNT), 4), batched=True),
    "grain iterable": grain_iterable,
    "grain batches": grain_batches,
    "grain loader": grain_loader,
    "datasets iterable": lambda: table().to_iterable_dataset(),
}


@BACKENDS
@pytest.mark.parametrize("kind", [*RANDOM_ACCESS, *STREAMS])
def test_matches_numpy(kind: str, variant: Variant) -> None:
    """Two epochs with a partial window and a ragged micro-batch: the formula's numbers; shuffled where one can.

    What has no random access keeps its own order. Reading ahead changes no bit.
    """
    shuffle = kind in RANDOM_ACCESS
    make, data, runs = {**RANDOM_ACCESS, **STREAMS}[kind], regression(COUNT), []
    for read_ahead in (True, False):
        experiment = variant.experiment(make(), gradient_accumulation_steps=4, shuffle=shuffle, seed=3)
        trainer = variant.trainer(experiment, START, read_ahead=read_ahead)
        result = trainer.fit(epochs=2)
        orders = [epoch_order(3, epoch, COUNT, shuffle=shuffle) for epoch in range(2)]
        windows = [window for order in orders for window in cut(order, 3, [4, 4, 4])]
        assert_matches_reference(trainer, result, train(START, data, windows))
        runs.append({**trainer.parameters(), "loss": result.history["loss"]})
    assert_bit_identical(runs[0], runs[1])


@pytest.mark.parametrize("kind", ["torch loader", "generator function", "grain iterable", "datasets"])
def test_compare(kind: str) -> None:
    """`compare` over one description of the data: both backends see the same examples."""
    experiment = mb.Experiment(
        model=mb.Model(torch=TORCH.models["linear"], jax=SCAN.models["linear"], inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.AdamW(learning_rate=0.01),
        train_data={**RANDOM_ACCESS, **STREAMS}[kind](),
        eval_data={**RANDOM_ACCESS, **STREAMS}[kind](),
        micro_batch_size=3,
        gradient_accumulation_steps=4,
    )
    report = mb.compare(experiment, updates=100, precision="float64", executions=QUICK)
    assert report.matches
    assert report.max_relative_difference < ONE_WINDOW
    assert report.evaluations[0].keys() == report.evaluations[1].keys() != set()
    for backend in ("torch", "jax"):
        assert mb.check_accumulation(experiment, backend).matches


def test_shuffling_loader() -> None:
    """With a generator its order depends on (seed, epoch) only, in every run; without one it is refused."""

    def orders(source: Any, seed: int) -> list[list[float]]:
        experiment = TORCH.experiment(source, seed=seed)
        reader = mb.Trainer(experiment, "torch")._run.plan.feed._reader
        return [reader.order.take(epoch, 0, COUNT)["x"][:, 0].tolist() for epoch in (0, 1, 0)]

    shared = loader(shuffle=True, generator=torch.Generator())
    first, second, again = orders(shared, 0)
    assert first == again != second
    assert orders(shared, 0)[:2] == orders(loader(shuffle=True, generator=torch.Generator()), 0)[:2] == [first, second]
    assert orders(shared, 1)[0] != first
    assert sorted(first) == sorted(regression(COUNT)["x"][:, 0].tolist())
    assert_raises(
        ConfigurationError, lambda: TORCH.experiment(loader(shuffle=True)), "generator=torch.Generator()", "dataset"
    )


def test_tensors_that_need_converting() -> None:
    """Tensors with a gradient, JAX arrays and Python numbers become arrays; bfloat16 tells what it is."""
    jax = pytest.importorskip("jax")
    items = [{"x": torch.ones(3, requires_grad=True), "z": jax.numpy.arange(2), "y": 0.5}] * 4
    batch = mb.data.as_source(items).take(np.arange(2))
    assert {name: (array.shape, array.dtype.kind) for name, array in batch.items()} == {
        "x": ((2, 3), "f"),
        "z": ((2, 2), "i"),
        "y": ((2,), "f"),
    }
    assert_raises(
        mb.errors.DataError, lambda: mb.data.as_source([{"x": torch.ones(3, dtype=torch.bfloat16)}]).take(np.arange(1))
    )


def test_datasets_keep_their_numbers() -> None:
    """Columns of a HuggingFace dataset arrive in their own types and structure; what is no number is refused."""
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    nested = table(
        place=[{"row": i, "column": 2.5 * i} for i in range(COUNT)],
        grid=np.arange(COUNT * 6.0).reshape(COUNT, 2, 3),
        small=np.arange(COUNT, dtype=np.int8),
    )
    batch = mb.data.as_source(nested).take(np.array([4, 2]))
    assert batch["x"].dtype == np.float64
    assert batch["small"].dtype == np.int8
    assert batch["small"].flags.writeable  # arrow's memory is not, and torch warns of that
    assert mb.data.as_source(nested.with_format(None, columns=["small"])).fields == ("small",)
    assert_bit_identical(batch["x"], regression(COUNT)["x"][[4, 2]])
    assert_bit_identical(batch["grid"], np.arange(COUNT * 6.0).reshape(COUNT, 2, 3)[[4, 2]])
    assert batch["place.row"].tolist() == [4, 2]
    for columns, mentions in (
        ({"text": ["a", "b"]}, ("'text'", "remove_columns(['text'])")),
        ({"x": [1.0, None]}, ("'x'", "missing", "filter")),
        ({"x": [[1, 2], [3]]}, ("'x'", "pad_to_buckets")),
    ):
        made = datasets.Dataset.from_dict(columns)
        assert_raises(mb.errors.DataError, lambda made=made: mb.data.as_source(made).take(np.arange(2)), *mentions)


@BACKENDS
@pytest.mark.parametrize("kind", ["torch loader", "torch dataset"])
def test_reading_ahead_leaves_dropout_alone(kind: str, variant: Variant) -> None:
    """torch's loaders draw from the generator that dropout draws from; the masks are the same bits all the same."""
    runs = []
    for read_ahead in (True, False):
        source = {**RANDOM_ACCESS, **STREAMS}[kind]()
        made = variant.experiment(source, model="dropout", gradient_accumulation_steps=2, precision="float32")
        trainer = variant.trainer(made, read_ahead=read_ahead)
        runs.append({"loss": trainer.fit(epochs=15).history["loss"], **trainer.parameters()})
    assert_bit_identical(runs[0], runs[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages, about forking
@pytest.mark.parametrize("kind", ["grain", "torch"])
def test_worker_processes(kind: str) -> None:
    """grain's worker processes and torch's give every example once, in the same order whenever they are asked."""
    if kind == "grain":
        grain = pytest.importorskip("grain", reason="pip install 'multibackend[grain]'")
        pytest.importorskip("absl.flags").FLAGS.mark_as_parsed()  # grain's workers want their flags
        source = grain_iterable().mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=2))
    else:
        source = loader(num_workers=2, shuffle=True, generator=torch.Generator())
    source = mb.data.as_source(source)
    rows = {name: np.concatenate([b[name] for b in batches(source, 4)]) for name in ("x", "y")}
    assert_bit_identical(np.sort(rows["x"], axis=0), np.sort(regression(COUNT)["x"], axis=0))
    if kind == "grain":  # torch's order depends on the seed, which `batches` does not know
        trainer = TORCH.trainer(TORCH.experiment(source), START)
        windows = cut(range(COUNT), 3, [1] * COUNT)
        assert_matches_reference(trainer, trainer.fit(epochs=1), train(START, rows, windows))
