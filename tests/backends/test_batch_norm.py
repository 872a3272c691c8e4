"""BatchNorm: one definition on both backends, the remedies for small micro-batches, and the warning."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from multibackend_jax.model import norm as jax_norm
from multibackend_torch.model import norm as torch_norm
from support import flax_models, torch_models
from support.variants import QUICK

import multibackend as mb
from multibackend.errors import BatchStatisticsWarning, ConfigurationError, DataError
from multibackend.experiment.batch_norm import SMALL_MICRO_BATCH, window_momentum
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.tolerances import FEW_UPDATES_FLOAT32, FORMULA, MANY_UPDATES, ONE_WINDOW

RANDOM = np.random.default_rng(0)
DATA = {"x": RANDOM.normal(size=(30, 3)) * [1.0, 2.0, 5.0] + [0.0, -3.0, 1.0], "y": RANDOM.normal(size=(30, 2))}


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = torch.nn.Linear(3, 6), torch.nn.Linear(6, 2)
        self.norm1, self.norm2 = torch_norm.BatchNorm(3), torch_norm.BatchNorm(6, momentum=0.3, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm2(torch.tanh(self.first(self.norm1(x)))))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.head = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.norm1, self.norm2 = jax_norm.BatchNorm(3), jax_norm.BatchNorm(6, momentum=0.3, eps=1e-3)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm2(jnp.tanh(self.first(self.norm1(x)))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jax_norm.LinenBatchNorm(not train, name="norm1")(x)
        x = jnp.tanh(linen.Dense(6, name="first")(x))
        x = jax_norm.LinenBatchNorm(momentum=0.3, eps=1e-3, name="norm2")(x, use_running_average=not train)
        return linen.Dense(2, name="head")(x)


FLAX = {"nnx": (NnxNet, flax_models.Normed), "linen": (LinenNet, flax_models.LinenNormed)}
STATISTICS = ("norm.running_mean", "norm.running_var")


def experiment(torch_builder, jax_builder, data=DATA, **options) -> mb.Experiment:
    arguments = {
        "model": mb.Model(torch=torch_builder, jax=jax_builder, inputs="x"),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.SGD(learning_rate=0.05, momentum=0.9),
        "train_data": data,
        "micro_batch_size": 4,  # 30 examples: windows of 3, 3 and 2 micro-batches, the last one of 2 examples
        "gradient_accumulation_steps": 3,
        "precision": "float64",
        **options,
    }
    return mb.Experiment(**arguments)


def running(trainer: mb.Trainer) -> dict[str, np.ndarray]:
    return {name: array for name, array in trainer.snapshot().model_state.items() if "running" in name}


def variants(batch_norm: int) -> list:
    """(backend, execution, torch builder, flax builder) of the library's layers (0) or the frameworks' own (1)."""
    module = (TorchNet, torch_models.Normed)[batch_norm]
    rows = [("torch", "eager", module, FLAX["nnx"][batch_norm])]
    return rows + [
        ("jax", execution, module, FLAX[kind][batch_norm]) for kind in FLAX for execution in ("scan", "dispatch")
    ]


@pytest.mark.parametrize("flax", ["nnx", "linen"])
@pytest.mark.parametrize("mode", ["microbatch", "window"])
def test_library_layers_match_over_50_updates(flax: str, mode: str) -> None:
    """float64: losses, parameters and running statistics, the variance included; so does evaluation."""
    given = experiment(TorchNet, FLAX[flax][0], batch_statistics=mode, eval_data=DATA)
    trainers = [mb.Trainer(given, backend) for backend in ("torch", "jax")]
    trainers[1].load_parameters(trainers[0].parameters())
    losses = [trainer.fit(updates=50).history["loss"] for trainer in trainers]
    assert_arrays_match(losses[0], losses[1], relative=MANY_UPDATES, what="loss")
    assert_arrays_match(trainers[0].parameters(), trainers[1].parameters(), relative=MANY_UPDATES)
    statistics = [running(trainer) for trainer in trainers]
    assert set(statistics[0]) == {f"norm{n}.running_{what}" for n in (1, 2) for what in ("mean", "var")}
    assert_arrays_match(statistics[0], statistics[1], relative=MANY_UPDATES, what="statistics")
    ends = [trainer.evaluate()["loss"] for trainer in trainers]
    assert ends[0] == pytest.approx(ends[1], rel=MANY_UPDATES)


@pytest.mark.parametrize(("backend", "execution", "module", "flax"), variants(1) + variants(0))
@pytest.mark.parametrize("mode", ["microbatch", "window"])
def test_running_statistics_follow_the_formula(
    backend: str, execution: str, module: type, flax: type, mode: str
) -> None:
    """An epoch with a partial window and a ragged micro-batch, against numpy; flax's own variance is the biased one."""
    library = module is TorchNet
    trainer = mb.Trainer(experiment(module, flax, shuffle=False, batch_statistics=mode), backend, execution=execution)
    trainer.fit(epochs=1)
    mean, variance = np.zeros(3), np.ones(3)
    for window in ([0, 4, 8], [12, 16, 20], [24, 28]):
        momentum = window_momentum(0.1, len(window)) if mode == "window" else 0.1
        for start in window:
            part = DATA["x"][start : start + 4]
            unbiased = part.var(axis=0, ddof=int(library or backend == "torch"))
            mean, variance = mean + momentum * (part.mean(axis=0) - mean), variance + momentum * (unbiased - variance)
    prefix = "norm1" if library else "norm"
    expected = {f"{prefix}.running_mean": mean, f"{prefix}.running_var": variance}
    got = {name: array for name, array in running(trainer).items() if name in expected}
    assert_arrays_match(got, expected, relative=ONE_WINDOW, what="statistics")


