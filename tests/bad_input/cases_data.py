"""What is given as `train_data` and `eval_data`: arrays, datasets, streams, padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import multibackend as mb
from bad_input.case import ALL, BOTH, Case, accepted
from bad_input.setting import DATA, LABELS, Setting, with_field
from multibackend.data import ArraySource, IterableSource, MapSource, TableSource, pad_to_buckets
from multibackend.errors import ConfigurationError, DataError, NonFiniteError
from multibackend.losses import CrossEntropy

__all__ = ["CASES"]

X, Y = DATA["x"], DATA["y"]


class OwnError(Exception):
    """A user's own class."""


def data(name: str, value: Any, *words: str) -> Case:
    """Make a case of data that are refused when the experiment is constructed."""
    return Case(f"data: {name}", lambda s: s.experiment(train_data=value), ConfigurationError, ("train_data", *words))


def made(name: str, value: Callable[[], Any], *words: str) -> Case:
    """Make a case of data that are made anew for each run."""
    return Case(f"data: {name}", lambda s: s.experiment(train_data=value()), ConfigurationError, ("train_data", *words))


def trained(name: str, value: Any, *words: str, error: type[Exception] = DataError) -> Case:
    """Make a case of data that show what they are when they are read."""
    return Case(f"data: {name}", lambda s: s.fit(train_data=value() if callable(value) else value), error, words, ALL)


def masked() -> Any:
    return np.ma.masked_array(X, mask=X > 1)


