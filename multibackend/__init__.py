"""Describe an experiment once; train it on PyTorch or on JAX/Flax, with matching results.

Importing this package imports no framework. See the README for a first experiment.
"""

from multibackend import data, errors, events, losses, metrics, optimizers, schedules
from multibackend.accumulation import EffectiveBatch
from multibackend.errors import MultibackendError
from multibackend.experiment import Experiment, Model
from multibackend.history import History, UpdateRecord
from multibackend.parity import AccumulationReport, CompareReport, check_accumulation, compare
from multibackend.registry import BackendInfo, list_backends
from multibackend.stopping import EarlyStopping
from multibackend.trainer import FitResult, Trainer

__all__ = [
    "AccumulationReport",
    "BackendInfo",
    "CompareReport",
    "EarlyStopping",
    "EffectiveBatch",
    "Experiment",
    "FitResult",
    "History",
    "Model",
    "MultibackendError",
    "Trainer",
    "UpdateRecord",
    "check_accumulation",
    "compare",
    "data",
    "errors",
    "events",
    "list_backends",
    "losses",
    "metrics",
    "optimizers",
    "schedules",
]


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: reading the metadata takes a fifth of the import."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("multibackend")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
