"""Groups of parameters on both backends: the steps of a hand-written PyTorch loop with the same parameter groups."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import flax_models, torch_models
from support.reference import large_batch_steps
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import ConfigurationError, ParameterMatchError
from multibackend.optimizers import SGD, AdamW, Group, Lion, Native, is_vector, resolve_groups
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import tokens
from multibackend.testing.tolerances import MANY_UPDATES, ONE_WINDOW

DATA = tokens(30)
EXECUTIONS = [("torch", "eager"), ("jax", "scan"), ("jax", "dispatch")]
GROUPS = (
    Group("layers.1.*", frozen=True),
    Group("head.*", learning_rate_factor=0.1),
    Group(is_vector, weight_decay=0.0),
)
NAMES = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias"]
SHAPES = dict(zip(NAMES, [(4, 3), (4,), (4, 4), (4,), (2, 4), (2,)], strict=True))


def start() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {name: random.normal(size=shape) * 0.5 for name, shape in SHAPES.items()}


def experiment(optimizer: mb.optimizers.Optimizer, **options: object) -> mb.Experiment:
    model = mb.Model(
        torch=functools.partial(torch_models.Mlp, 3, 4, 2), jax=functools.partial(flax_models.Mlp, 3, 4, 2), inputs="x"
    )
    defaults = {"micro_batch_size": 3, "gradient_accumulation_steps": 4, "precision": "float64", "shuffle": False}
    return mb.Experiment(
        model=model,
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=optimizer,
        train_data=DATA,
        **{**defaults, **options},
    )


def trainer(backend: str, optimizer: mb.optimizers.Optimizer, execution: str = "auto", **options: object) -> mb.Trainer:
    made = mb.Trainer(experiment(optimizer, **options), backend, execution=execution)
    made.load_parameters(start())
    return made


@pytest.mark.parametrize(("backend", "execution"), EXECUTIONS)
def test_groups_equal_a_loop_with_parameter_groups(backend: str, execution: str) -> None:
    """AdamW with a frozen layer, a slow head and no decay on vectors, clipped: `torch.optim.AdamW` by hand."""
    module = torch_models.Mlp(3, 4, 2)

    def build(parameters: object) -> torch.optim.Optimizer:
        named = dict(module.named_parameters())
        groups = [
            {"params": [named["layers.0.weight"]]},
            {"params": [named["head.weight"], named["head.bias"]], "lr": 0.005},
            {"params": [named["layers.0.bias"]], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.05, weight_decay=0.3)

    def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), batch["label"].flatten(), ignore_index=-100)

    frozen = ("layers.1.weight", "layers.1.bias")
    batches = [np.arange(0, 12), np.arange(12, 24), np.arange(24, 30)] * 4
    parameters, losses = large_batch_steps(module, start(), DATA, batches, loss, build, 0.2, frozen=frozen)
    optimizer = AdamW(learning_rate=0.05, weight_decay=0.3, groups=GROUPS)
    ours = trainer(backend, optimizer, execution, max_grad_norm=0.2)
    result = ours.fit(epochs=4)
    assert_arrays_match(ours.parameters(), parameters, relative=ONE_WINDOW)
    assert_arrays_match(result.history["loss"], np.array(losses), relative=ONE_WINDOW, what="loss")
    assert_bit_identical({name: ours.parameters()[name] for name in frozen}, {n: start()[n] for n in frozen})


@pytest.mark.parametrize("decoupled", [True, False])
def test_snapshots_with_groups_cross_over(decoupled: bool) -> None:
    """Slots of all groups go from one backend to the other, zeros for frozen parameters included."""
    spec = Lion if decoupled else SGD
    options = {} if decoupled else {"momentum": 0.9}
    optimizer = spec(learning_rate=0.01, weight_decay=0.1, groups=GROUPS, **options)
    first, second, whole = (trainer(backend, optimizer) for backend in ("torch", "jax", "jax"))
    second.load_parameters({name: 2 * array for name, array in start().items()})
    for run in (first, second):
        run.fit(updates=5)
    second.restore(first.snapshot())
    for run in (first, second, whole):
        run.fit(updates=10)
    assert_arrays_match(second.parameters(), first.parameters(), relative=MANY_UPDATES)
    assert_arrays_match(second.parameters(), whole.parameters(), relative=MANY_UPDATES)
    (slot,) = second.snapshot().optimizer.values()
    assert set(slot) == set(NAMES)
    assert not slot["layers.1.weight"].any()


def test_compare_with_groups() -> None:
    """`compare` finds nothing to complain of."""
    optimizer = AdamW(learning_rate=0.05, weight_decay=0.3, groups=GROUPS)
    report = mb.compare(experiment(optimizer, max_grad_norm=0.2), updates=30, executions=QUICK)
    assert report.matches, report.first_divergence
    assert report.notes == ()


def test_the_gradient_of_frozen_parameters_is_no_part_of_the_norm() -> None:
    """The reported norm is that of the others, on both backends, and it is not the norm of all."""
    norms = {}
    for backend in ("torch", "jax"):
        for groups in ((), GROUPS[:1]):
            run = trainer(backend, SGD(learning_rate=0.1, groups=groups))
            norms[backend, len(groups)] = run.fit(updates=1).history[0].grad_norm
            shares = run.gradient_shares()
            assert (shares["layers.1.weight"] == 0) is bool(groups)
    frozen = [np.array(norms[backend, 1]) for backend in ("torch", "jax")]
    assert_arrays_match(*frozen, relative=ONE_WINDOW)
    assert frozen[0] < 0.999 * norms["torch", 0]


def test_resolution() -> None:
    """The first group that matches wins; the rest is the optimizer's own."""
    optimizer = AdamW(learning_rate=0.05, weight_decay=0.3, groups=GROUPS)
    resolved = resolve_groups(optimizer, SHAPES)
    assert [group.names for group in resolved] == [
        ("layers.0.weight",),
        ("layers.1.weight", "layers.1.bias"),
        ("head.weight", "head.bias"),
        ("layers.0.bias",),
    ]
    assert [group.spec.weight_decay for group in resolved] == [0.3, 0.3, 0.3, 0.0]
    assert [group.learning_rate_factor for group in resolved] == [1.0, 1.0, 0.1, 1.0]
    assert [group.frozen for group in resolved] == [False, True, False, False]


