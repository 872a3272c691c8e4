"""What single optimizers are made of: bias corrections in float32, Muon's matrices."""

import functools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from multibackend_jax.step import update_rules as updates
from support import flax_models, formulas, torch_models
from support.optimizer_runs import CASES
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import ConfigurationError
from multibackend.optimizers import AdamW, Group, Muon, NAdam, RMSprop, is_matrix, is_vector, resolve_groups
from multibackend.testing import assert_arrays_match, assert_raises
from multibackend.testing.conformance.problems import tokens
from multibackend.testing.tolerances import MANY_UPDATES, ONE_WINDOW, SCHEDULE_FLOAT32

COUNTS = [1, 2, 3, 5, 6, 7, 10, 50, 499, 500, 501, 1000, 5000, 100_000]
BOUNDS = {"float32": SCHEDULE_FLOAT32, "float64": MANY_UPDATES}


def assert_follows(function: object, formula: object, precision: str) -> None:
    """`function(count)` on a device against `formula(t)` in Python, each value relative to itself."""
    with jax.enable_x64(precision == "float64"):
        actual = np.array([function(jnp.asarray(count, jnp.int32)) for count in COUNTS], np.float64)
    expected = np.array([formula(count) for count in COUNTS])
    assert_arrays_match(actual / expected, np.ones(len(COUNTS)), relative=BOUNDS[precision])


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999, 0.9999])
def test_rectified_length_keeps_its_digits(beta2: float, precision: str) -> None:
    """RAdam's rho_t is a small difference of large numbers; float32 has it to 1e-6 all the same."""

    def exact(t: int) -> float:
        beta = Decimal(beta2)  # 28 digits: enough to spare for the difference
        return float(2 / (1 - beta) - 1 - 2 * t * beta**t / (1 - beta**t))

    assert_follows(functools.partial(updates._rectified_length, beta2), exact, precision)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("beta1", "decay"), [(0.9, 0.004), (0.99, 0.1), (0.9, 0.0)])
def test_momentum_product_has_a_closed_form(beta1: float, decay: float, precision: str) -> None:
    """NAdam's 1 - mu_1 ··· mu_t from t alone equals the product, factor by factor."""
    spec = NAdam(learning_rate=1.0, beta1=beta1, momentum_decay=decay)

    def exact(t: int) -> float:
        return 1 - math.prod(beta1 * (1 - 0.5 * 0.96 ** (i * decay)) for i in range(1, min(t, 5000) + 1))

    assert_follows(lambda count: 1 - updates._momentum_product(spec, count), exact, precision)


@pytest.mark.parametrize("precision", BOUNDS)
def test_bias_correction_keeps_its_digits(precision: str) -> None:
    """1 - 0.999^t to 1e-6 in float32 from the first update on."""
    assert_follows(
        functools.partial(updates.bias_correction, 0.999), lambda t: -math.expm1(t * math.log(0.999)), precision
    )


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_centered_rmsprop_survives_constant_gradients(backend: str) -> None:
    """v - a² is rounding then, of either sign: its root must not be NaN."""
    experiment = mb.Experiment(
        model=mb.Model(torch=torch_models.linear, jax=flax_models.linear, inputs="x"),
        loss=lambda xp, outputs, batch: xp.sum(outputs, axis=-1),
        optimizer=RMSprop(learning_rate=1e-6, beta2=0.5, eps=1e-3, centered=True),
        train_data={"x": np.full((4, 3), 0.7)},
        micro_batch_size=4,
    )
    trainer = mb.Trainer(experiment, backend)
    trainer.fit(updates=60)
    assert all(np.isfinite(array).all() for array in trainer.parameters().values())


MUON = Muon(
    learning_rate=mb.schedules.Cosine(peak=0.05, total=40),
    weight_decay=0.1,
    matrices=lambda name, shape: is_matrix(name, shape) and not name.startswith("head"),
    groups=[Group(is_vector, weight_decay=0.0), Group("layers.1.*", learning_rate_factor=0.5)],
)


