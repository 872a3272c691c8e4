"""The conformance suite and the examples on JAX, where torch is not installed; `make test-newest` runs it.

No part of the ordinary suite, which has all of this beside torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import flax_models

import multibackend as mb
from multibackend.cli.experiment_file import load_experiment_file
from multibackend.testing import Variant, conformance

EXAMPLES = Path(__file__).parents[1] / "examples"
VARIANTS = [
    Variant("jax", flax_models.NNX, "scan", windows_per_dispatch=1),
    Variant("jax", flax_models.LINEN, "scan", windows_per_dispatch=4, label="linen"),
    Variant("jax", flax_models.NNX, "dispatch"),
]
UPDATES = 5


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


# every part of the suite, as a class of tests of this module
for _name in conformance.__all__:
    globals()[f"Test{_name}"] = type(f"Test{_name}", (getattr(conformance, _name),), {"__module__": __name__})


@pytest.mark.parametrize("name", ["linear_regression", "token_lm", "digits", "char_gpt"])
def test_an_example_learns(name: str) -> None:
    """In float32, as users run it."""
    experiment = load_experiment_file(EXAMPLES / f"{name}.py").build([])
    losses = mb.Trainer(experiment, "jax").fit(updates=UPDATES).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_other_backends_are_named_as_not_installed() -> None:
    """A missing framework is an error with its repair."""
    experiment = load_experiment_file(EXAMPLES / "linear_regression.py").build([])
    with pytest.raises(mb.errors.BackendNotInstalledError, match=r"multibackend\[torch\]"):
        mb.Trainer(experiment, "torch")
