"""The formulas of the diagnosis against torch's own functions, and that they stay silent where they know nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from multibackend.parity.causes.attention import DEFAULTS, attend
from multibackend.parity.causes.convolutions import pool
from multibackend.parity.causes.data import data_difference
from multibackend.parity.causes.diagnosis import diagnose
from multibackend.parity.causes.formats import narrowest, rounded
from multibackend.parity.causes.formulas import Difference, Formula
from multibackend.parity.causes.functions import ACTIVATIONS
from multibackend.parity.causes.gradients import gradient_difference
from multibackend.parity.causes.layers import arrival_causes, layer_difference
from multibackend.parity.causes.losses import RecordedLoss, loss_difference
from multibackend.parity.causes.place import Place
from multibackend.parity.causes.recorded_layers import RecordedLayer, Source
from multibackend.parity.causes.relations import dropped
from multibackend.parity.causes.sentences import cause_of
from multibackend.parity.causes.states import RecordedStatistic, statistics_difference
from multibackend.parity.causes.update_fits import RecordedUpdates, update_difference
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.protocol.tracing import LayerCall
from multibackend.testing import assert_arrays_match
from multibackend.testing.tolerances import FORMULA

RANDOM = np.random.default_rng(11)
IMAGES, TEXT = RANDOM.normal(size=(3, 4, 8, 8)), RANDOM.normal(size=(3, 5, 12))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def side(kind: str, x: np.ndarray, y: Any, parameters: dict[str, np.ndarray], **settings: Any) -> RecordedLayer:
    """A layer called "layer" that made y of x."""
    named = {f"layer.{name}": array for name, array in parameters.items()}
    call = LayerCall("layer", 0, kind, (x,), (np.asarray(y),), leaf=True, settings=settings, parameters=tuple(named))
    return RecordedLayer(call, named)


def traits(found: Difference | None) -> dict[str, tuple[Any, Any]]:
    """What differs, with both values; the proof must hold."""
    assert found is not None
    assert found.after is None or found.after <= 1e-9 * max(found.before, 1e-3)
    return {name: (found.formulas[0].traits.get(name), found.formulas[1].traits.get(name)) for name in found.traits}


def arrived(sources: dict[str, np.ndarray], first: Any, second: Any) -> Difference | None:
    """The cause of two arrivals made of the same sources, the first one the latest."""
    call = LayerCall("next", 0, "Linear", (), (), leaf=True)
    held = tuple(Source(name, array) for name, array in sources.items())
    one = RecordedLayer(call, sources=held)
    return arrival_causes((one, one), (np.asarray(first), np.asarray(second)))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 3.7e-4])
def test_epsilon_of_a_norm_is_read_from_numbers(epsilon: float) -> None:
    """Also an unusual one that no setting tells, and with settings that lie."""
    weights = {"weight": RANDOM.normal(size=12), "bias": RANDOM.normal(size=12)}
    made = [
        F.layer_norm(tensor(TEXT), (12,), tensor(weights["weight"]), tensor(weights["bias"]), eps)
        for eps in (1e-5, epsilon)
    ]
    sides = tuple(side("LayerNorm", TEXT, y, weights, eps=1e-12) for y in made)
    found = layer_difference((sides[0], sides[1]))
    assert traits(found) == {"epsilon": (1e-5, epsilon)}
    assert found is not None
    cause = cause_of(found, Place(("torch", "jax"), "layer", (sides[0].call, sides[1].call)))
    assert cause.name == "LayerNorm epsilon"
    assert f"adds epsilon 1e-05 to the variance in torch, {epsilon:g} in jax" in cause.explanation
    assert cause.repair == f"in jax: LayerNorm(..., eps=1e-05), or in torch: LayerNorm(..., eps={epsilon:g})"


def test_norms_of_images_and_by_the_root_mean_square() -> None:
    """BatchNorm with channels first and last; RMSNorm against LayerNorm."""
    weights = {"weight": RANDOM.normal(size=4), "bias": RANDOM.normal(size=4)}
    one, other = (
        F.batch_norm(tensor(IMAGES), None, None, *map(tensor, weights.values()), training=True, eps=eps).numpy()
        for eps in (1e-5, 1e-3)
    )
    last = side("BatchNorm", np.moveaxis(IMAGES, 1, -1), np.moveaxis(other, 1, -1), weights)
    assert traits(layer_difference((side("BatchNorm2d", IMAGES, one, weights), last))) == {"epsilon": (1e-5, 1e-3)}
    scale = {"weight": RANDOM.normal(size=12)}
    rms = F.rms_norm(tensor(TEXT), (12,), tensor(scale["weight"]), eps=1e-5)
    layer = F.layer_norm(tensor(TEXT), (12,), tensor(scale["weight"]), None, 1e-5)
    sides = side("RMSNorm", TEXT, rms, scale), side("RMSNorm", TEXT, layer, scale)
    assert traits(layer_difference(sides)) == {"mean": ("left in", "subtracted")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"padding": 0}, {"padding": ((1, 1), (0, 0))}),
        ({"stride": 2, "padding": 1}, {"stride": (1, 2)}),
        ({"dilation": 2, "padding": 2}, {"dilation": (1, 2), "padding": ((1, 1), (2, 2))}),
        ({"groups": 2, "padding": 0}, {"padding": ((1, 1), (0, 0))}),
    ],
)
def test_convolutions(options: dict[str, Any], expected: dict[str, Any]) -> None:
    """Against torch's: padding, stride, dilation, groups; the other side with its channels last."""
    groups = options.get("groups", 1)
    weights = {"weight": RANDOM.normal(size=(6, 4 // groups, 3, 3)), "bias": RANDOM.normal(size=6)}
    kernel = [tensor(weights[name]) for name in ("weight", "bias")]
    one = F.conv2d(tensor(IMAGES), *kernel, padding=1, groups=groups)
    other = np.moveaxis(F.conv2d(tensor(IMAGES), *kernel, **options).numpy(), 1, -1)
    last = side("Conv", np.moveaxis(IMAGES, 1, -1), other, weights)
    found = traits(layer_difference((side("Conv2d", IMAGES, one, weights), last)))
    assert {name: tuple(map(str, pair)) for name, pair in found.items()} == {
        name: tuple(map(str, pair)) for name, pair in expected.items()
    }


def test_linear_layers() -> None:
    """A bias left out, a square weight turned round, factors with 10 bits; and a smaller format."""
    weights = {"weight": RANDOM.normal(size=(12, 12)), "bias": RANDOM.normal(size=12)}
    w, b = weights["weight"], weights["bias"]
    reference = side("Linear", TEXT, TEXT @ w.T + b, weights)
    wrong = {
        "bias": (TEXT @ w.T, ("added", "left out")),
        "weight": (TEXT @ w + b, ("its own", "its own, transposed")),
        "digits of the factors": (rounded(TEXT, "tf32") @ rounded(w, "tf32").T + b, ("all", "tf32")),
        "format": ((TEXT.astype(np.float32) @ w.T.astype(np.float32) + b.astype(np.float32)), ("float64", "float32")),
    }
    for trait, (y, values) in wrong.items():
        assert traits(layer_difference((reference, side("Linear", TEXT, y, weights)))) == {trait: values}


def test_no_cause_is_made_up() -> None:
    """Outputs that no formula gives, equal ones, and one formula on both sides explain nothing."""
    weights = {"weight": RANDOM.normal(size=12), "bias": RANDOM.normal(size=12)}
    right = F.layer_norm(tensor(TEXT), (12,), *map(tensor, weights.values()))
    reference = side("LayerNorm", TEXT, right, weights)
    assert layer_difference((reference, side("LayerNorm", TEXT, right, weights))) is None
    for size in (1e-3, 1.0):
        odd = right.numpy() + size * RANDOM.normal(size=TEXT.shape)
        assert layer_difference((reference, side("LayerNorm", TEXT, odd, weights))) is None
    assert arrived({"x": TEXT}, np.tanh(TEXT), RANDOM.normal(size=TEXT.shape)) is None
    assert arrived({"x": TEXT}, RANDOM.normal(size=TEXT.shape), np.tanh(TEXT)) is None


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu (erf)", F.gelu),
        ("gelu (tanh)", lambda x: F.gelu(x, approximate="tanh")),
        ("relu", F.relu),
        ("silu", F.silu),
        ("softplus", F.softplus),
        ("elu", F.elu),
        ("selu", F.selu),
        ("mish", F.mish),
        ("relu6", F.relu6),
        ("hard swish", F.hardswish),
        ("hard sigmoid", F.hardsigmoid),
        ("softsign", F.softsign),
        ("log sigmoid", F.logsigmoid),
        ("leaky relu 0.01", F.leaky_relu),
        ("softmax", lambda x: F.softmax(x, -1)),
        ("log softmax", lambda x: F.log_softmax(x, -1)),
    ],
)
def test_activations(name: str, function: Any) -> None:
    """Each is torch's, and told from another by what arrives."""
    wanted = function(tensor(4 * TEXT)).numpy()
    assert_arrays_match({"y": ACTIVATIONS[name](4 * TEXT)}, {"y": wanted}, relative=FORMULA)
    assert traits(arrived({"x": 4 * TEXT}, wanted, np.tanh(4 * TEXT)))["activation"] == (name, "tanh")


def test_sums_gates_and_axes() -> None:
    """Residuals, factors, gated units, flattened images, pooling."""
    a, b, c = (RANDOM.normal(size=(3, 5, 12)) for _ in range(3))
    sources = {"a": a, "b": b, "c": c}
    assert traits(arrived(sources, a + b, a)) == {"terms": ((("a", "1"), ("b", "1")), (("a", "1"),))}
    scaled = traits(arrived(sources, a + math.sqrt(12) * b, a + b))["terms"]
    assert scaled == ((("a", "1"), ("b", "sqrt(12)")), (("a", "1"), ("b", "1")))
    relu = traits(arrived(sources, np.maximum(a + b + c, 0), np.maximum(a + c, 0)))["terms"]
    assert [name for name, _ in relu[1]] == ["a", "c"]
    gates = [ACTIVATIONS[name](a) * b for name in ("silu", "gelu (tanh)")]
    assert traits(arrived(sources, *gates)) == {"activation": ("silu", "gelu (tanh)")}
    flat = IMAGES.reshape(3, -1), IMAGES.transpose(0, 2, 3, 1).reshape(3, -1)
    assert "order of axes" in traits(arrived({"image": IMAGES}, *flat))
    pooled = F.avg_pool2d(tensor(IMAGES), 2).numpy(), F.max_pool2d(tensor(IMAGES), 2).numpy()
    assert traits(arrived({"image": IMAGES}, *pooled))["pooling"] == ("average", "max")


def test_pooling_is_that_of_torch() -> None:
    """With padding that counts and padding that does not."""
    pads = ((1, 1), (1, 1))
    for kind, wanted in {
        "max": F.max_pool2d(tensor(IMAGES), 3, 2, 1),
        "average": F.avg_pool2d(tensor(IMAGES), 3, 2, 1),
        "average of what is there": F.avg_pool2d(tensor(IMAGES), 3, 2, 1, count_include_pad=False),
    }.items():
        assert_arrays_match({"y": pool(IMAGES, 3, 2, pads, kind)}, {"y": wanted.numpy()}, relative=FORMULA)


def test_attention_is_that_of_torch() -> None:
    """Causal and not, and with a fused projection; heads are told from the numbers."""
    q, k, v = (RANDOM.normal(size=(2, 5, 12)) for _ in range(3))
    heads = [tensor(x).view(2, 5, 3, 4).transpose(1, 2) for x in (q, k, v)]
    made = {}
    for mask, causal in (("none", False), ("causal", True)):
        wanted = F.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2).reshape(2, 5, 12).numpy()
        given = {name: Source(name, array) for name, array in (("q", q), ("k", k), ("v", v))}
        how = {"query": "q", "key": "k", "value": "v", "heads": 3, "mask": mask, **DEFAULTS}
        found = attend(how, given)
        assert found is not None
        assert_arrays_match({"y": found}, {"y": wanted}, relative=FORMULA)
        made[mask] = wanted
    assert traits(arrived({"v": v, "k": k, "q": q}, made["causal"], made["none"])) == {"mask": ("causal", "none")}
    fused = {"qkv": np.concatenate([q, k, v], -1)}
    assert traits(arrived(fused, made["causal"], made["none"])) == {"mask": ("causal", "none")}


