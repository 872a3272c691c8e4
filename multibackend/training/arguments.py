"""What the verbs of a `Trainer` accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError
from multibackend.experiment import Experiment
from multibackend.training.early_stopping import EarlyStopping
from multibackend.training.stop_condition import StopCondition

__all__ = ["check_arguments", "check_ema", "check_stop_condition"]


def check_arguments(
    experiment: object, callbacks: object, device: object, windows_per_dispatch: object, read_ahead: object
) -> None:
    """What `Trainer` is made of; raises `ConfigurationError` with every problem."""
    problems = Problems("Trainer")
    if not isinstance(experiment, Experiment):
        problems.add(f"experiment must be a multibackend.Experiment, got {experiment!r}", wrong_type=True)
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        problems.add(f"callbacks must be a sequence of functions, got {callbacks!r}", wrong_type=True)
    if device is not None and not isinstance(device, str):
        problems.add(f"device must be the name of one of the backend's devices, got {device!r}", wrong_type=True)
    if windows_per_dispatch is not None:
        problems.integer("windows_per_dispatch", windows_per_dispatch, minimum=1)
    if read_ahead is not None:
        problems.boolean("read_ahead", read_ahead)
    problems.raise_if_any()


def check_ema(experiment: Experiment) -> None:
    """Raise `ConfigurationError` where no moving average is kept."""
    if experiment.ema_decay is None:
        raise ConfigurationError(
            "Trainer", ["there is no moving average; pass ema_decay= to the Experiment, for example ema_decay=0.999"]
        )


def check_stop_condition(
    updates: Any, epochs: Any, micro_batches: Any, evaluate_ema: Any, keep_best: Any, early_stopping: Any
) -> StopCondition:
    """The goal that `fit` was given; raises `ConfigurationError` with every problem."""
    problems = Problems("fit")
    goals = {"updates": updates, "epochs": epochs, "micro_batches": micro_batches}
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) != 1:
        problems.add(
            f"give either updates= or epochs= (or micro_batches=), got updates={updates!r} and epochs={epochs!r}"
            + (f" and micro_batches={micro_batches!r}" if micro_batches is not None else "")
        )
    for name, value in given.items():
        problems.integer(name, value, minimum=0)
    problems.boolean("evaluate_ema", evaluate_ema)
    problems.boolean("keep_best", keep_best)
    if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
        problems.add(f"early_stopping must be an EarlyStopping(...), got {early_stopping!r}", wrong_type=True)
    problems.raise_if_any()
    return StopCondition(**{name: int(value) for name, value in given.items()})
