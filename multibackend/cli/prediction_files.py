"""What `multibackend predict` reads and writes: arrays by name in numpy's formats, safetensors or CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO
from zipfile import BadZipFile, ZipFile

import numpy as np

from multibackend.checkpoint.weights_file import read_weights_file
from multibackend.errors import ConfigurationError, DataError
from multibackend.weights.files import write_arrays

__all__ = ["check_output", "read_data", "write_predictions"]

_READ = (".npz", ".npy", ".safetensors")
_WRITTEN = (".npz", ".safetensors", ".csv")


def check_output(path: str) -> None:
    """Raise `ConfigurationError` for a file that could not be written, before anything is predicted."""
    if Path(path).suffix not in _WRITTEN:
        listed = ", ".join(_WRITTEN)
        raise ConfigurationError("predict", [f"--output must end with one of {listed}, got {path!r}"])


def read_data(path: str) -> Any:
    """Read fields by name; of a .npy file the one array, for a model with one input."""
    place = Path(path)
    if place.suffix not in _READ:
        listed = ", ".join(_READ)
        raise ConfigurationError("predict", [f"--data must end with one of {listed}, got {path!r}"])
    if not place.is_file():
        raise DataError(f"there are no data at {path!r}")
    if place.suffix == ".safetensors":
        return read_weights_file(place).arrays
    try:
        with place.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return dict(content) if place.suffix == ".npz" else content
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path!r} cannot be read as {place.suffix}: {error}") from error


def write_predictions(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name; the file appears whole or not at all."""
    place = Path(path)
    if place.suffix == ".safetensors":
        write_arrays(place, dict(arrays), {"format": "np"})
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{os.getpid()}.{place.name}")
    if place.suffix == ".npz":
        _write_npz(temporary, arrays)
    else:
        rows = _table(arrays)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            _write_csv(file, rows)
    temporary.replace(place)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # not by `savez`, whose own arguments an output might be called like
    with ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _table(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divide arrays [examples] and [examples, n] into columns."""
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim > 2:
            problem = f"{name} has the shape {list(array.shape)}, which is no table: write .npz or .safetensors"
            raise ConfigurationError("predict", [f"{problem}, or pick a part by --part"])
        if array.ndim == 1:
            columns[name] = array
        else:
            columns.update({f"{name}.{index}": column for index, column in enumerate(array.T)})
    return columns


def _write_csv(file: TextIO, columns: Mapping[str, np.ndarray]) -> None:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
