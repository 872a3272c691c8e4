"""The stages after the forward pass, on sides that are described apart; and what locating is made of."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import flax_models, torch_models

import multibackend as mb
from multibackend.core.differences import relative_difference
from multibackend.errors import ConfigurationError
from multibackend.matching import Matching
from multibackend.parity.findings import STAGES
from multibackend.parity.locate import divergence, examined_update
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.fits import find_fit
from multibackend.parity.locate.layers import finished_order, pair_layers
from multibackend.parity.locate.statistics import differs_by_bias, notes_on_initial_values
from multibackend.protocol import Snapshot
from multibackend.protocol.tracing import LayerCall, Trace
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import FORMULA

DATA = regression(24)
LABELS = {"x": DATA["x"], "label": (DATA["y"][:, 0] > 0).astype(np.int64)}
ADAM = mb.optimizers.AdamW(learning_rate=0.05)


def side(**options: Any) -> mb.Experiment:
    defaults: dict[str, Any] = {
        "model": mb.Model(
            torch=functools.partial(torch_models.Mlp, 3, 4, 2),
            jax=functools.partial(flax_models.Mlp, 3, 4, 2),
            inputs="x",
        ),
        "loss": mb.losses.CrossEntropy(target="label"),
        "optimizer": ADAM,
        "train_data": LABELS,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "precision": "float64",
    }
    return mb.Experiment(**{**defaults, **options})


def late(update: int) -> float:
    return 0.05 if update < 2 else 0.06


TURNED = {"x": LABELS["x"], "label": LABELS["label"][::-1].copy()}
# what differs on the second side: stage, update, what
APART: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "labels": ({"train_data": TURNED}, "data order", 1, "label"),
    "smaller windows": ({"gradient_accumulation_steps": 1}, "data order", 1, "micro-batches per update"),
    "label smoothing": ({"loss": mb.losses.CrossEntropy(target="label", label_smoothing=0.1)}, "loss", 1, "loss"),
    "clipping": ({"max_grad_norm": 0.01}, "clip", 1, "clip factor"),
    "decay": ({"optimizer": mb.optimizers.AdamW(learning_rate=0.05, weight_decay=0.3)}, "update", 1, "layers.0.weight"),
    "epsilon": ({"optimizer": mb.optimizers.AdamW(learning_rate=0.05, eps=1e-4)}, "update", 1, "layers.0.weight"),
    "schedule": ({"optimizer": mb.optimizers.AdamW(learning_rate=late)}, "update", 3, "layers.0.weight"),
}


@pytest.mark.parametrize("what", APART)
def test_sides_that_are_described_apart(what: str) -> None:
    """An option of one side only is found at its stage and at its update, and nothing is wrong with any layer."""
    options, stage, update, name = APART[what]
    report = mb.compare({"torch": side(), "jax": side(**options)}, updates=4)
    found = report.first_divergence
    assert found is not None
    assert (found.stage, found.update, found.what) == (stage, update, name)
    assert found.stage in STAGES
    assert [one.kind for one in report.layers] == (["loss"] if stage == "loss" else [])
    assert report.gradient_differences is not None
    assert report.gradient_differences.shape == (4, len(report.parameter_differences))


def test_two_alike_sides_match() -> None:
    """Described apart but alike, in either order of the backends; heat is rounding only."""
    report = mb.compare({"jax": side(), "torch": side()}, updates=3, trace=True)
    assert report.backends == ("jax", "torch")
    assert report.matches, report.first_divergence
    assert report.gradient_differences is not None
    assert report.gradient_differences.max() < FORMULA
    assert report.gradient_differences.shape == (3, 6)


def test_sides_must_agree() -> None:
    """Two backends, one precision, one seed; all problems together."""
    assert_raises(ConfigurationError, lambda: mb.compare({"torch": side()}), "two backends")
    other = side(precision="float32", seed=4)
    assert_raises(ConfigurationError, lambda: mb.compare({"torch": side(), "jax": other}), "one precision", "one seed")


def test_rounding_is_told_from_a_difference() -> None:
    """A float32 run that rounding alone drives apart: float64 agrees, and the report says where it stands out."""
    # wild enough to part within 20 updates; at a rate of 4 the outputs saturate, and on some processors a gradient of
    # 3e-19 then differs in float64 too
    wild = side(optimizer=mb.optimizers.SGD(learning_rate=3.0, momentum=0.9), precision="float32", train_data=LABELS)
    report = mb.compare(wild, updates=40)
    assert report.rounding is not None
    assert report.rounding.shape == (40,)
    assert report.rounding.max() > 1e-6
    if report.matches:
        pytest.skip("on this machine the run stays together")
    assert any("in float64 the runs agree" in note for note in report.notes)
    assert report.layers == ()


def test_bounds_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for rounding a correct pair raises an alarm; with too much a mistake goes unseen."""

    def with_bound(bound: float) -> mb.CompareReport:
        for module in (examined_update, divergence):
            monkeypatch.setattr(module, "bound_for", lambda precision: lambda rounding: bound)
        smoothed = side(loss=mb.losses.CrossEntropy(target="label", label_smoothing=0.1))
        return mb.compare({"torch": side(), "jax": side() if bound == 0 else smoothed}, updates=2, trace=True)

    assert not with_bound(0.0).matches
    blind = with_bound(1e9).first_divergence
    assert blind is not None
    assert blind.rounding is None  # the bound of the whole comparison, which names no stage beyond the loss


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape)