def test_a_window_moves_as_far_as_one_large_batch() -> None:
    """k micro-batches of equal statistics move the running ones as one batch with the momentum itself would."""
    assert window_momentum(0.1, 1) == pytest.approx(0.1, rel=FORMULA)
    assert window_momentum(1.0, 4) == 1.0
    assert window_momentum(0.0, 4) == 0.0
    repeated = {name: np.tile(array[:4], (3, 1)) for name, array in DATA.items()}
    ends = []
    for steps, mode in ((3, "window"), (1, "microbatch")):
        data = {name: array[: 4 * steps] for name, array in repeated.items()}
        given = experiment(
            torch_models.Normed,
            FLAX["nnx"][1],
            data,
            gradient_accumulation_steps=steps,
            shuffle=False,
            batch_statistics=mode,
        )
        trainer = mb.Trainer(given, "torch")
        trainer.fit(updates=1)
        ends.append(running(trainer))
    assert_arrays_match(ends[0], ends[1], relative=FORMULA, what="statistics")


@pytest.mark.parametrize(("backend", "execution", "module", "flax"), variants(1) + variants(0))
def test_frozen_layers_neither_move_nor_mix_examples(backend: str, execution: str, module: type, flax: type) -> None:
    """Statistics stay bit for bit while parameters move, and k micro-batches equal one large batch again."""
    given = experiment(module, flax, batch_statistics="frozen")
    trainer = mb.Trainer(given, backend, execution=execution)
    before, start = running(trainer), trainer.parameters()
    trainer.fit(updates=5)
    assert_bit_identical(running(trainer), before, what="statistics")
    assert all(not np.array_equal(array, start[name]) for name, array in trainer.parameters().items())
    if module is TorchNet and execution != "dispatch":
        assert mb.check_accumulation(given, backend).matches
        assert not mb.check_accumulation(given.replace(batch_statistics="microbatch"), backend).matches


@pytest.mark.parametrize("flax", ["nnx", "linen"])
def test_frozen_runs_match(flax: str) -> None:
    """With frozen statistics the frameworks' own layers have one definition too."""
    slow = mb.optimizers.SGD(learning_rate=0.005)  # inputs are not normalised
    given = experiment(torch_models.Normed, FLAX[flax][1], batch_statistics="frozen", optimizer=slow)
    report = mb.compare(given, updates=30, executions=QUICK)
    assert report.matches, report.first_divergence


@pytest.mark.parametrize(("backend", "execution", "module", "flax"), variants(1) + variants(0))
@pytest.mark.parametrize("mode", ["window"])
def test_recomputed_statistics_are_means_over_the_data(
    backend: str, execution: str, module: type, flax: type, mode: str
) -> None:
    """The mean over micro-batches weighted by size, against numpy; parameters and update stay, training goes on."""
    library = module is TorchNet
    trainer = mb.Trainer(experiment(module, flax, batch_statistics=mode), backend, execution=execution)
    trainer.fit(updates=4)
    before = trainer.snapshot()
    trainer.recompute_statistics()
    assert_bit_identical(trainer.parameters(), before.parameters, what="parameters")
    parts = [DATA["x"][start : start + 4] for start in range(0, 30, 4)]
    sizes, ddof = [len(part) for part in parts], int(library or backend == "torch")
    prefix = "norm1" if library else "norm"
    expected = {
        f"{prefix}.running_mean": DATA["x"].mean(axis=0),
        f"{prefix}.running_var": np.average([part.var(axis=0, ddof=ddof) for part in parts], axis=0, weights=sizes),
    }
    got = {name: array for name, array in running(trainer).items() if name in expected}
    assert_arrays_match(got, expected, relative=ONE_WINDOW, what="statistics")
    trainer.fit(updates=5)
    other = running(trainer)
    assert any(not np.array_equal(other[name], array) for name, array in got.items())


