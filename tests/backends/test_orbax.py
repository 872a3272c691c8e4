"""Orbax checkpoints in Flax's own structure, read by Flax alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from support.block_models import LinenBlocks, NnxBlocks, TorchBlocks
from support.resume_models import data, experiment

import multibackend as mb
from multibackend.errors import CheckpointError, ParameterMatchError
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.tolerances import SAME_ARITHMETIC

pytestmark = pytest.mark.filterwarnings("ignore")  # what orbax warns of is its own affair


def given(model: Any) -> mb.Experiment:
    return experiment(model=mb.Model(jax=model, torch=TorchBlocks, inputs="x"), dropout="native")


@pytest.mark.parametrize("model", [NnxBlocks, LinenBlocks], ids=["nnx", "linen"])
def test_round_trip(model: Any, tmp_path: Path) -> None:
    """What comes back are the very bits, parameters and statistics; flax alone computes the same outputs from it."""
    from multibackend_jax.orbax import export_orbax, import_orbax  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint as ocp  # noqa: PLC0415
    trainer = mb.Trainer(given(model), "jax")
    trainer.fit(updates=2)
    export_orbax(trainer, tmp_path / "saved")
    other = mb.Trainer(given(model), "jax")
    import_orbax(other, tmp_path / "saved")
    for part in ("parameters", "model_state"):
        assert_bit_identical(getattr(other.snapshot(), part), getattr(trainer.snapshot(), part), what=part)
    x, y = data()["x"][:8], data()["y"][:8]
    with jax.enable_x64(True):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(tmp_path / "saved")
        if model is LinenBlocks:
            outputs = LinenBlocks().apply(tree, x, train=False)
        else:
            module = NnxBlocks(rngs=nnx.Rngs(0))
            module.eval()
            graph, state, rest = nnx.split(module, nnx.Any(nnx.Param, nnx.BatchStat), ...)
            nnx.replace_by_pure_dict(state, nnx.restore_int_paths(tree))
            outputs = nnx.merge(graph, state, rest)(x)
        loss = float(((np.asarray(outputs) - y) ** 2).mean())
    found = trainer.evaluate({"x": x, "y": y, "w": np.ones(8)})["loss"]
    assert_arrays_match(loss, found, relative=SAME_ARITHMETIC)


def test_refusals(tmp_path: Path) -> None:
    """Another backend, another model, nothing there: each is told."""
    from multibackend_jax.orbax import export_orbax, import_orbax  # noqa: PLC0415

    torch_trainer = mb.Trainer(given(NnxBlocks), "torch")
    assert_raises(CheckpointError, lambda: export_orbax(torch_trainer, tmp_path / "a"), "jax backend")
    trainer = mb.Trainer(given(NnxBlocks), "jax")
    assert_raises(CheckpointError, lambda: import_orbax(trainer, tmp_path / "none"), "no orbax checkpoint")
    export_orbax(mb.Trainer(experiment(), "jax"), tmp_path / "other")
    assert_raises(ParameterMatchError, lambda: import_orbax(trainer, tmp_path / "other"), "stem", "shape")