IMAGE = rows(4, 3, 5, 5)
HEADS = rows(2, 6, 3, 4)
FITS = [
    (IMAGE, IMAGE),
    (IMAGE, IMAGE.transpose(0, 2, 3, 1)),
    (IMAGE, IMAGE.transpose(0, 2, 3, 1).reshape(4, 25, 3)),
    (HEADS, HEADS.transpose(0, 2, 1, 3)),
    (HEADS.reshape(2, 6, 12), HEADS.transpose(0, 2, 1, 3)),
    (HEADS, HEADS.reshape(2, 6, 12)),
    (IMAGE.reshape(4, -1), IMAGE.transpose(0, 2, 3, 1).reshape(4, -1)),
    (rows(2, 3), rows(2, 3)[:, :, None]),
]


@pytest.mark.parametrize("index", range(len(FITS)))
def test_layouts_are_found(index: int) -> None:
    """The layout is found, serves other arrays of that shape, and its inverse gives the other's layout back."""
    reference, other = FITS[index]
    fit = find_fit(reference, other, hints=[(3, 5, 5)])
    assert fit is not None
    assert fit.difference == 0.0
    assert_bit_identical(fit.to_reference(other), reference)
    assert_bit_identical(fit.to_other(reference), other)
    assert_bit_identical(fit.to_other(fit.to_reference(2 * other)), 2 * other)


def test_layouts_of_what_does_not_agree() -> None:
    """The usual one; a permutation of other arrays where it is possible; none for other sizes; one row for many."""
    noise = rows(4, 5, 5, 3) + 3
    fit = find_fit(IMAGE, noise)
    assert fit is not None
    assert_bit_identical(fit.to_reference(noise), noise.transpose(0, 3, 1, 2))
    square, other = rows(4, 5, 5, 5), rows(4, 5, 5, 5) + 3
    plain, guided = find_fit(square, other), find_fit(square, other, usual=[(0, 3, 1, 2)])
    assert plain is not None
    assert guided is not None
    assert_bit_identical(plain.to_reference(other), other)
    assert_bit_identical(guided.to_reference(other), other.transpose(0, 3, 1, 2))
    assert find_fit(rows(3), rows(4)) is None
    one, many = rows(1, 6), np.repeat(rows(1, 6), 4, axis=0)
    repeated = find_fit(one, many)
    assert repeated is not None
    assert repeated.difference == 0.0
    assert_bit_identical(repeated.to_other(one), many)
    assert_bit_identical(repeated.to_reference(many), one)


def test_relative_difference() -> None:
    """Against the largest element; infinities of one sign are equal; a NaN on one side is infinitely far."""
    a = np.array([1.0, -4.0, np.inf])
    assert relative_difference(a, a) == 0.0
    assert relative_difference(a, np.array([2.0, -4.0, np.inf])) == 0.25
    assert relative_difference(a, np.array([np.nan, -4.0, np.inf])) == np.inf
    assert relative_difference(np.zeros(0), np.zeros(0)) == 0.0


def call(name: str, kind: str, depth: int, *, leaf: bool = True, size: int = 4) -> LayerCall:
    return LayerCall(name, 0, kind, (), (np.zeros((2, size)),), leaf, depth=depth)


def trace(*layers: LayerCall) -> Trace:
    return Trace(layers, (), np.zeros(1))


