"""A loss that is not finite though its gradient is: found in every execution mode, and named by its term."""

from typing import Any

import numpy as np
import pytest
from support.variants import ALL, SCAN, TORCH, Variant

from multibackend.core.precision import LossScale
from multibackend.errors import NonFiniteError
from multibackend.losses import Custom, MeanSquaredError
from multibackend.testing import assert_raises, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, regression

variants = pytest.mark.parametrize("variant", ALL, ids=str)
both = pytest.mark.parametrize("variant", [TORCH, SCAN], ids=str)


def with_constants(xp: Any, outputs: Any, batch: Any) -> Any:
    """A loss to which the data add a number, which no gradient depends on."""
    return xp.sum(outputs**2, axis=-1) + batch["added"]


TERMS = {
    "main": MeanSquaredError(target="y"),
    "odd": Custom(with_constants, per="example"),
}


def data(*bad: int, value: float = np.nan) -> dict[str, np.ndarray]:
    added = np.zeros(12)
    added[list(bad)] = value
    return {**regression(12), "added": added}


@variants
def test_one_of_several_terms(variant: Variant) -> None:
    """The term is named, with its value; the gradient is said to be finite."""
    experiment = variant.experiment(data(7), loss=TERMS, gradient_accumulation_steps=2)
    trainer = variant.trainer(experiment, START)
    error = assert_raises(NonFiniteError, lambda: trainer.fit(epochs=1), "odd = nan", "its gradient is finite")
    assert (error.update, error.terms, error.parameters) == (2, ("odd",), ())
    assert trainer.snapshot().update == 1


@both
def test_in_a_begun_window(variant: Variant) -> None:
    """A run that stops inside the window finds it at its end, also where the part before was saved and read."""
    experiment = variant.experiment(data(1), loss=TERMS, gradient_accumulation_steps=3, on_nonfinite="skip")
    trainer = variant.trainer(experiment, START)
    before = trainer.snapshot()
    trainer.fit(micro_batches=2)
    partial = trainer._run.loop.partial_window()
    trainer._run.loop.resume_at(trainer.state.position, partial)
    result = trainer.fit(micro_batches=3)
    assert [skipped.reason for skipped in result.skipped] == ["nonfinite"]
    assert_snapshots_identical(trainer.snapshot(), before)
    assert trainer.fit(updates=1).history["loss"].shape == (1,)


@both
def test_no_loss_scale_helps_it(variant: Variant) -> None:
    """In fp16 it is no overflow: the scale stays, and the first such window ends the run."""
    loss = Custom(with_constants, per="example")
    trainer = variant.trainer(variant.experiment(data(1, value=np.inf), loss=loss, precision="fp16"), START)
    error = assert_raises(NonFiniteError, lambda: trainer.fit(updates=1), "loss = inf")
    assert (error.update, error.terms, error.parameters) == (1, ("loss",), ())
    assert trainer.snapshot().loss_scale == LossScale()


@both
def test_weights_known_only_to_the_loss(variant: Variant) -> None:
    """The same where the divisor comes from the model's run."""
    loss = Custom(with_constants)
    trainer = variant.trainer(variant.experiment(data(4), loss=loss), START)
    error = assert_raises(NonFiniteError, lambda: trainer.fit(epochs=1), "update 2", "loss = nan")
    assert error.terms == ("loss",)