@pytest.mark.parametrize("flax", ["nnx", "linen"])
def test_recomputed_statistics_match(flax: str) -> None:
    """Library layers in the depth of a network: the same statistics on both backends; a last single example counts."""
    data = {name: array[:29] for name, array in DATA.items()}
    given = experiment(TorchNet, FLAX[flax][0], drop_last=True)
    trainers = [mb.Trainer(given, backend) for backend in ("torch", "jax")]
    trainers[1].load_parameters(trainers[0].parameters())
    for trainer in trainers:
        trainer.recompute_statistics(data)
    statistics = [running(trainer) for trainer in trainers]
    assert_arrays_match(statistics[0], statistics[1], relative=ONE_WINDOW, what="statistics")
    assert_arrays_match(statistics[0]["norm1.running_mean"], data["x"].mean(axis=0), relative=ONE_WINDOW, what="mean")


def test_what_cannot_be_recomputed_is_said() -> None:
    """Frozen statistics and models without any are errors."""
    for module, mode, words in (
        (TorchNet, "frozen", "keeps the statistics"),
        (torch_models.linear, "window", "no layers"),
    ):
        trainer = mb.Trainer(experiment(module, FLAX["nnx"][0], batch_statistics=mode), "torch")
        with pytest.raises(ConfigurationError, match=words):
            trainer.recompute_statistics()


def test_float32_stays_float32() -> None:
    """A float32 run keeps float32 statistics and stays close."""
    given = experiment(TorchNet, NnxNet, precision="float32", batch_statistics="window")
    trainers = [mb.Trainer(given, backend) for backend in ("torch", "jax")]
    trainers[1].load_parameters(trainers[0].parameters())
    for trainer in trainers:
        trainer.fit(updates=5)
        trainer.recompute_statistics()
    statistics = [running(trainer) for trainer in trainers]
    assert {array.dtype.name for part in statistics for array in part.values()} == {"float32"}
    assert_arrays_match(statistics[0], statistics[1], relative=FEW_UPDATES_FLOAT32, what="statistics")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_small_micro_batches_are_warned_of_once(backend: str) -> None:
    """One warning and one event with layers and figures, at the first fit; none for large micro-batches or frozen."""
    seen: list[mb.events.Event] = []
    given = experiment(TorchNet, NnxNet)
    trainer = mb.Trainer(given, backend, callbacks=[seen.append])
    with pytest.warns(BatchStatisticsWarning, match=r"2 BatchNorm layers \(norm1, norm2\) .* of 4 examples.* 50 %"):
        trainer.fit(updates=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(updates=2)
        for options in ({"micro_batch_size": SMALL_MICRO_BATCH}, {"batch_statistics": "frozen"}):
            mb.Trainer(given.replace(**options), backend).fit(updates=1)
        mb.Trainer(experiment(torch_models.linear, flax_models.linear), backend).fit(updates=1)
    events = [event for event in seen if isinstance(event, mb.events.SmallMicroBatch)]
    assert [(event.layers, event.micro_batch_size) for event in events] == [(("norm1", "norm2"), 4)]


def test_bad_arguments_are_refused() -> None:
    """Every library layer and the experiment say which values there are; one value per channel has no variance."""
    for layer in (torch_norm.BatchNorm, jax_norm.BatchNorm):
        with pytest.raises(ConfigurationError, match=r"3 problems(?s:.*)features(?s:.*)momentum(?s:.*)eps"):
            layer(0, momentum=1.5, eps=-1.0)
    with pytest.raises(ConfigurationError, match="momentum must be <= 1"):
        jax_norm.LinenBatchNorm(momentum=1.5)
    with pytest.raises(ConfigurationError, match="batch_statistics must be one of"):
        experiment(TorchNet, NnxNet, batch_statistics="froze")
    for layer, inputs in ((torch_norm.BatchNorm(3), torch.ones(1, 3)), (jax_norm.BatchNorm(3), jnp.ones((1, 3)))):
        with pytest.raises(DataError, match="two values per channel"):
            layer(inputs)
