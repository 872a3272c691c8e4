"""The small problems that the suite trains on, and how a run is held against its reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.testing.assertions import assert_arrays_match
from multibackend.testing.reference import ReferenceRun
from multibackend.testing.tolerances import ONE_WINDOW
from multibackend.testing.variant import Variant
from multibackend.training.trainer import FitResult, Trainer

__all__ = [
    "START",
    "arrays_equal",
    "assert_matches_reference",
    "columns",
    "linear_trainer",
    "load_constant",
    "moved_by_gradient",
    "regression",
    "tokens",
    "without",
]

START: Mapping[str, np.ndarray] = {
    "weight": np.array([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.2]]),
    "bias": np.array([0.05, -0.1]),
}


def linear_trainer(variant: Variant, data: Any, **options: Any) -> Trainer:
    """Make a trainer of the linear model, from `START`."""
    return variant.trainer(variant.experiment(data, **options), START)


def load_constant(trainer: Trainer) -> None:
    """Make every parameter 0.5, so that two runs begin alike whatever their initial draws."""
    arrays = trainer.parameters()
    for name, array in arrays.items():
        arrays[name] = np.full_like(array, 0.5)
    trainer.load_parameters(arrays)


def moved_by_gradient(start: Arrays, end: Arrays) -> dict[str, np.ndarray]:
    """Read the gradient of one update of plain SGD at the rate 0.1 off how far it moved."""
    return {name: (start[name] - array) / 0.1 for name, array in end.items()}


def arrays_equal(first: Arrays, second: Arrays) -> bool:
    """Tell whether two sets of arrays hold the same values."""
    return all(np.array_equal(array, second[name]) for name, array in first.items())


def regression(examples: int) -> dict[str, np.ndarray]:
    """Draw "x" [examples, 3] and "y" [examples, 2], a linear function of it with noise."""
    random = np.random.default_rng(examples)
    x = random.normal(size=(examples, 3))
    noise = random.normal(size=(examples, 2))
    return {"x": x, "y": x @ np.array([[1.0, -2.0], [0.5, 0.3], [-0.7, 1.1]]) + 0.3 * noise}


def tokens(examples: int, length: int = 5) -> dict[str, np.ndarray]:
    """Draw "x" [examples, length, 3] and "label" [examples, length], unevenly many ignored."""
    random = np.random.default_rng(examples)
    x = random.normal(size=(examples, length, 3))
    label = (x[..., 0] - x[..., 1] > 0).astype(np.int64)
    keep = random.integers(0, length + 1, size=examples)  # how many tokens of each example count
    keep[0] = length  # so that the first window always weighs something
    label[np.arange(length) >= keep[:, None]] = -100
    return {"x": x, "label": label}


def without(data: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """Return the data as they are where examples `start` to `stop` never existed."""
    return {name: np.delete(array, np.s_[start:stop], axis=0) for name, array in data.items()}


def columns(result: FitResult) -> dict[str, np.ndarray]:
    """Return what a run measured, update by update."""
    return {name: result.history[name] for name in ("loss", "grad_norm", "learning_rate", "weight")}


def assert_matches_reference(
    trainer: Trainer, result: FitResult, expected: ReferenceRun, *, relative: float = ONE_WINDOW
) -> None:
    """Raise `MatchError` unless parameters, and each update's loss, norm and weight, match."""
    parameters = trainer.parameters()
    assert_arrays_match(parameters, expected.parameters, relative=relative, what="parameters")
    history = {
        "loss": np.array(expected.losses),
        "grad_norm": np.array(expected.norms),
        "weight": np.array(expected.weights),
    }
    measured = {name: result.history[name] for name in history}
    assert_arrays_match(measured, history, relative=relative, what="history")