def test_no_group_is_empty() -> None:
    """Where every parameter is in some group, there is no rest."""
    optimizer = SGD(learning_rate=0.1, groups=[Group("head.*"), Group("*", learning_rate_factor=0.5)])
    assert [group.names for group in resolve_groups(optimizer, SHAPES)] == [tuple(NAMES[4:]), tuple(NAMES[:4])]


def test_names_of_another_style_match() -> None:
    """A pattern in torch's style finds Flax's `layers_1`, and only that."""
    optimizer = SGD(learning_rate=0.1, groups=[Group("layers.1.*", frozen=True)])
    shapes = {"layers_1.weight": (2, 2), "layers_10.weight": (2, 2)}
    assert [(group.names, group.frozen) for group in resolve_groups(optimizer, shapes)] == [
        (("layers_10.weight",), False),
        (("layers_1.weight",), True),
    ]


def test_group_errors() -> None:
    """All problems of all groups at once, each with what to do; wrong arguments when the group is made."""
    groups = [Group("layer.1.weight"), Group(lambda name, shape: "yes"), Group("*"), Group("head.*")]
    assert_raises(
        ConfigurationError,
        lambda: resolve_groups(SGD(learning_rate=0.1, groups=groups), SHAPES),
        "the nearest are layers.1.weight",
        "must return True or False, got 'yes'",
        "groups[3] ('head.*')",
        "an earlier group",
    )
    assert_raises(ConfigurationError, lambda: Group("*", learning_rate_factor=-1.0), "learning_rate_factor", "-1.0")
    assert_raises(ConfigurationError, lambda: Group("*", frozen=True, weight_decay=0.1), "frozen=True")
    assert_raises(ConfigurationError, lambda: Group(3), "where must be", "3")
    assert_raises(ConfigurationError, lambda: SGD(learning_rate=0.1, groups=["*"]), "groups must be a sequence")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_group_that_matches_nothing_is_an_error_of_the_trainer(backend: str) -> None:
    """Before any window runs, with the nearest names."""
    optimizer = SGD(learning_rate=0.1, groups=[Group("haed.*")])
    assert_raises(ConfigurationError, lambda: trainer(backend, optimizer), "'haed.*'", "matches no parameter", "head")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_slots_of_a_snapshot_fit_or_are_refused(backend: str) -> None:
    """The state of another optimizer is refused."""
    lion = trainer(backend, Lion(learning_rate=0.01))
    native = trainer("torch", Native(learning_rate=0.01, torch=torch.optim.ASGD))
    native.fit(updates=1)
    assert_raises(ParameterMatchError, lambda: lion.restore(native.snapshot()), "slots")