def test_dropout_and_formats() -> None:
    """A rate is read from zeros and from the factor; the smallest format that holds numbers is found."""
    kept = RANDOM.random(TEXT.shape) >= 0.3
    found = dropped((TEXT, np.where(kept, TEXT / 0.7, 0)))
    assert traits(found) == {"rate": (0.0, 0.3)}
    assert dropped((TEXT, np.where(kept, TEXT, 0))) is None
    for name in ("bf16", "fp16", "float32"):
        assert narrowest(rounded(TEXT, name)) == name
    assert narrowest(TEXT) is None
    assert_arrays_match({"y": rounded(TEXT, "bf16")}, {"y": tensor(TEXT).bfloat16().double().numpy()}, relative=FORMULA)


@pytest.mark.parametrize(
    ("options", "trait", "values"),
    [
        ({"label_smoothing": 0.1}, "label smoothing", (0.0, 0.1)),
        ({"reduction": "sum"}, "reduction", ("mean", "sum")),
        ({"ignore_index": 3}, "ignored label", ("none", 3)),
    ],
)
def test_losses(options: dict[str, Any], trait: str, values: tuple[Any, Any]) -> None:
    """Against torch's cross entropy."""
    labels = RANDOM.integers(0, 12, size=(3, 5))
    labels[0, 0] = 3
    flat = tensor(TEXT).flatten(0, 1), tensor(labels).flatten()
    losses = [float(F.cross_entropy(*flat, **how)) for how in ({}, options)]
    sides = [RecordedLoss([TEXT], [{"label": labels}], [loss], ignored=(3,)) for loss in losses]
    assert traits(loss_difference((sides[0], sides[1])))[trait] == values
    assert loss_difference((sides[0], RecordedLoss([TEXT], [{"label": labels}], [losses[0] * 1.234567]))) is None


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str, tuple[Any, Any]]] = {
    "decay": (torch.optim.AdamW, {"weight_decay": 0.01}, {"weight_decay": 1e-4}, "weight decay", (0.01, 1e-4)),
    "beta2": (torch.optim.Adam, {}, {"betas": (0.9, 0.95)}, "beta2", (0.999, 0.95)),
    "beta1": (torch.optim.Adam, {}, {"betas": (0.8, 0.999)}, "beta1", (0.9, 0.8)),
    "eps": (torch.optim.Adam, {}, {"eps": 1e-3}, "epsilon", (1e-8, 1e-3)),
    "rate": (torch.optim.Adam, {}, {"lr": 0.02}, "learning rate", (0.01, 0.02)),
    "Nesterov": (
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9},
        "optimizer",
        ("Nesterov", "momentum"),
    ),
    "RMSprop": (torch.optim.RMSprop, {}, {"alpha": 0.9}, "beta2", (0.99, 0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates(name: str) -> None:
    """Against torch.optim over three updates; where both follow one rule nothing is said."""
    kind, first, second, trait, values = OPTIMIZERS[name]
    gradients = [RANDOM.normal(size=(4, 3)) for _ in range(3)]
    start = RANDOM.normal(size=(4, 3))

    def ran(options: dict[str, Any]) -> RecordedUpdates:
        p = torch.nn.Parameter(tensor(start))
        optimizer = kind([p], **{"lr": 0.01, **options})
        states = [start]
        for gradient in gradients:
            p.grad = tensor(gradient)
            optimizer.step()
            states.append(p.detach().numpy().copy())
        rates = [options.get("lr", 0.01)] * 3
        return RecordedUpdates([{"p": g} for g in gradients], [{"p": state} for state in states], rates)

    assert traits(update_difference((ran(first), ran(second)), "p"))[trait] == values
    assert update_difference((ran(first), ran(first)), "p") is None


def test_running_statistics() -> None:
    """Against torch's BatchNorm: its momentum weighs the new value, its variance is unbiased."""
    made = {}
    for momentum in (0.1, 0.01):
        norm = torch.nn.BatchNorm2d(4, momentum=momentum).double()
        norm(tensor(IMAGES))
        made[momentum] = {name: getattr(norm, name).numpy() for name in ("running_mean", "running_var")}
    last = np.moveaxis(IMAGES, 1, -1)
    mean = [
        RecordedStatistic(np.zeros(4), made[momentum]["running_mean"], images, "running_mean")
        for momentum, images in ((0.1, IMAGES), (0.01, last))
    ]
    found = statistics_difference((mean[0], mean[1]))
    assert traits(found) == {"momentum": (0.1, 0.01)}
    biased = 0.9 + 0.1 * IMAGES.var((0, 2, 3))
    spread = [RecordedStatistic(np.ones(4), a, IMAGES, "running_var") for a in (made[0.1]["running_var"], biased)]
    assert traits(statistics_difference((spread[0], spread[1]))) == {"variance": ("unbiased", "biased")}
    calls = [
        LayerCall("bn", 0, kind, (), (), leaf=True, settings={"momentum": m}) for kind, m in (("a", 0.1), ("b", 0.99))
    ]
    assert found is not None
    repair = cause_of(found, Place(("torch", "jax"), "bn", (calls[0], calls[1]))).repair
    assert repair == "in jax: b(..., momentum=0.9), or in torch: a(..., momentum=0.01)"


def test_gradients_and_data() -> None:
    """Stopped, scaled and tied gradients; another order, other values, other settings."""
    g, h = RANDOM.normal(size=(4, 3)), RANDOM.normal(size=(4, 3))
    assert traits(gradient_difference("p", {"p": g}, {"p": np.zeros((4, 3))})) == {"flow": ("let through", "stopped")}
    assert traits(gradient_difference("p", {"p": g}, {"p": 2 * g})) == {"factor": ("1", "2")}
    tied = gradient_difference("p", {"p": g + h.T.reshape(4, 3)}, {"p": g, "head": h.T.reshape(4, 3)})
    assert "tied with head" in traits(tied)
    assert gradient_difference("p", {"p": g}, {"p": h}) is None
    batch, turned = {"x": TEXT}, {"x": TEXT[::-1]}
    assert data_difference(([batch], [batch])) is None
    assert "order" in traits(data_difference(([batch], [turned])))
    assert traits(data_difference(([batch], [turned]), ({"seed": 0}, {"seed": 1}))) == {"seed": (0, 1)}
    assert "values" in traits(data_difference(([batch], [{"x": 255 * TEXT}])))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mean of no elements
@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm2d", "Conv2d", "Linear", "Embedding", "Unheard"])
def test_every_formula_takes_any_arrays(kind: str) -> None:
    """Shapes that fit nothing, no elements, whole numbers, NaN: formulas do not apply then, and none of them fails."""
    random = np.random.default_rng(len(kind))
    shapes: list[tuple[int, ...]] = [(), (0,), (3,), (2, 3), (2, 0, 3), (1, 3, 3), (2, 3, 4, 4), (2, 3, 0, 2), (1,) * 5]

    def drawn(shape: tuple[int, ...] | None = None) -> np.ndarray:
        array = random.normal(size=shapes[random.integers(len(shapes))] if shape is None else shape)
        odd = np.where(array > 1, np.nan, array).astype(np.float32)
        return [array, array, array, odd, array.astype(np.int64), np.zeros_like(array)][random.integers(6)]

    def layer() -> RecordedLayer:
        x = drawn()
        names = ("weight", "bias", "running_mean", "running_var")
        parameters = {f"layer.{name}": drawn(x.shape[1:2] if random.integers(2) else None) for name in names}
        call = LayerCall("layer", 0, kind, (x,), (drawn(x.shape if random.integers(2) else None),), leaf=True)
        sources = tuple(Source(f"s{index}", drawn(), kind) for index in range(3))
        return RecordedLayer(call, parameters, sources=(*sources, Source("w", drawn(), "parameter")))

    with np.errstate(all="ignore"):
        for _ in range(5):
            first, second = layer(), layer()
            layer_difference((first, second))
            arrival_causes((first, second), (first.call.outputs[0], second.call.outputs[0]))
            array = first.call.outputs[0]
            for one, other in ((array, drawn(array.shape)), (array, drawn())):
                gradient_difference("p", {"p": one}, {"p": other, "q": drawn()})
                statistics_difference(tuple(RecordedStatistic(one, one, other, "running_var") for _ in range(2)))  # type: ignore[arg-type]
                loss = RecordedLoss([one], [{"y": other, "label": random.integers(0, 3, one.shape[:-1])}], [1.0])
                loss_difference((loss, RecordedLoss(loss.outputs, loss.batches, [2.0])))


@pytest.mark.parametrize("slip", [AttributeError, TypeError, KeyError, IndexError, ZeroDivisionError])
def test_a_slip_in_a_formula_is_raised(slip: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only shapes that do not fit, numpy's ValueError, make a formula one that does not apply."""

    def slipped(*arguments: object) -> None:
        raise slip("a slip")

    with pytest.raises(slip):
        Formula("topic", {}, slipped).value()
    assert Formula("topic", {}, lambda: np.ones(2) + np.ones(3)).value() is None
    evidence: Any = SimpleNamespace(backends=("torch", "jax"))
    divergence = Divergence("data order", 1, "x", (0.0, 1.0), 1.0)
    nothing = np.zeros(0)
    finding = LayerFinding("loss", "loss", "loss", "", "", 1.0, None, (0.0, 1.0), nothing, nothing, None)
    monkeypatch.setattr("multibackend.parity.causes.diagnosis.stage_difference", slipped)
    with pytest.raises(slip):
        diagnose(divergence, (), evidence)
    monkeypatch.setattr("multibackend.parity.causes.diagnosis.loss_term_difference", slipped)
    with pytest.raises(slip):
        diagnose(divergence, (finding,), evidence)
