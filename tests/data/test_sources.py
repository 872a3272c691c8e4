"""Every kind of source gives the examples that it was made of, in its order; what is no data is one typed error."""

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples, experiment, in_batches
from support.variants import SCAN, STUB, TORCH, Variant

import multibackend as mb
from multibackend.data import ArraySource, IterableSource, MapSource, as_source
from multibackend.data.fields import nested
from multibackend.errors import ConfigurationError, DataError, MultibackendError
from multibackend.loggers.progress import ProgressBar
from multibackend.loggers.screens import PlainScreen
from multibackend.losses import MeanSquaredError
from multibackend.protocol import Position, WindowStack
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.reference import cut
from multibackend.training.input.epoch_reader import EpochReader
from multibackend.training.input.order import batches

LOSS = MeanSquaredError(target="y")


def ids(stack: WindowStack) -> list[list[list[int]]]:
    return [[batch["id"].tolist() for batch, _ in stack.micro_batches(window)] for window in range(len(stack))]


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 40),
    size=st.integers(1, 7),
    steps=st.integers(1, 5),
    chunk=st.integers(1, 5),
    rows=st.integers(0, 9),
    drop_last=st.booleans(),
)
def test_stream_is_cut_like_arrays(length: int, size: int, steps: int, chunk: int, rows: int, drop_last: bool) -> None:
    """A stream of unknown length gives the windows of `cut` in each epoch, whatever batches it comes in."""
    items = examples(length)
    source = IterableSource(in_batches(items, rows).__iter__ if rows else items.__iter__, batched=rows > 0)
    reader = EpochReader(source, [LOSS], micro_batch_size=size, seed=0, drop_last=drop_last)
    expected = cut(range(length), size, [steps] * length, drop_last=drop_last)
    if not expected:
        position = reader.settle(Position(), steps)
        assert_raises(DataError, lambda: reader.read(position, [steps], capacity=steps), "drop_last=False", length)
        return
    position = Position()
    for epoch in range(2):
        found = []
        while (position := reader.settle(position, steps)).epoch == epoch:
            stack = reader.read(position, [steps] * chunk, capacity=steps, room=chunk)
            found += ids(stack)
            position = stack.stop
        assert found == [[batch.tolist() for batch in window] for window in expected]
    assert reader.order.length == length


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 30), epoch=st.integers(0, 2), offset=st.integers(0, 29), wanted=st.integers(1, 9))
def test_stream_from_any_position(length: int, epoch: int, offset: int, wanted: int) -> None:
    """A reader put anywhere, forward or back, reads what lies there: a resumed run sees the same data."""
    items = examples(length)
    reader = EpochReader(IterableSource(lambda epoch: iter(items[epoch:])), [LOSS], micro_batch_size=wanted, seed=0)
    for place in (Position(epoch, offset), Position(epoch, offset // 2), Position(0, 0), Position(epoch, offset)):
        if place.offset >= length - place.epoch:
            continue
        stack = reader.read(place, [1], capacity=1)
        first = place.epoch + place.offset
        assert ids(stack) == [[list(range(first, min(first + wanted, length)))]]


def test_a_stream_is_never_held_whole() -> None:
    """Reading window by window asks the iterator for one example beyond the window, however long the epoch."""
    asked = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal asked
        while True:
            asked += 1
            yield {"x": np.zeros(3), "y": np.zeros(2), "id": asked - 1}

    reader, position = EpochReader(IterableSource(endless), [LOSS], micro_batch_size=4, seed=0), Position()
    asked = 0
    for window in range(50):
        position = reader.settle(reader.read(position, [2], capacity=2).stop, 2)
        assert asked == 8 * (window + 1) + 1
        assert sum(len(chunk["id"]) for chunk in reader.order._buffer) <= 9  # type: ignore[attr-defined]


def kinds(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The same examples as every kind of data that needs no other package."""
    return {
        "list": items,
        "dict": {name: np.stack([item[name] for item in items]) for name in items[0]},
        "iterable": IterableSource(items),
        "function": lambda: iter(items),
        "function of the epoch": lambda epoch: iter(items),
        "batches": IterableSource(in_batches(items, 4), batched=True),
        "tuples": IterableSource([tuple(item.values()) for item in items], fields=tuple(items[0])),
        "tuples with random access": MapSource([tuple(item.values()) for item in items], fields=tuple(items[0])),
        "generator": (item for item in items),
    }


@pytest.mark.parametrize("kind", kinds(examples(1)))
def test_every_kind_trains_the_same(kind: str) -> None:
    """The run over arrays, bit for bit, over every other kind of data; evaluation too."""
    items = examples(29)
    wanted = mb.Trainer(experiment(kinds(items)["dict"], gradient_accumulation_steps=2), "stub")
    trainer = mb.Trainer(experiment(kinds(items)[kind], gradient_accumulation_steps=2), "stub")
    assert_bit_identical(trainer.fit(updates=5).history["loss"], wanted.fit(updates=5).history["loss"])
    assert_bit_identical(trainer.parameters(), wanted.parameters())
    expected = wanted.evaluate(kinds(items)["dict"], batch_size=4)
    assert trainer.evaluate(kinds(items)[kind], batch_size=4) == expected


def test_epochs_of_unknown_length() -> None:
    """fit(epochs=...) ends with the iterable, and its length is told as unknown only before that."""
    items, planned = examples(29), []
    trainer = mb.Trainer(
        experiment(lambda: iter(items)), "stub", callbacks=[lambda event: planned.append(getattr(event, "updates", 0))]
    )
    result = trainer.fit(epochs=2)
    assert (result.updates, result.epochs) == (20, 2)
    epochs = result.history["epoch"].tolist()
    assert epochs == [0] * 10 + [1] * 10
    trainer.fit(epochs=3)
    assert [number for number in planned if number != 0] == [None, 30]


def test_a_generator_is_one_epoch() -> None:
    """One epoch of a generator object runs; the next one is an error that tells the way out, and loses nothing."""
    trainer = mb.Trainer(experiment(item for item in examples(7)), "stub")
    assert trainer.fit(epochs=1).updates == 3
    after = trainer.parameters()
    assert_raises(DataError, lambda: trainer.fit(epochs=2), "generator", "once", "train_data=lambda")
    assert_bit_identical(trainer.parameters(), after)
    once = list(examples(7))
    spent = iter(once)
    function = mb.Trainer(experiment(lambda: spent), "stub")  # a function that returns the same iterator
    assert_raises(DataError, lambda: function.fit(epochs=3), "is empty", "fresh iterator")


def test_progress_of_unknown_length() -> None:
    """The progress listener needs no total."""
    told = io.StringIO()
    listener = ProgressBar(PlainScreen(told))
    mb.Trainer(experiment(lambda: iter(examples(29))), "stub", callbacks=[listener]).fit(epochs=2)
    assert "data of unknown length" in told.getvalue()
    assert "20 updates, loss" in told.getvalue()


def test_memory_that_is_used_again() -> None:
    """An iterator may hand out the same array each time, filled anew; and arrays that must not be written to."""
    data = regression(29)

    def reusing() -> Iterator[dict[str, np.ndarray]]:
        held = {name: np.zeros((5, *array.shape[1:])) for name, array in data.items()}
        for start in range(0, 29, 5):
            rows = min(5, 29 - start)
            for name, array in data.items():
                held[name][:rows] = array[start : start + rows]
            yield {name: array[:rows] for name, array in held.items()}

    wanted = mb.Trainer(experiment(data), "stub").fit(epochs=2).history["loss"]
    for read_ahead in (False, True):
        trainer = mb.Trainer(experiment(IterableSource(reusing, batched=True)), "stub", read_ahead=read_ahead)
        assert_bit_identical(trainer.fit(epochs=2).history["loss"], wanted)
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for source in (as_source([{"x": frozen}] * 2), as_source(lambda: iter([{"x": frozen}] * 2))):
        assert next(iter(batches(source, 1)))["x"].flags.writeable


def test_skipped_windows_do_not_run_for_ever() -> None:
    """A stream none of whose windows has any weight ends the run with an error once an epoch has passed."""
    items = [{**item, "w": 0.0} for item in examples(9)]
    weightless = experiment(lambda: iter(items), loss=MeanSquaredError(target="y", weights="w"))
    for read_ahead in (False, True):
        trainer = mb.Trainer(weightless, "stub", read_ahead=read_ahead)
        assert_raises(DataError, lambda trainer=trainer: trainer.fit(updates=5), "whole epoch", "weightless")


@pytest.mark.parametrize("variant", [TORCH, SCAN, STUB], ids=str)
def test_endless_data_of_skipped_windows_end(variant: Variant) -> None:
    """The same for a stream without end, after a number of windows."""

    def endless() -> Iterator[dict[str, Any]]:
        for item in itertools.cycle(examples(9)):
            yield {**item, "x": item["x"] * np.nan}

    described = variant.experiment(endless, on_nonfinite="skip")
    trainer = variant.trainer(described, START)
    assert_raises(DataError, lambda: trainer.fit(updates=5), "none of 1000 windows", "nonfinite")
    assert trainer.state.update == 0
    assert 1000 <= len(trainer.state.skipped) < 1400


class Table:
    """As much of a HuggingFace dataset as is asked for: columns of lists."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self.column_names, self.format = columns, list(columns), {"type": "custom"}

    def with_format(self, name: str) -> "Table":
        return self

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        return {name: [values[i] for i in indices] for name, values in self.columns.items()}


def fails(*mentions: object, data: Any) -> tuple[Callable[[], Any], tuple[object, ...]]:
    return (lambda: mb.Trainer(experiment(data()), "stub").fit(epochs=1)), mentions


def sequence(*items: Any) -> Callable[[], Any]:
    return lambda: lambda: iter(items)


GOOD = {"x": np.zeros(3), "y": np.zeros(2)}
BATCH = {"x": np.zeros((4, 3)), "y": np.zeros((4, 2))}
WRONG = {
    "empty iterable": fails("empty", data=lambda: lambda: iter(())),
    "empty generator": fails("empty", "generator", data=lambda: (item for item in ())),
    "function without iterator": fails("must return an iterator", "NoneType", data=lambda: lambda: None),
    "number": fails("3", "dict of arrays", data=lambda: 3),
    "text": fails("dict of arrays", "str", data=lambda: "data"),
    "fields change": fails("('x',)", "('x', 'y')", data=sequence(GOOD, {"x": np.zeros(3)})),
    "fields grow": fails("'z'", data=sequence(GOOD, {**GOOD, "z": 1})),
    "text values": fails("'y'", "text", "tokenizer", data=sequence({"x": np.zeros(3), "y": "cat"})),
    "objects": fails("'y'", "numbers", data=sequence({"x": np.zeros(3), "y": object()})),
    "shapes change": fails("'x'", "(3,)", "(4,)", "pad_to_buckets", data=sequence(GOOD, {**GOOD, "x": np.zeros(4)})),
    "ragged value": fails("'x'", "pad_to_buckets", data=sequence({**GOOD, "x": [[1.0], [1.0, 2.0]]})),
    "tuples": fails("tuple", "fields=(", data=sequence((np.zeros(3), np.zeros(2)))),
    "unequal lengths": fails(
        "(4, 3)", "(3, 2)", data=lambda: IterableSource([BATCH, {**BATCH, "y": np.zeros((3, 2))}], batched=True)
    ),
    "example as a batch": fails(
        "batched=False", data=lambda: IterableSource([{"x": np.zeros(3), "y": 1.0}], batched=True)
    ),
    "parts": fails("3 parts", data=lambda: IterableSource([(1, 2, 3)], fields=("x", "y"))),
    "list without a field": fails("example 1", "('x', 'y')", data=lambda: [GOOD, {"x": np.zeros(3)}]),
    "filtered": fails("None", "to_iter_dataset", data=lambda: [None, GOOD]),
    "missing target": fails("'y'", "the loss", data=sequence({"x": np.zeros(3)})),
    "text column": fails("'text'", "remove_columns(['text'])", data=lambda: Table(text=["a", "b"], y=[1, 2])),
    "ragged column": fails("pad_to_buckets", data=lambda: Table(x=[[1.0], [1.0, 2.0]], y=[1, 2])),
    "empty table": fails("empty", data=lambda: Table(x=[])),
    "endless": fails("repeat", data=lambda: type("Endless", (list,), {"__len__": lambda self: 2**63 - 1})([GOOD])),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data(name: str) -> None:
    """A typed error with the value and the repair, at construction or when the wrong example comes."""
    do, mentions = WRONG[name]
    error = assert_raises(MultibackendError, do, *mentions)
    assert isinstance(error, DataError | ConfigurationError)


def test_nested_fields() -> None:
    """Nested dicts and tuples are dotted fields in every kind of source, and come back as they were."""
    item = {"image": {"left": np.ones(2), "right": (np.zeros(2), np.full(2, 2.0))}, "point": (1.0, 2.0), "y": 1}
    names = ("image.left", "image.right.0", "image.right.1", "point", "y")
    for source in (as_source([item] * 3), as_source(lambda: iter([item] * 3))):
        assert source.fields == names
        batch = next(iter(batches(source, 2)))
        assert batch["point"].shape == (2, 2)
        image = nested(batch, "image")
        assert_arrays_match(image["right"][1], np.full((2, 2), 2.0), relative=0.0)
        assert isinstance(image["right"], tuple)
        assert nested(batch, "image.right")[0] is batch["image.right.0"]
    arrays = ArraySource({"image": {"left": np.ones((4, 2))}, "y": np.arange(4)})
    assert arrays.fields == ("image.left", "y")
    error = assert_raises(ConfigurationError, lambda: experiment([item] * 3), "'x'", "image.left")
    assert error.problems


def test_a_dict_that_reads_as_a_tuple_is_refused() -> None:
    """By its names it could not be told from one, and the model would get a tuple."""
    for keys in (("0", "1"), (0, 1)):
        inner = dict.fromkeys(keys, np.ones(2))
        assert_raises(DataError, lambda inner=inner: as_source([{"image": {"left": inner}, "y": 1}] * 3), "image.left")
        assert_raises(DataError, lambda inner=inner: ArraySource({"image": inner, "y": np.ones(2)}), "reads as a tuple")
    columns = {"image": {"1": np.ones(2), "2": np.ones(2)}, "0": np.ones(2), "1": np.ones(2)}
    assert ArraySource(columns).fields == ("image.1", "image.2", "0", "1")


def test_seeds_and_epochs_reach_the_iterable() -> None:
    """A loader's generator and set_epoch get what depends on (seed, epoch) only."""
    told: list[tuple[str, int]] = []

    class Generator:
        def manual_seed(self, seed: int) -> None:
            told.append(("seed", seed))

    class Loader:
        generator = Generator()

        def set_epoch(self, epoch: int) -> None:
            told.append(("epoch", epoch))

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter(examples(3))

    for seed in (0, 0, 1):
        told.append(("run", seed))
        mb.Trainer(experiment(Loader(), seed=seed), "stub").fit(epochs=2)
    runs = [told[start + 3 :] for start, (kind, _) in enumerate(told) if kind == "run"]  # after the look at fields
    first, again, other = (run[:4] for run in runs)
    assert first == again
    assert [value for kind, value in first if kind == "epoch"] == [0, 1]
    assert len({value for kind, value in first + other if kind == "seed"}) == 4
