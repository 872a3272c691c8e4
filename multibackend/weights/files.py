"""The weights of a run in one safetensors file, by canonical name: parameters and model state.

The file loads into a plain torch model with `safetensors.torch.load_file` and `load_state_dict(...,
strict=False)`, and into either backend here. Read by this library's own reader, which believes
nothing of a file before it is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from multibackend.checkpoint.reading import read_tensor_file
from multibackend.checkpoint.tensors import TensorError, chunks, prepare
from multibackend.core import json_text
from multibackend.core.arrays import Arrays
from multibackend.core.files import cause_of, replace_file
from multibackend.errors import DataError
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Snapshot
from multibackend.training.saving.restore import open_run
from multibackend.training.trainer import Trainer

__all__ = ["load_checkpoint", "load_weights", "read_arrays", "save_weights", "write_arrays"]


def save_weights(snapshot: Snapshot, path: str | Path) -> None:
    """Write parameters and model state; the file appears whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    # by canonical name one list serves torch's `load_state_dict`; which of them are parameters is
    # told beside it
    metadata = {"format": "multibackend-weights-1", "parameters": json.dumps(sorted(snapshot.parameters))}
    write_arrays(Path(path), {**snapshot.model_state, **snapshot.parameters}, metadata)


def load_weights(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a file, written on either backend.

    Raises:
        DataError: the file is not there, or is no weights file.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    arrays, metadata = read_arrays(Path(path))
    names = _parameter_names(metadata, path)
    parameters = {name: array for name, array in arrays.items() if name in names}
    model_state = {name: array for name, array in arrays.items() if name not in names}
    _restore(trainer, parameters, model_state)


def load_checkpoint(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a checkpoint, or of the newest valid one in a run's directory.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    snapshot = open_run(path).snapshot
    _restore(trainer, snapshot.parameters, snapshot.model_state)


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


def write_arrays(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write a safetensors file that appears whole or not at all.

    Raises:
        DataError: an array is of a type, or has a name, that is not kept.
        FileError: it cannot be written.
    """
    try:
        header, ordered = prepare(arrays, metadata)
    except TensorError as problem:
        raise DataError(f"{str(path)!r} cannot be written: {problem}") from problem
    replace_file(path, chunks(header, ordered))


def _restore(trainer: Trainer, parameters: Arrays, model_state: Arrays) -> None:
    arrays = {**model_state, **parameters}
    snapshot = with_arrays(trainer.snapshot(), arrays, trainer.experiment.model, trainer.program, parameters)
    trainer.restore(snapshot)


def _parameter_names(metadata: dict[str, str], path: str | Path) -> set[str]:
    """Return which of a file's arrays are parameters; of another library's file none is told."""
    try:
        names = json_text.load(metadata.get("parameters", "[]").encode("utf-8", "surrogatepass"), json_text.FILE)
    except json_text.JSONTextError as problem:
        raise DataError(f"{str(path)!r} is no weights file: of its metadata's parameters, {problem}") from problem
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{str(path)!r} is no weights file: its metadata's parameters are {names!r:.80}, no list of names"
        )
    return set(names)
