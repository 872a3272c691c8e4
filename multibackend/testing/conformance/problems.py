"""The small problems that the suite trains on, and how a run is held against its reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from multibackend.testing.assertions import assert_arrays_match
from multibackend.testing.reference import ReferenceRun
from multibackend.testing.tolerances import ONE_WINDOW
from multibackend.training.trainer import FitResult, Trainer

__all__ = ["START", "assert_matches_reference", "columns", "regression", "tokens", "without"]

START: Mapping[str, np.ndarray] = {
    "weight": np.array([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.2]]),
    "bias": np.array([0.05, -0.1]),
}


def regression(examples: int) -> dict[str, np.ndarray]:
    """Draw "x" [examples, 3] and "y" [examples, 2], a linear function of it with noise."""
    random = np.random.default_rng(examples)
    x = random.normal(size=(examples, 3))
    noise = random.normal(size=(examples, 2))
    return {"x": x, "y": x @ np.array([[1.0, -2.0], [0.5, 0.3], [-0.7, 1.1]]) + 0.3 * noise}


def tokens(examples: int, length: int = 5) -> dict[str, np.ndarray]:
    """Draw "x" [examples, length, 3] and "label" [examples, length] of 2 classes, unevenly many of them ignored."""
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
    """Raise `MatchError` unless parameters, and of each update the loss, gradient norm and weight, match."""
    assert_arrays_match(trainer.parameters(), expected.parameters, relative=relative, what="parameters")
    history = {
        "loss": np.array(expected.losses),
        "grad_norm": np.array(expected.norms),
        "weight": np.array(expected.weights),
    }
    measured = {name: result.history[name] for name in history}
    assert_arrays_match(measured, history, relative=relative, what="history")