def network(optimizer: mb.optimizers.Optimizer) -> mb.Experiment:
    return mb.Experiment(
        model=mb.Model(
            torch=functools.partial(torch_models.Mlp, 3, 4, 2),
            jax=functools.partial(flax_models.Mlp, 3, 4, 2),
            inputs="x",
        ),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=optimizer,
        train_data=tokens(30),
        micro_batch_size=3,
        gradient_accumulation_steps=4,
        precision="float64",
    )


def test_muon_on_a_network() -> None:
    """Flax kernels, which lie transposed, torch's weights, biases, and a head left to AdamW: one law."""
    report = mb.compare(network(MUON), updates=40, executions=QUICK)
    assert report.matches, report.first_divergence
    trainer = mb.Trainer(network(MUON), "jax")
    trainer.fit(updates=1)
    slots = {slot: sorted(arrays) for slot, arrays in trainer.snapshot().optimizer.items()}
    others = ["head.bias", "head.weight", "layers.0.bias", "layers.1.bias"]
    assert slots == {
        "momentum_buffer": ["layers.0.weight", "layers.1.weight"],
        "exp_avg": others,
        "exp_avg_sq": others,
    }
    torch = mb.Trainer(network(MUON), "torch")
    torch.restore(trainer.snapshot())
    assert {slot: sorted(arrays) for slot, arrays in torch.snapshot().optimizer.items()} == slots


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_muon_leaves_what_is_no_matrix_to_adamw(backend: str) -> None:
    """With one tiny matrix chosen, every other parameter makes AdamW's steps."""
    options = {"learning_rate": 0.01, "beta2": 0.99, "weight_decay": 0.1}
    muon, adamw = (
        mb.Trainer(network(optimizer), backend)
        for optimizer in (Muon(matrices="head.weight", **options), AdamW(**options))
    )
    for trainer in (muon, adamw):
        trainer.fit(updates=1)
    ours, theirs = muon.parameters(), adamw.parameters()
    assert_arrays_match(
        {n: a for n, a in ours.items() if n != "head.weight"},
        {n: a for n, a in theirs.items() if n != "head.weight"},
        relative=ONE_WINDOW,
    )
    assert np.abs(ours["head.weight"] - theirs["head.weight"]).max() > 1e-4


def test_muon_joins_the_axes_of_a_flax_projection() -> None:
    """A kernel [in, heads, dim] is the matrix [in, heads * dim], as in the canonical layout."""
    case = CASES["Muon, wide matrix"]
    random = np.random.default_rng(1)
    start, gradients = random.normal(size=24), random.normal(size=(3, 24))
    expected, _ = formulas.muon(start, gradients, lambda index: 0.1, (4, 6), weight_decay=0.0)
    with jax.enable_x64(True):
        scale = updates.scale_by_muon(case.optimizer(), {"p": (4, 6)})
        p = {"p": jnp.asarray(start.reshape(4, 2, 3))}
        state = scale.init(p)
        for g in gradients:
            d, state = scale.update({"p": jnp.asarray(g.reshape(4, 2, 3))}, state, p)
            p = {"p": p["p"] - 0.1 * d["p"]}
        assert_arrays_match(np.asarray(p["p"]).reshape(4, 6), expected, relative=ONE_WINDOW)


def test_muon_errors() -> None:
    """A choice of matrices that fits nothing, or what is none."""
    shapes = {"conv.weight": (2, 3, 3, 3), "bias": (2,)}
    for matrices, words in (("*.kernel", "matches no parameter"), ("conv.*", "(2, 3, 3, 3) has no two axes")):
        spec = Muon(learning_rate=0.1, matrices=matrices)
        assert_raises(ConfigurationError, lambda spec=spec: resolve_groups(spec, shapes), words)
    assert_raises(ConfigurationError, lambda: Muon(learning_rate=0.1, matrices=3), "matrices must be")
