"""Data frames as data: their columns are fields, by what they can do and not by which library they are of."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.variants import SCAN, STUB, TORCH

from multibackend.data import as_source
from multibackend.errors import ConfigurationError, DataError
from multibackend.testing import Variant, assert_bit_identical

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(10, 3))
Y = RANDOM.normal(size=(10, 2))


class PolarsLike:
    """What a frame of another library has in common."""

    columns = ("x", "label")

    def to_numpy(self) -> Any:
        raise AssertionError("column by column, so that each keeps its type")

    def __getitem__(self, name: str) -> Any:
        return pd.Series({"x": [1.5, 2.5], "label": [0, 1]}[name])


def test_columns_are_fields() -> None:
    """Numbers keep their type, lists become axes, the index is nothing."""
    frame = pd.DataFrame({"a": np.float32([1, 2]), "k": [3, 4], "flag": [True, False], "x": [[1.0, 2.0], [3.0, 4.0]]})
    source = as_source(frame.set_index(pd.Index([7, 5])))
    assert source.fields == ("a", "k", "flag", "x")
    batch = source.take(np.array([1, 0]))
    assert [batch[name].dtype.kind for name in source.fields] == ["f", "i", "b", "f"]
    assert batch["a"].dtype == np.float32
    assert_bit_identical(batch["x"], np.array([[3.0, 4.0], [1.0, 2.0]]), what="lists")
    assert as_source(PolarsLike()).take(np.array([1]))["x"].tolist() == [2.5]
    assert as_source(pd.DataFrame({"k": pd.array([1, 2], "Int64")})).take(np.array([0]))["k"].dtype.kind in "iu"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns called 'a'"),
        (pd.DataFrame({"s": ["one", "two"]}), r"'s' must hold numbers, got text.*frame.drop\(columns=\['s'\]\)"),
        (pd.DataFrame({"k": pd.array([1, None], "Int64")}), r"'k' has missing values.*frame.dropna\(\)"),
        (pd.DataFrame({"x": [[1.0], [2.0, 3.0]]}), r"rows of column 'x' have different shapes.*pad_to_buckets"),
        (pd.DataFrame({"day": pd.to_datetime(["2020-01-01"])}), "field 'day' must hold numbers"),
        (pd.DataFrame(), "the data have no field"),
        (pd.DataFrame({"x": []}), "empty"),
    ],
)
def test_frames_that_are_no_data(frame: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_source(frame)


@pytest.mark.parametrize("variant", [TORCH, SCAN, STUB], ids=str)
def test_a_run_on_a_frame_is_that_on_its_arrays(variant: Variant) -> None:
    frame = pd.DataFrame({"x": list(X), "y": list(Y)})
    runs = [variant.trainer(variant.experiment(data)) for data in (frame, {"x": X, "y": Y})]
    losses = [run.fit(updates=2).history["loss"] for run in runs]
    assert_bit_identical(losses[0], losses[1], what="losses")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no field 'y', which the loss needs; it has 'x', 'Y'"):
        STUB.experiment(pd.DataFrame({"x": list(X), "Y": list(Y)}))
