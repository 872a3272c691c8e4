"""Files of weights in safetensors: a model's arrays by name, and which of them are parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from multibackend.errors import DataError

__all__ = ["WeightsFile", "read_weights_file"]


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
    if not path.is_file():
        raise DataError(f"there are no weights at {str(path)!r}; `multibackend train --run-dir DIR` writes them")
    try:
        with safe_open(path, framework="numpy") as file:
            listed = (file.metadata() or {}).get("parameters")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
            return WeightsFile(arrays, None if listed is None else frozenset(json.loads(listed)))
    except (SafetensorError, ValueError, TypeError) as error:  # a TypeError: numpy has no bfloat16
        raise DataError(f"{str(path)!r} is no weights file: {error}") from error
