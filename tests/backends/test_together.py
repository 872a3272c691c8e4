"""Everything at once: options that are each proved alone must not disturb each other."""

from typing import Any

import numpy as np
import pytest
from support.block_models import NnxBlocks, TorchBlocks

import multibackend as mb
from multibackend.losses import Custom, MeanSquaredError
from multibackend.optimizers import AdamW, Group, is_vector
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import SAME_ARITHMETIC

RANDOM = np.random.default_rng(5)
DATA = {
    "x": RANDOM.normal(size=(58, 3)),
    "y": RANDOM.normal(size=(58, 2)),
    "w": RANDOM.uniform(0.5, 2.0, size=58),
}


def spread(xp: Any, outputs: Any, batch: Any) -> Any:
    return xp.mean(outputs**2)


def experiment(**options: Any) -> mb.Experiment:
    arguments: dict[str, Any] = {
        "model": mb.Model(torch=TorchBlocks, jax=NnxBlocks, inputs="x", call=call()),
        "loss": {
            "main": MeanSquaredError(target="y", weights="w"),
            "spread": Custom(spread, per="micro_batch", scale=0.1),
        },
        "optimizer": AdamW(
            learning_rate=mb.schedules.WarmupCosine(peak=0.01, warmup=5, total=60),
            weight_decay=0.1,
            groups=(Group("stem.*", learning_rate_factor=0.3), Group(is_vector, weight_decay=0.0)),
        ),
        "train_data": DATA,
        "eval_data": DATA,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": {0: 3, 10: 2},
        "max_grad_norm": 0.5,
        "precision": "float64",
        "dropout": "portable",
        "rematerialize": True,
        "batch_statistics": "window",
        "ema_decay": 0.9,
        "lr_scaling": "sqrt",
        "base_batch_size": 12,
    }
    return mb.Experiment(**{**arguments, **options})


def call() -> dict[str, Any]:
    return {
        "torch": lambda model, batch, train: model(batch["x"], train=train),
        "jax": lambda model, batch, train: model(batch["x"]),
    }


@pytest.mark.parametrize("execution", ["scan", "dispatch"])
def test_all_options_match_between_backends(execution: str) -> None:
    """60 updates in float64, with terms, groups, schedules, dropout, BatchNorm, rematerialisation and an average."""
    report = mb.compare(experiment(), updates=60, executions={"jax": execution})
    assert report.matches, report.first_divergence
    assert report.max_relative_difference < 1e-9


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_rematerialisation_redraws_portable_masks(backend: str) -> None:
    """The second forward pass draws the masks of the first, so the run is the same with and without it."""
    runs = []
    for rule in (False, True):
        trainer = mb.Trainer(experiment(rematerialize=rule), backend)
        trainer.fit(updates=8)
        runs.append({**trainer.parameters(), **trainer.ema_parameters()})
    assert_arrays_match(runs[1], runs[0], relative=SAME_ARITHMETIC)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_all_options_run_in_mixed_precision(backend: str, precision: str) -> None:
    """The first loss is that of float32 on the same window; in fp16 windows may overflow and are dropped."""
    execution = "dispatch" if backend == "jax" else "auto"  # compiles half as long as scan
    low = mb.Trainer(experiment(precision=precision, shuffle=False), backend, execution=execution).fit(updates=12)
    assert {skipped.reason for skipped in low.skipped} <= {"overflow"}
    assert np.isfinite(low.history["loss"]).all()
    first = sum(skipped.update == 1 for skipped in low.skipped)
    rows = np.roll(np.arange(58), -12 * first)  # windows of 12 examples: the run begins with the first that was not
    same = experiment(shuffle=False, train_data={name: array[rows] for name, array in DATA.items()})
    high = mb.Trainer(same.replace(precision="float32"), backend, execution=execution).fit(updates=1)
    assert abs(low.history[0].loss / high.history[0].loss - 1) < 0.02
