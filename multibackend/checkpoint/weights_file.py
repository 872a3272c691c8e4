"""Files of weights in safetensors: a model's arrays by name, and which of them are parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multibackend.checkpoint.reading import read_tensor_file
from multibackend.checkpoint.tensors import TensorError
from multibackend.core import json_text
from multibackend.core.files import cause_of
from multibackend.errors import DataError

__all__ = ["WeightsFile", "read_arrays", "read_weights_file"]


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        arrays: by name.
        parameters: the names of those that are parameters; None where the file does not say, which only the library's
            own do.
    """

    arrays: dict[str, np.ndarray]
    parameters: frozenset[str] | None

    def divided(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return (parameters, the rest); all is the rest where the file does not say."""
        names = self.parameters or frozenset()
        parameters = {name: array for name, array in self.arrays.items() if name in names}
        return parameters, {name: array for name, array in self.arrays.items() if name not in names}


def read_weights_file(path: Path) -> WeightsFile:
    """Read a file of weights; raise `DataError` where there is none or it is no such file."""
    arrays, metadata = read_arrays(path)
    return WeightsFile(arrays, _parameter_names(metadata, path))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read (arrays, metadata) of a safetensors file; bfloat16 becomes float32.

    Raises:
        DataError: it is not there, or is none.
    """
    try:
        return read_tensor_file(path)
    except FileNotFoundError as error:
        raise DataError(
            f"there are no weights at {str(path)!r}; `multibackend train --run-dir DIR` writes them"
        ) from error
    except TensorError as problem:
        raise DataError(f"{str(path)!r} is no weights file: it {problem}") from problem
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {cause_of(error)}") from error


def _parameter_names(metadata: dict[str, str], path: Path) -> frozenset[str] | None:
    """Return which of a file's arrays are parameters; None in another library's file, which does not tell."""
    if "parameters" not in metadata:
        return None
    try:
        names = json_text.load(metadata["parameters"].encode("utf-8", "surrogatepass"), json_text.FILE)
    except json_text.JSONTextError as problem:
        raise DataError(f"{str(path)!r} is no weights file: of its metadata's parameters, {problem}") from problem
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{str(path)!r} is no weights file: its metadata's parameters are {names!r:.80}, no list of names"
        )
    return frozenset(names)
