"""Data frames, of pandas, polars or whoever has columns that turn into numpy arrays: columns are fields."""

from __future__ import annotations

from typing import Any

import numpy as np

from multibackend.errors import DataError

__all__ = ["frame_columns", "is_frame"]


def is_frame(data: Any) -> bool:
    """Tell whether data have named columns, each of which becomes a numpy array; asks no library."""
    # a HuggingFace dataset has `column_names`, a numpy record array neither
    return hasattr(data, "columns") and hasattr(data, "to_numpy") and hasattr(data, "__getitem__")


def frame_columns(frame: Any) -> dict[str, np.ndarray]:
    """Return the columns of a data frame by name, as arrays of numbers; its index is no field.

    A column of lists or arrays of one length becomes an array [rows, length]. Several columns that are one input
    go together beforehand: `{"x": frame[["a", "b"]].to_numpy(), "y": frame["y"].to_numpy()}`.

    Raises:
        DataError: two columns have one name, or a value is missing.
    """
    names = [str(name) for name in frame.columns]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"the data frame has several columns called {repeated[0]!r}; rename them")
    return {str(name): _column(str(name), frame[name]) for name in frame.columns}


def _column(name: str, column: Any) -> np.ndarray:
    array = np.asarray(column.to_numpy())
    # integers and booleans some of which are missing come as floats with NaN, or as objects
    is_float = "float" in str(getattr(column, "dtype", "float")).lower()
    missing = array.dtype.kind == "f" and not is_float and bool(np.isnan(array).any())
    values = array.tolist() if array.dtype.kind == "O" else []
    if missing or any(value is None or type(value).__name__ in ("NAType", "NaTType") for value in values):
        raise DataError(f"column {name!r} has missing values; fill them in or drop those rows: frame.dropna()")
    if array.dtype.kind != "O":
        return array
    try:
        return np.array([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(
            f"the rows of column {name!r} have different shapes; pad them to one, or sequences of unequal length to a "
            "few: mb.data.pad_to_buckets"
        ) from error
