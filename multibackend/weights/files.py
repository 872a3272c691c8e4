"""The weights of a run in one safetensors file, by canonical name: parameters and model state.

The file loads into a plain torch model with `safetensors.torch.load_file` and `load_state_dict(...,
strict=False)`, and into either backend here. Read by this library's own reader, which believes
nothing of a file before it is checked.
"""

from __future__ import annotations

import json
from pathlib import Path

from multibackend.checkpoint.tensors import TensorError, chunks, prepare
from multibackend.checkpoint.weights_file import read_weights_file
from multibackend.core.arrays import Arrays
from multibackend.core.files import replace_file
from multibackend.core.validation import as_path
from multibackend.errors import DataError
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Snapshot
from multibackend.training.saving.restore import open_run
from multibackend.training.trainer import Trainer

__all__ = ["load_checkpoint", "load_weights", "save_weights", "write_arrays"]


def save_weights(snapshot: Snapshot, path: str | Path) -> None:
    """Write parameters and model state; the file appears whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    # by canonical name one list serves torch's `load_state_dict`; which of them are parameters is
    # told beside it
    metadata = {"format": "multibackend-weights-1", "parameters": json.dumps(sorted(snapshot.parameters))}
    write_arrays(as_path("save_weights", "path", path), {**snapshot.model_state, **snapshot.parameters}, metadata)


def load_weights(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a file, written on either backend.

    Raises:
        DataError: the file is not there, or is no weights file.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    path = as_path("load_weights", "path", path)
    parameters, model_state = read_weights_file(path).divided()
    _restore(trainer, parameters, model_state)


def load_checkpoint(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a checkpoint, or of the newest valid one in a run's directory.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    snapshot = open_run(path).snapshot
    _restore(trainer, snapshot.parameters, snapshot.model_state)


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