def test_layers_are_paired() -> None:
    """By the parameters below them, by name, by their place among their kind; what one side lacks is left out."""
    first = trace(
        call("", "Net", 0, leaf=False),
        call("body", "Body", 1, leaf=False),
        call("body.up", "Linear", 2),
        call("body.act", "GELU", 2),
        call("body.drop", "Dropout", 2),
        call("body.down", "Linear", 2),
        call("pool", "MaxPool2d", 1),
    )
    second = trace(
        call("", "Net", 0, leaf=False),
        call("wrapper", "Wrapper", 1, leaf=False),
        call("wrapper.first", "Dense", 2),
        call("wrapper.Dropout_0", "Dropout", 2),
        call("wrapper.second", "Dense", 2),
        call("other", "Extra", 1),
        call("Pool_0", "Pool", 1),
    )
    links = [("body.up.weight", "wrapper.first.kernel"), ("body.down.weight", "wrapper.second.kernel")]
    found = {
        (first.layers[pair.reference].name, second.layers[pair.other].name)
        for pair in pair_layers(first, second, links)
    }
    assert found == {
        ("", ""),
        ("body", "wrapper"),
        ("body.up", "wrapper.first"),
        ("body.down", "wrapper.second"),
        ("body.drop", "wrapper.Dropout_0"),
        ("pool", "Pool_0"),
    }
    assert finished_order(first.layers) == [2, 3, 4, 5, 1, 6, 0]


def test_biased_variance_is_known() -> None:
    """n / (n - 1) after one step or several, either way round; not another momentum, nor another variance."""
    random, before = np.random.default_rng(0), np.ones(6)
    biased = unbiased = before
    for _ in range(3):
        new = random.uniform(0.5, 4, 6)
        biased, unbiased = 0.9 * biased + 0.1 * new, 0.9 * unbiased + 0.1 * new * 8 / 7
        assert differs_by_bias(unbiased, biased, before) == 8
        assert differs_by_bias(biased, unbiased, before) == 8
    assert differs_by_bias(0.99 * before + 0.01 * new, 0.9 * before + 0.1 * new, before) is None
    assert differs_by_bias(biased + random.uniform(0, 0.1, 6), biased, before) is None
    assert differs_by_bias(biased, biased, before) is None


def test_initial_laws_are_told() -> None:
    """Zero or not, another spread, uniform or normal; two draws of one law give no note."""
    random = np.random.default_rng(0)
    own = {"w": random.normal(size=(40, 40)), "b": random.uniform(-1, 1, 40), "n": np.ones(8)}
    same = {"w": random.normal(size=(40, 40)), "b": random.uniform(-1, 1, 40), "n": np.ones(8)}
    assert notes_on_initial_values(own, same) == []
    wide = np.sqrt(3) * random.uniform(-1, 1, (40, 40))
    notes = notes_on_initial_values(own, {"w": wide, "b": np.zeros(40), "n": np.zeros(8)})
    assert len(notes) == 3
    assert "w: normal" in notes[0]
    assert "against uniform" in notes[0]
    assert notes[1].endswith("against all 0")
    assert notes[2].endswith("all 1 against all 0")


def test_states_cross_and_come_back() -> None:
    """Parameters, slots and model state; what has no partner stays the other's own."""
    weight = rows(2, 3)
    ours = Snapshot({"a": weight}, {"s": np.ones(2)}, {"exp_avg": {"a": 2 * weight}}, update=3)
    theirs = Snapshot({"b": 0 * weight}, {"t": np.zeros(2), "own": np.ones(1)}, {"exp_avg": {"b": weight}})
    bridge = Bridge(Matching.of_pairs({"b": "a"}, {"a": (2, 3)}), Matching.of_pairs({"t": "s"}, {"s": (2,)}))
    moved = bridge.to_other(ours, theirs)
    assert_bit_identical(moved.parameters, {"b": weight})
    assert_bit_identical(moved.model_state, {"t": np.ones(2), "own": np.ones(1)})
    assert_bit_identical(moved.optimizer, {"exp_avg": {"b": 2 * weight}})
    assert moved.update == 3
    back = bridge.to_reference(moved)
    assert_bit_identical(
        (back.parameters, back.model_state, back.optimizer), (ours.parameters, ours.model_state, ours.optimizer)
    )
    without = bridge.to_other(replace(ours, optimizer={}), theirs)
    assert_bit_identical(without.optimizer, theirs.optimizer)
    assert_arrays_match(bridge.gradients({"b": weight}), {"a": weight}, relative=0.0)
