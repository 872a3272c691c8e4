"""Comparisons for the tests of the page: real ones of a matching and of a broken pair, and one with everything."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

import multibackend as mb
from multibackend.core.history import History
from multibackend.matching.links import Rearrangement
from multibackend.parity import Cause, CompareReport, Divergence, tolerance_for
from multibackend.testing.conformance.problems import regression
from support import flax_models, torch_models

EVIL = "</script><script>alert('x')</script><b>&amp;\"'" + 60 * "w"  # markup, and longer than a phone is wide


@functools.cache
def compared(*, broken: bool) -> CompareReport:
    """A line trained on both backends in float64; where `broken`, one side's loss is a little larger."""

    def square(outputs: Any, batch: Any) -> Any:
        return (outputs - batch["y"]) ** 2

    def larger(outputs: Any, batch: Any) -> Any:
        return 1.001 * (outputs - batch["y"]) ** 2

    experiment = mb.Experiment(
        name="broken line" if broken else "line",
        model=mb.Model(torch=torch_models.MODELS["linear"], jax=flax_models.NNX["linear"], inputs="x"),
        loss=mb.losses.Custom({"torch": square, "jax": larger if broken else square}),
        optimizer=mb.optimizers.Adam(learning_rate=0.01),
        train_data=regression(36),
        eval_data=regression(12),
        metrics=(mb.metrics.MeanAbsoluteError(target="y"),),
        micro_batch_size=3,
        gradient_accumulation_steps=2,
        precision="float64",
    )
    return mb.compare(experiment, updates=12)


@dataclass(frozen=True)
class Placed(Divergence):
    """A divergence with its place and a remark."""

    place: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Everything(CompareReport):
    """A report with all that a page can show."""

    gradient_differences: Any = None
    matching: Any = None
    rounding: Any = None
    layers: Any = ()


def everything(*, layers: int = 3, updates: int = 12, evil: str = "") -> Everything:
    """A deep network that parts at its second block in update 4, `evil` in every text that a user can choose."""
    random = np.random.default_rng(0)
    names = [
        f"{evil}blocks.{layer}.{part}" for layer in range(layers) for part in ("norm.weight", "fc.weight", "fc.bias")
    ]
    gaps = np.where(np.arange(updates) < 3, 0.0, 1e-5 * 1.2 ** np.arange(updates))
    gradients = gaps[:, None] * random.random((updates, len(names)))
    losses = 2.0 * 0.9 ** np.arange(updates)
    turned, kept = Rearrangement((4, 3), (1, 0), (3, 4)), Rearrangement.identity((4,))
    links = [
        SimpleNamespace(
            reference=name,
            other=name.replace("blocks.", "layers_").replace("weight", "kernel"),
            rearrangement=turned if "fc.weight" in name else kept,
            reference_shape=(4, 3) if "fc.weight" in name else (4,),
            other_shape=(3, 4) if "fc.weight" in name else (4,),
            change="transposed" if "fc.weight" in name else "as it is",
            evidence=f"{evil}gradient agrees to 1e-15" if "norm" in name else "name",
        )
        for name in names
    ]
    cause = Cause(
        name=f"{evil}LayerNorm epsilon",
        explanation=f"{evil}LayerNorm adds 1e-05 to the variance in torch, 1e-06 in jax",
        repair=f"{evil}nnx.LayerNorm(4, epsilon=1e-05, rngs=rngs)",
        before=4.3e-3,
        after=3.1e-8,
    )
    divergence = Placed(
        stage="activations",
        update=4,
        what=f"{evil}blocks.1.norm",
        values=(0.0123456789, 0.0123987654),
        difference=4.3e-3,
        rounding=2.0e-8,
        partner=f"{evil}layers_1.norm",
        causes=(cause,),
        place=f"{evil}inside blocks.1",
        remark=f"{evil}In float64 the difference stays.",
    )
    places = [
        SimpleNamespace(
            kind=kind,
            name=f"{evil}blocks.{layer}.norm",
            partner=f"{evil}layers_{layer}.norm",
            place=f"{evil}inside blocks.{layer}",
            difference=difference,
            rounding=None if layer else 2e-8,
            values=(0.5, 0.25),
        )
        for layer, (kind, difference) in enumerate((("layer", 4.3e-3), ("wiring", 0.7)))
    ]
    return Everything(
        experiment=f"{evil}port",
        backends=("torch", "jax"),
        precision="float32",
        updates=updates,
        histories=(_history(losses), _history(losses * (1 + gaps))),
        loss_differences=gaps,
        parameter_differences={name: 10.0 ** -(1 + index % 9) for index, name in enumerate(names)},
        undetermined=(names[0],),
        tolerance=tolerance_for("float32"),
        first_divergence=divergence,
        evaluations=({f"{evil}loss": 0.5, "confusion": np.eye(2)}, {f"{evil}loss": 0.51, "confusion": np.eye(2)}),
        seconds=(1.0, 2.0),
        execution_modes=("compiled", "scan"),
        notes=(f"{evil}a note",),
        settings={"optimizer": f"{evil}SGD(learning_rate=0.1)"},
        gradient_differences=gradients,
        matching=SimpleNamespace(links=links, reference_only={f"{evil}mask": f"{evil}a constant"}, other_only={}),
        rounding=np.full(updates, 1e-7),
        layers=places,
    )


def _history(losses: np.ndarray) -> History:
    history, ones = History(), np.ones(len(losses))
    history.extend(
        update=np.arange(1, len(losses) + 1),
        loss=losses,
        grad_norm=ones,
        learning_rate=ones,
        weight=ones,
        examples=ones.astype(int),
        epoch=np.zeros(len(losses), int),
    )
    return history
