"""Describe an experiment once; train it on PyTorch or on JAX/Flax, with matching results.

Importing this package imports no framework. See the README for a first experiment.
"""

from importlib.metadata import version as _version

from multibackend import data, errors, events, losses, metrics, optimizers, schedules
from multibackend.accumulation import EffectiveBatch
from multibackend.errors import MultibackendError
from multibackend.experiment import Experiment, Model
from multibackend.history import History, UpdateRecord
from multibackend.parity import AccumulationReport, CompareReport, check_accumulation, compare
from multibackend.registry import BackendInfo, list_backends
from multibackend.trainer import FitResult, Trainer

__version__ = _version("multibackend")

__all__ = [
    "AccumulationReport",
    "BackendInfo",
    "CompareReport",
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