ARRAYS = [
    data("None", None, "None"),
    data("5", 5, "5", "dict of arrays"),
    data("text", "x", "str"),
    data("a path", "data/train.csv", "str"),
    data("bytes", b"abc", "bytes"),
    data("a set", {1, 2}, "set"),
    data("an empty list", [], "empty"),
    data("an empty dict", {}, "field"),
    data("no examples", {"x": X[:0], "y": Y[:0]}, "empty"),
    data("one field has no examples", {"x": X, "y": Y[:0]}, "x: 12", "y: 0"),
    data("unequal lengths", {"x": X, "y": Y[:7]}, "x: 12", "y: 7"),
    data("a field is a number", {"x": X, "y": 5.0}, "'y'"),
    data("a field is None", {"x": X, "y": None}, "'y'", "None"),
    data("a field is text", {"x": X, "y": "abc"}, "'y'", "text"),
    data("a column of text", with_field("s", np.array(["a"] * 12)), "'s'", "text"),
    data("objects", with_field("s", np.array([object()] * 12)), "'s'", "object"),
    data("dates", with_field("s", np.array(["2020-01-01"] * 12, "M8[D]")), "'s'", "datetime"),
    data("durations", with_field("s", np.ones(12, "m8[s]")), "'s'", "timedelta"),
    data("complex inputs", with_field("x", X + 1j), "'x'", "complex"),
    data("structured arrays", with_field("s", np.zeros(12, [("a", "f4"), ("b", "i4")])), "'s'"),
    data("ragged lists", with_field("s", [[1.0], [1.0, 2.0]] * 6), "'s'", "pad"),
    made("a masked array", lambda: with_field("x", masked()), "'x'", "masked", "filled"),
    data("a field named 1", {1: X, "x": X, "y": Y}, "1", "string"),
    data("a field named None", {None: X, "x": X, "y": Y}, "None", "string"),
    data("a field of an empty name", {"": X, "x": X, "y": Y}, "''", "name"),
    data("dotted fields that clash", {"a.b": X, "a": {"b": Y}, "x": X, "y": Y}, "'a.b'"),
    data("dotted fields of different depth that clash", {"a": X, "a.b": Y, "x": X, "y": Y}, "'a'", "'a.b'"),
    data("nested and empty", {"a": {}, "x": X, "y": Y}, "'a'"),
    data("without the input", {"z": X, "y": Y}, "'x'", "'z'"),
    data("without the target", {"x": X}, "'y'"),
    data("a misspelt target", {"x": X, "Y": Y}, "'y'", "did you mean 'Y'"),
    data("tuples without names", list(zip(X, Y, strict=True)), "MapSource", "fields"),
    data("a list of numbers", [1.0, 2.0, 3.0], "float"),
    data("a list of arrays", [X, Y], "ndarray"),
    data("an array", X, "ndarray"),
    data("a list of None", [None] * 4, "None"),
    data("a class", dict, "dict"),
    trained("a masked list of examples", lambda: [{"x": row, "y": y} for row, y in zip(masked(), Y, strict=True)], "'x'", "masked"),
    trained("text in x later", [{"x": X[0], "y": Y[0]}] * 11 + [{"x": ["a", "b", "c"], "y": Y[0]}], "'x'", "text"),
    trained("an example of another shape", [{"x": X[0], "y": Y[0]}] * 11 + [{"x": X[0, :2], "y": Y[0]}], "'x'", "(3,)", "(2,)"),
    trained("an example lacks a field", [{"x": X[0], "y": Y[0]}] * 11 + [{"x": X[0]}], "'y'"),
    trained("an example is None", [{"x": X[0], "y": Y[0]}] * 11 + [None], "None"),
    trained("NaN in x", with_field("x", np.where(X > 1, np.nan, X)), "update 1", error=NonFiniteError),
    trained("inf in y", with_field("y", np.where(Y > 1, np.inf, Y)), "update 1", error=NonFiniteError),
    trained("y of 1e200 in float32", with_field("y", Y * 1e200), "update 1", error=NonFiniteError),
    trained("y of one column", with_field("y", Y[:, 0]), "'y'", "(3, 2)", "(3,)"),
    trained("y of three columns", with_field("y", X), "'y'", "(3, 2)", "(3, 3)"),
    accepted("data: x as float16", lambda s: s.fit(train_data=with_field("x", X.astype(np.float16))), lambda r: r.updates == 2),
    accepted("data: a list of dicts", lambda s: s.fit(train_data=[{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]), lambda r: r.updates == 2, ALL),
    accepted("data: one example", lambda s: s.fit(train_data={"x": X[:1], "y": Y[:1]}), lambda r: r.history[0].examples == 1, ALL),
    accepted("data: nested lists", lambda s: s.fit(train_data={"x": X.tolist(), "y": Y.tolist()}), lambda r: r.updates == 2, ALL),
    accepted("data: a mask without a masked entry", lambda s: s.fit(train_data=with_field("x", np.ma.masked_array(X))), lambda r: r.updates == 2, ALL),
    accepted("data: a column that nobody reads", lambda s: s.fit(train_data=with_field("extra", np.arange(12))), lambda r: r.updates == 2, ALL),
    accepted("data: float target of integers", lambda s: s.fit(train_data=with_field("y", np.ones((12, 2), np.int64))), lambda r: r.updates == 2),
]  # fmt: skip


def data_frame() -> Any:
    import pandas  # noqa: PLC0415

    return pandas.DataFrame({"x": X[:, 0], "y": Y[:, 0]})


class Dataset:
    """Twelve examples, and one thing wrong."""

    def __init__(self, length: Callable[[], Any] = lambda: 12, example: Callable[[int], Any] | None = None) -> None:
        self.length = length
        self.example = example or (lambda index: {"x": X[index], "y": Y[index]})

    def __len__(self) -> int:
        return self.length()

    def __getitem__(self, index: int) -> Any:
        return self.example(int(index))


def own(*_arguments: Any) -> Any:
    raise OwnError("the disk is gone")


def from_third(index: int) -> Any:
    if index == 3:
        raise OwnError("the disk is gone")
    return {"x": X[index], "y": Y[index]}


def dataset(name: str, error: type[BaseException], *words: str, is_own: bool = False, **parts: Any) -> Case:
    """Make a case of a map-style dataset."""
    return Case(f"dataset: {name}", lambda s: s.fit(train_data=Dataset(**parts)), error, words, ALL, own=is_own)


DATASETS = [
    dataset("len is negative", ConfigurationError, "len", "-3", length=lambda: -3),
    dataset("len is text", ConfigurationError, "len", "str", length=lambda: "12"),
    dataset("len is 2.5", ConfigurationError, "len", "float", length=lambda: 2.5),
    dataset("len is 0", ConfigurationError, "empty", length=lambda: 0),
    dataset("len is 10**30", ConfigurationError, "len", length=lambda: 10**30),
    dataset("len raises", OwnError, "disk is gone", "train_data", is_own=True, length=own),
    dataset("the first example raises", OwnError, "disk is gone", "train_data", is_own=True, example=own),
    dataset("a later example raises", OwnError, "disk is gone", "train_data", "3", is_own=True, example=from_third),
    dataset("len is more than there is", IndexError, "out of bounds", "train_data", is_own=True, length=lambda: 100),
    dataset("examples are None", ConfigurationError, "None", example=lambda index: None),
    dataset("examples are numbers", ConfigurationError, "float", example=lambda index: 1.0),
    dataset("examples are empty", ConfigurationError, "field", example=lambda index: {}),
    dataset(
        "an example is masked",
        DataError,
        "'x'",
        "masked",
        example=lambda index: {"x": np.ma.masked_array(X[index], mask=[index == 3, False, False]), "y": Y[index]},
    ),
    dataset(
        "an example of another shape",
        DataError,
        "'x'",
        "(2,)",
        example=lambda index: {"x": X[index, : 2 if index == 3 else 3], "y": Y[index]},
    ),
    accepted("dataset: of 10**12 examples", lambda s: s.fit(train_data=Dataset(lambda: 10**12, lambda i: {"x": X[0], "y": Y[0]}), shuffle=False), lambda r: r.updates == 2, ALL),
    accepted("data: a DataFrame", lambda s: s.experiment(model=s.model(inputs="x"), train_data=data_frame()), lambda e: e.examples == 12, BOTH),
]  # fmt: skip


def stream(name: str, error: type[BaseException], *words: str, is_own: bool = False) -> Callable[[Any], Case]:
    """Make a case of the generator function below it."""

    def of(function: Callable[[], Iterator[Any]]) -> Case:
        return Case(f"stream: {name}", lambda s: s.fit(train_data=function), error, words, ALL, own=is_own)

    return of


def rows(count: int = 12) -> Iterator[dict[str, Any]]:
    yield from ({"x": X[index % 12], "y": Y[index % 12]} for index in range(count))


@stream("yields nothing", ConfigurationError, "empty")
def yields_nothing() -> Iterator[Any]:
    yield from ()


@stream("yields None", ConfigurationError, "None")
def yields_none() -> Iterator[Any]:
    yield None


@stream("yields tuples", ConfigurationError, "fields", "IterableSource")
def yields_tuples() -> Iterator[Any]:
    yield from zip(X, Y, strict=True)


@stream("raises at once", OwnError, "disk is gone", "train_data", is_own=True)
def raises_at_once() -> Iterator[Any]:
    own()
    yield None


@stream("raises later", OwnError, "disk is gone", "train_data", is_own=True)
def raises_later() -> Iterator[Any]:
    yield from rows(3)
    own()


@stream("changes its dtype", DataError, "'x'", "float", "int")
def changes_dtype() -> Iterator[Any]:
    yield from rows(3)
    yield from ({"x": np.arange(3), "y": row["y"]} for row in rows(9))


@stream("changes its shape", DataError, "'x'", "(3,)", "(2,)")
def changes_shape() -> Iterator[Any]:
    yield from rows(3)
    yield from ({"x": row["x"][:2], "y": row["y"]} for row in rows(9))


@stream("loses a field", DataError, "'y'")
def loses_a_field() -> Iterator[Any]:
    yield from rows(3)
    yield from ({"x": row["x"]} for row in rows(9))


@stream("gains a field", DataError, "'z'")
def gains_a_field() -> Iterator[Any]:
    yield from rows(3)
    yield from ({**row, "z": 1.0} for row in rows(9))


@stream("turns to text", DataError, "'y'", "text")
def turns_to_text() -> Iterator[Any]:
    yield from rows(3)
    yield from ({"x": row["x"], "y": "abc"} for row in rows(9))


@stream("is masked later", DataError, "'x'", "masked")
def is_masked_later() -> Iterator[Any]:
    yield from rows(3)
    yield from ({"x": np.ma.masked_array(row["x"], mask=True), "y": row["y"]} for row in rows(9))


@stream("of NaN without end", NonFiniteError, "update 1")
def of_nan() -> Iterator[Any]:
    while True:
        yield {"x": X[0] * np.nan, "y": Y[0]}


STREAMS = [
    yields_nothing,
    yields_none,
    yields_tuples,
    raises_at_once,
    raises_later,
    changes_dtype,
    changes_shape,
    loses_a_field,
    gains_a_field,
    turns_to_text,
    is_masked_later,
    of_nan,
    Case(
        "stream: of NaN without end, skipped",
        lambda s: s.fit(train_data=lambda: iter(lambda: {"x": X[0] * np.nan, "y": Y[0]}, 1), on_nonfinite="skip"),
        DataError,
        ("skipped",),
        ALL,
    ),
    Case("stream: a generator read twice", lambda s: s.trainer(train_data=rows()).fit(epochs=2), DataError, ("function",), ALL),
    Case("stream: a function that returns None", lambda s: s.fit(train_data=lambda: None), ConfigurationError, ("None",), ALL),
    Case("stream: a function that needs two arguments", lambda s: s.fit(train_data=lambda a, b: rows()), ConfigurationError, ("argument",), ALL),
    Case("stream: not the same twice", lambda s: s.fit(train_data=lambda: rows(0)), ConfigurationError, ("empty",), ALL),
]  # fmt: skip


def source(name: str, make: Callable[[], Any], error: type[Exception], *words: str) -> Case:
    """Make a case of one of the classes of `multibackend.data`."""
    return Case(f"source: {name}", lambda s: make(), error, words)


SOURCES = [
    source("ArraySource(5)", lambda: ArraySource(5), DataError, "5", "dict of arrays"),  # type: ignore[arg-type]
    source("ArraySource({})", lambda: ArraySource({}), DataError, "field"),
    source("MapSource(5)", lambda: MapSource(5), DataError, "5"),
    source("MapSource(None)", lambda: MapSource(None), DataError, "None"),
    source("MapSource fields=5", lambda: MapSource([(1, 2)], fields=5), DataError, "fields", "5"),  # type: ignore[arg-type]
    source("MapSource of too few names", lambda: MapSource([(1, 2)], fields=("x",)), DataError, "2", "1", "fields"),
    source("MapSource of the same name twice", lambda: MapSource([(1, 2)], fields=("x", "x")), DataError, "'x'", "fields"),
    source("MapSource of a name 1", lambda: MapSource([(1, 2)], fields=("x", 1)), DataError, "1", "fields"),  # type: ignore[arg-type]
    source("TableSource(5)", lambda: TableSource(5), DataError, "5", "table"),
    source("IterableSource(5)", lambda: IterableSource(5), DataError, "5"),  # type: ignore[arg-type]
    source("IterableSource batched='yes'", lambda: IterableSource([{"x": X[0]}], batched="yes"), DataError, "batched", "'yes'"),  # type: ignore[arg-type]
    source("IterableSource fields=5", lambda: IterableSource([(1, 2)], fields=5), DataError, "fields", "5"),  # type: ignore[arg-type]
    source("batches of unequal lengths", lambda: IterableSource([{"x": X, "y": Y[:5]}], batched=True), DataError, "12", "5"),
    source("batches that are numbers", lambda: IterableSource([{"x": 1.0}], batched=True), DataError, "'x'"),
]  # fmt: skip

RAGGED = {"x": [[1, 2, 3], [4]], "y": [[1, 2, 3], [4]]}


def padded(name: str, /, *words: str, error: type[Exception] = ConfigurationError, **changes: Any) -> Case:
    """Make a case of `pad_to_buckets`."""
    arguments: dict[str, Any] = {"data": RAGGED, "fields": {"x": 0, "y": -100}, "lengths": (2, 4), **changes}

    def run(setting: Setting) -> Any:
        source = pad_to_buckets(arguments["data"], **{key: value for key, value in arguments.items() if key != "data"})
        return source.take(np.array([0, 1]))

    return Case(f"padding: {name}", run, error, words)


PADDING = [
    padded("no lengths", "lengths", lengths=()),
    padded("lengths 5", "lengths", "5", lengths=5),
    padded("lengths descending", "lengths", "ascending", lengths=(4, 2)),
    padded("lengths of 0", "lengths", "0", lengths=(0, 4)),
    padded("lengths of text", "lengths", "'4'", lengths=("4",)),
    padded("fields empty", "fields", fields={}),
    padded("fields 5", "fields", "5", fields=5),
    padded("fields to text", "fields", "'0'", fields={"x": "0"}),
    padded("weights 5", "weights", "5", weights=5),
    padded("a field that is not there", "'z'", error=DataError, fields={"z": 0}),
    padded("weights that are there", "'x'", "weights=", error=DataError, weights="x"),
    padded("a sequence too long", "3", "2", "lengths", error=DataError, lengths=(1, 2)),
    padded("fields of unequal lengths", "'x'", "'y'", error=DataError, data={"x": [[1, 2], [3]], "y": [[1], [3]]}),
    padded("sequences that are numbers", "'x'", error=DataError, data={"x": [1, 2], "y": [[1], [3]]}),
]


def labels(name: str, value: Any, *words: str) -> Case:
    """Make a case of labels that do not fit two classes."""
    return Case(
        f"labels: {name}",
        lambda s: s.fit(loss=CrossEntropy(target="label"), train_data=with_field("label", value, LABELS)),
        DataError,
        words,
        BOTH,
    )


CLASSES = LABELS["label"]
TARGETS = [
    labels("2 of 2 classes", CLASSES + 1, "2", "outside"),
    labels("-1", CLASSES - 1, "-1", "outside"),
    labels("all ignored", np.full(12, -100), "weightless", "sum to 0"),
    labels("floats", CLASSES.astype(float), "integer", "astype"),
    labels("one-hot floats", np.eye(2)[CLASSES], "integer", "argmax"),
    labels("one-hot integers", np.eye(2, dtype=int)[CLASSES], "argmax"),
    labels("one column", CLASSES[:, None], "[:, 0]"),
    labels("truth values", CLASSES.astype(bool), "integer"),
    Case(
        "labels: outside in eval_data only",
        lambda s: s.evaluate(
            loss=CrossEntropy(target="label"), train_data=LABELS, eval_data=with_field("label", CLASSES + 7, LABELS)
        ),
        DataError,
        ("'label'", "outside"),
        BOTH,
    ),
    Case(
        "evaluate on data that lack a field",
        lambda s: s.trainer().evaluate({"x": X}),
        DataError,
        ("'y'",),
        ALL,
    ),
    Case("evaluate on 5", lambda s: s.trainer().evaluate(5), DataError, ("5", "data"), ALL),
    Case(
        "evaluate on nothing",
        lambda s: s.trainer().evaluate({"x": X[:0], "y": Y[:0]}),
        DataError,
        ("empty",),
        ALL,
    ),
]
assert mb

CASES = [*ARRAYS, *DATASETS, *STREAMS, *SOURCES, *PADDING, *TARGETS]
