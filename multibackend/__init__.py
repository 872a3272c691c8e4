"""Describe an experiment once; train it on PyTorch or on JAX/Flax, with matching results.

Importing this package imports no framework. See the README for a first experiment.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibackend import data, errors, events, losses, metrics, optimizers, schedules
    from multibackend.core.history import History, UpdateRecord
    from multibackend.errors import MultibackendError
    from multibackend.experiment import Experiment, Model
    from multibackend.experiment.accumulation import EffectiveBatch
    from multibackend.parity import AccumulationReport, CompareReport, check_accumulation, compare
    from multibackend.protocol.registry import BackendInfo, list_backends
    from multibackend.training.early_stopping import EarlyStopping
    from multibackend.training.saving.saver import Checkpointing
    from multibackend.training.summary import Summary, summary
    from multibackend.training.trainer import FitResult, Trainer

__all__ = [
    "AccumulationReport",
    "BackendInfo",
    "Checkpointing",
    "CompareReport",
    "EarlyStopping",
    "EffectiveBatch",
    "Experiment",
    "FitResult",
    "History",
    "Model",
    "MultibackendError",
    "Summary",
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
    "summary",
]


# everything is imported when it is first asked for: the pytest plugin lives in this package and must cost a test
# session that never uses it nothing, numpy included
_LATER = {
    "AccumulationReport": "multibackend.parity",
    "Checkpointing": "multibackend.training.saving.saver",
    "BackendInfo": "multibackend.protocol.registry",
    "CompareReport": "multibackend.parity",
    "EarlyStopping": "multibackend.training.early_stopping",
    "EffectiveBatch": "multibackend.experiment.accumulation",
    "Experiment": "multibackend.experiment",
    "FitResult": "multibackend.training.trainer",
    "History": "multibackend.core.history",
    "Model": "multibackend.experiment",
    "MultibackendError": "multibackend.errors",
    "Summary": "multibackend.training.summary",
    "Trainer": "multibackend.training.trainer",
    "UpdateRecord": "multibackend.core.history",
    "check_accumulation": "multibackend.parity",
    "compare": "multibackend.parity",
    "list_backends": "multibackend.protocol.registry",
    "summary": "multibackend.training.summary",
}
_MODULES = ("data", "errors", "events", "losses", "metrics", "optimizers", "schedules")


def __getattr__(name: str) -> Any:
    """What is looked up when it is asked for; also `__version__`, because reading the metadata takes its time."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("multibackend")
    if name not in _LATER and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    if name in _MODULES:
        return import_module(f"multibackend.{name}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
