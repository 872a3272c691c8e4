"""The weights of a run in one safetensors file, by canonical name: parameters and model state.

The file loads into a plain torch model with `safetensors.torch.load_file` and `load_state_dict(..., strict=False)`,
and into either backend here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from multibackend.core.arrays import Arrays
from multibackend.errors import DataError
from multibackend.matching.arrays import with_arrays
from multibackend.protocol import Snapshot
from multibackend.training.saving.restore import open_run
from multibackend.training.trainer import Trainer

__all__ = ["load_checkpoint", "load_weights", "save_weights"]


def save_weights(snapshot: Snapshot, path: str | Path) -> None:
    """Write parameters and model state; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {**snapshot.model_state, **snapshot.parameters}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = {"format": "multibackend-weights-1", "parameters": json.dumps(sorted(snapshot.parameters))}
    save_file(arrays, temporary, metadata=metadata)
    temporary.replace(path)


def load_weights(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a file, written on either backend.

    Raises:
        DataError: the file is not there, or is no weights file.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    _put(trainer, *_read(Path(path)))


def load_checkpoint(trainer: Trainer, path: str | Path) -> None:
    """Give a trainer the weights of a checkpoint, or of the newest valid one in a run's directory.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ParameterMatchError: its parameters and the model's do not pair up.
    """
    snapshot = open_run(path).snapshot
    _put(trainer, snapshot.parameters, snapshot.model_state)


def _put(trainer: Trainer, parameters: Arrays, state: Arrays) -> None:
    arrays, model = {**state, **parameters}, trainer.experiment.model
    trainer.restore(with_arrays(trainer.snapshot(), arrays, model, trainer.program, parameters))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    if not path.is_file():
        raise DataError(f"there are no weights at {str(path)!r}; `multibackend train --run-dir DIR` writes them")
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(json.loads((file.metadata() or {}).get("parameters", "[]")))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no weights file: {error}") from error
    parameters = {name: array for name, array in arrays.items() if name in names}
    return parameters, {name: array for name, array in arrays.items() if name not in names}
