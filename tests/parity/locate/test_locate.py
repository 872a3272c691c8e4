"""Where two models part: the stage, the layer and the place are named, on ports with one planted mistake each."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from support.port_models import LinenCnn, LinenGpt, NnxCnn, NnxGpt, TorchCnn, TorchGpt
from support.variants import QUICK

import multibackend as mb
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import ONE_WINDOW

RANDOM = np.random.default_rng(0)
TEXT = {"tokens": RANDOM.integers(0, 11, (16, 6)), "label": RANDOM.integers(0, 11, (16, 6))}
IMAGES = {"image": RANDOM.normal(size=(16, 3, 8, 8)), "label": RANDOM.integers(0, 5, 16)}
ADAM = mb.optimizers.AdamW(learning_rate=1e-2)


def experiment(reference: Any, port: Any, data: dict[str, np.ndarray], **options: Any) -> mb.Experiment:
    inputs = "tokens" if "tokens" in data else "image"
    defaults: dict[str, Any] = {"optimizer": ADAM, "precision": "float64", "gradient_accumulation_steps": 2}
    return mb.Experiment(
        model=mb.Model(torch=reference, jax=port, inputs=inputs),
        loss=mb.losses.CrossEntropy(target="label"),
        train_data=data,
        micro_batch_size=4,
        **{**defaults, **options},
    )


def gpt(mistake: str = "", port: Any = NnxGpt, **options: Any) -> mb.Experiment:
    return experiment(TorchGpt, functools.partial(port, mistake=mistake), TEXT, **options)


def cnn(mistake: str = "", port: Any = NnxCnn, **options: Any) -> mb.Experiment:
    return experiment(TorchCnn, functools.partial(port, mistake=mistake), IMAGES, **options)


# planted: (experiment, stage, what, kind of the finding, container)
MISTAKES: dict[str, tuple[mb.Experiment, str, str, str, str]] = {
    "norm epsilon": (gpt("norm epsilon"), "activations", "blocks.1.norm2", "layer", "blocks.1"),
    "tanh gelu": (gpt("tanh gelu"), "activations", "blocks.1.down", "wiring", "blocks.1"),
    "swapped q and k": (gpt("swapped q and k"), "activations", "blocks.1.attn.proj", "wiring", "blocks.1.attn"),
    "no scale": (gpt("no scale", LinenGpt), "activations", "blocks.1.attn.proj", "wiring", "blocks.1.attn"),
    "mask shifted": (gpt("mask shifted"), "activations", "blocks.1.attn.proj", "wiring", "blocks.1.attn"),
    "no residual": (gpt("no residual", LinenGpt), "activations", "blocks.1.norm2", "wiring", "blocks.1"),
    "positions from 1": (gpt("positions from 1"), "activations", "positions", "wiring", ""),
    "temperature": (gpt("temperature"), "activations", "", "wiring", ""),
    "stopped gradient": (gpt("stopped gradient"), "gradients", "blocks.1.up.weight", "", ""),
    "dilation": (cnn("dilation"), "activations", "conv", "layer", ""),
    "another activation": (cnn("another activation"), "activations", "head", "wiring", ""),
    "no residual of images": (cnn("no residual", LinenCnn), "activations", "head", "wiring", ""),
    "norm momentum": (cnn("norm momentum"), "model state", "norm.running_mean", "", ""),
}


# each is found as another row of the same stage and kind is, or in `test_every_wrong_place_is_found`
ALIKE = ("tanh gelu", "swapped q and k", "mask shifted", "temperature", "another activation")


@pytest.mark.parametrize("mistake", [pytest.param(m, marks=[pytest.mark.slow] * (m in ALIKE)) for m in MISTAKES])
def test_planted_mistakes(mistake: str) -> None:
    """The stage and the layer are right; of activations there is exactly one finding, and its place is right."""
    planted, stage, what, kind, container = MISTAKES[mistake]
    report = mb.compare(planted, updates=2, executions=QUICK)
    found = report.first_divergence
    assert not report.matches
    assert found is not None
    assert (found.stage, found.what, found.update) == (stage, what, 1)
    assert found.rounding is not None
    assert found.difference > 1e4 * found.rounding
    assert found.stage in str(found)
    assert [(one.kind, one.name, one.container) for one in report.layers] == ([(kind, what, container)] if kind else [])
    for one in report.layers:
        assert found.place == one.place
        assert (one.kind == "wiring") == bool(one.place)
        assert one.expected.shape == one.found.shape
        assert one.calls is not None
        assert all(call.outputs for pair in one.before for call in pair)
    assert report.evidence is not None
    assert report.evidence.precision == "float64"


CORRECT = {
    "GPT in nnx": gpt(),
    "GPT in linen": gpt(port=LinenGpt, max_grad_norm=0.5),
    "CNN in nnx": cnn(optimizer=mb.optimizers.SGD(learning_rate=0.05, momentum=0.9)),
    "CNN in linen": cnn(port=LinenCnn, max_grad_norm=0.1),
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("pair", CORRECT)
def test_correct_pairs(pair: str, precision: str) -> None:
    """No stage of any update finds anything; what is no failure is told in notes."""
    executions = QUICK if precision == "float32" else None
    report = mb.compare(CORRECT[pair], updates=3, precision=precision, trace=True, executions=executions)
    assert report.matches, report.first_divergence
    assert report.layers == ()
    assert report.rounding is not None
    assert report.rounding.shape == (3,)
    assert (report.rounding < 1e-3).all()
    assert any("initial values" in note and "bias" in note for note in report.notes)
    assert any("norm.running_var" in note for note in report.notes) == ("CNN" in pair)


def test_every_wrong_place_is_found() -> None:
    """Two mistakes in one port are both named, the second one unspoilt by the first."""

    class Both(NnxGpt):
        def __init__(self, rngs: Any) -> None:
            super().__init__(rngs, "norm epsilon")
            self.blocks[0].mistake = "tanh gelu"
            self.mistake = "temperature"

    report = mb.compare(experiment(TorchGpt, Both, TEXT), updates=1, executions=QUICK)
    names = [(one.kind, one.name) for one in report.layers]
    assert names == [("wiring", "blocks.0.down"), ("layer", "blocks.1.norm2"), ("wiring", "")]
    assert report.layers[0].place == "between blocks.0.up and blocks.0.down, inside blocks.0"
    halved = report.layers[2]
    assert_arrays_match(2 * halved.found, halved.expected, relative=ONE_WINDOW)
