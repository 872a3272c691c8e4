"""Portable dropout: the same masks, gradients and runs on both backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from multibackend_jax.model import dropout as jax_dropout
from multibackend_torch.model import dropout as torch_dropout
from support import dropout_models as models
from support.variants import QUICK
from torch.utils.checkpoint import checkpoint

import multibackend as mb
from multibackend.errors import ConfigurationError
from multibackend.protocol import dropout_masks as dropout
from multibackend.testing import assert_arrays_match, assert_bit_identical
from multibackend.testing.tolerances import FORMULA, MANY_UPDATES, ONE_WINDOW, tolerance_for

RANDOM = np.random.default_rng(0)
ROWS = {"x": RANDOM.normal(size=(29, 3)), "y": RANDOM.normal(size=(29, 2))}
SEQUENCES = {"x": RANDOM.normal(size=(29, 5, 3)), "y": RANDOM.normal(size=(29, 5, 2))}


def experiment(torch_builder, jax_builder, data=ROWS, **options) -> mb.Experiment:
    arguments = {
        "model": mb.Model(torch=torch_builder, jax=jax_builder, inputs="x"),
        "loss": mb.losses.MeanSquaredError(target="y"),
        "optimizer": mb.optimizers.AdamW(learning_rate=0.01, weight_decay=0.01),
        "train_data": data,
        "micro_batch_size": 4,  # 29 examples: partial windows, a ragged micro-batch of 1
        "gradient_accumulation_steps": 3,
        "precision": "float64",
        "seed": 3,
        **options,
    }
    return mb.Experiment(**arguments)


def jax_mask(seed, update, micro_batch, layer, shape, rate, call) -> np.ndarray:
    key = jax_dropout.run_key(seed)
    for data in (update, micro_batch, dropout.layer_word(layer), call):
        key = jax.random.fold_in(key, np.uint32(data))
    return np.asarray(jax_dropout.keep_mask(key, shape, rate))


@pytest.mark.parametrize("shape", [(1000, 1001), (65536,), (65537,), (7, 13, 3), (5, 1, 4), (1,), (0,)])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_are_bit_identical(shape: tuple, rate: float) -> None:
    """numpy, torch and jax draw the same mask, for a million elements and for odd shapes."""
    where = (3, 100, 2, "blocks.0.drop")
    expected = dropout.keep_mask(*where, shape, rate, 1)
    ours = torch_dropout.keep_mask(dropout.mask_key(*where, 1), shape, rate, torch.device("cpu"))
    assert_bit_identical({"mask": ours.numpy()}, {"mask": expected}, what="torch")
    for partitionable in (True, False):
        with jax.threefry_partitionable(partitionable), jax.enable_x64(partitionable):
            assert_bit_identical({"mask": jax_mask(*where, shape, rate, 1)}, {"mask": expected}, what="jax")


def test_torch_counts_beyond_31_and_32_bits() -> None:
    """Blocks far into a large mask have the counter that the definition gives them."""
    key = dropout.mask_key(0, 0, 0, "a")
    for start in (2**31 - 4096, 2**31, 2**32 - 4096, 2**32, 5 * 2**32):
        index = np.arange(start, start + 100, dtype=np.uint64)
        high, low = dropout.threefry(key, (index >> np.uint64(32)).astype(np.uint32), index.astype(np.uint32))
        bits = torch_dropout._bits(key, start, 100, torch.device("cpu")).numpy().view(np.uint32)
        assert np.array_equal(bits, high ^ low)


def test_bits_are_those_of_jax_random() -> None:
    """The definition is `jax.random.bits` of a partitionable threefry key."""
    key = jax.random.wrap_key_data(np.array(dropout.mask_key(1, 2, 3, "a"), np.uint32), impl="threefry2x32")
    with jax.threefry_partitionable(True):
        native = np.asarray(jax.random.bits(key, (1001,)))
    assert np.array_equal(dropout.random_bits(dropout.mask_key(1, 2, 3, "a"), 1001), native)


def test_gradient_is_mask_over_keep() -> None:
    """Both layers: outputs x * keep / (1 - rate), gradient keep / (1 - rate); evaluation passes through."""
    x, rate = RANDOM.normal(size=(6, 5)), 0.3
    expected = dropout.keep_mask(7, 4, 1, "drop", x.shape, rate) / (1 - rate)
    layer = torch_dropout.Dropout(rate, name="drop")
    _, draws = torch_dropout.prepare_dropout(layer, 7, portable=False, rename={}, compiled=False)
    draws.at(4, 1)
    leaf = torch.tensor(x, requires_grad=True)
    outputs = layer(leaf)
    outputs.sum().backward()
    assert_arrays_match(outputs.detach().numpy(), x * expected, relative=FORMULA)
    assert_arrays_match(leaf.grad.numpy(), expected, relative=FORMULA)
    assert torch.equal(layer.eval()(leaf), leaf)
    with jax.enable_x64(True):
        flax_layer = jax_dropout.Dropout(rate, name="drop")
        jax_dropout.prepare_nnx(flax_layer, 7, portable=False, rename={})
        flax_layer.rngs.key[...] = jax.random.fold_in(jax.random.fold_in(flax_layer.rngs.key[...], 4), 1)
        graph, state = nnx.split(flax_layer)
        gradient = jax.grad(lambda x: nnx.merge(graph, jax.tree.map(jnp.copy, state))(x).sum())(jnp.asarray(x))
        assert_arrays_match(np.asarray(flax_layer(jnp.asarray(x))), x * expected, relative=FORMULA)
        assert_arrays_match(np.asarray(gradient), expected, relative=FORMULA)
        flax_layer.eval()
        assert np.array_equal(flax_layer(jnp.asarray(x)), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), "0.1"])
def test_bad_rates_are_refused(rate: object) -> None:
    """Every library layer says which rates there are."""
    for layer in (torch_dropout.Dropout, jax_dropout.Dropout, jax_dropout.LinenDropout):
        with pytest.raises(ConfigurationError, match="rate must be a finite number >= 0"):
            layer(rate)


def test_an_untrained_torch_layer_says_what_is_missing() -> None:
    """In training without a Trainer there is no update to draw for."""
    with pytest.raises(ConfigurationError, match="train the model with a Trainer"):
        torch_dropout.Dropout(0.5)(torch.ones(3))


@pytest.mark.parametrize("network", ["mlp", "transformer"])
@pytest.mark.parametrize("flax", ["nnx", "linen"])
def test_compare_matches_over_100_updates(network: str, flax: str) -> None:
    """float64, 100 updates, stock dropout layers: losses and parameters within 1e-9, portable without being asked."""
    builders = {
        ("mlp", "nnx"): (models.TorchMlp, models.NnxMlp, ROWS),
        ("mlp", "linen"): (models.TorchMlp, models.LinenMlp, ROWS),
        ("transformer", "nnx"): (models.TorchBlock, models.NnxBlock, SEQUENCES),
        ("transformer", "linen"): (models.TorchBlock, models.LinenBlock, SEQUENCES),
    }
    executions = QUICK if network == "transformer" else None
    report = mb.compare(experiment(*builders[network, flax]), updates=100, executions=executions)
    assert report.matches, report.first_divergence
    assert report.max_relative_difference < tolerance_for("float64").parameters
    assert "portable masks in 2 layers" in report.notes[0]
    paired_by_order = (network, flax) == ("mlp", "linen")
    assert len(report.notes) == 1 + paired_by_order
    if paired_by_order:
        assert "'Dropout_0' is 'zdrop', 'Dropout_1' is 'drop'" in report.notes[1]


@pytest.mark.parametrize("execution", ["scan", "dispatch"])
def test_execution_modes_draw_the_same_masks(execution: str) -> None:
    """Scan, dispatch and torch make the same run; with another seed, or natively, they do not."""
    given = experiment(models.TorchMlp, models.NnxMlp, dropout="portable")
    assert mb.compare(given, updates=12, executions={"jax": execution}).max_relative_difference < ONE_WINDOW
    native = [mb.Trainer(given.replace(dropout="native"), backend) for backend in ("torch", "jax")]
    native[1].load_parameters(native[0].parameters())
    losses = [trainer.fit(updates=3).history["loss"] for trainer in native]
    assert np.abs(losses[0] - losses[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("backend", "execution", "flax"),
    [
        ("torch", "eager", models.NnxMlp),
        ("jax", "scan", models.NnxMlp),
        ("jax", "dispatch", models.LinenMlp),
        ("jax", "scan", models.LinenMlp),
    ],
)
def test_a_mask_depends_on_the_update_not_on_the_history(backend: str, execution: str, flax: object) -> None:
    """From a snapshot at update u a new trainer goes on with the same bits; at another u it does not."""
    given = experiment(
        models.TorchMlp, flax, {name: array[:12] for name, array in ROWS.items()}, dropout="portable", shuffle=False
    )  # one window per epoch, always the same: the place in the data does not matter
    whole = mb.Trainer(given, backend, execution=execution)
    whole.fit(updates=5)
    middle = whole.snapshot()
    whole.fit(updates=9)
    ends = []
    for update in (5, 6):
        trainer = mb.Trainer(given, backend, execution=execution)
        trainer.restore(mb.protocol.Snapshot(middle.parameters, middle.model_state, middle.optimizer, update))
        trainer.fit(updates=9)
        ends.append(trainer.parameters())
    assert_bit_identical(ends[0], whole.parameters(), what="parameters")
    assert any(not np.array_equal(ends[1][name], array) for name, array in whole.parameters().items())


def test_evaluation_has_no_dropout() -> None:
    """Portable or native, evaluation is that of the network without dropout."""
    for backend, flax in (("torch", models.NnxMlp), ("jax", models.NnxMlp), ("jax", models.LinenMlp)):
        losses = set()
        for mode in ("native", "portable"):
            given = experiment(models.TorchMlp, flax, eval_data=ROWS, dropout=mode)
            losses.add(mb.Trainer(given, backend).evaluate()["loss"])
        assert len(losses) == 1


class TorchLibrary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = torch_dropout.Dropout(0.5, name="mine"), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(x))


class NnxLibrary(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.other, self.head = jax_dropout.Dropout(0.5, name="mine"), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.other(x))


class LinenLibrary(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jax_dropout.LinenDropout(0.5, deterministic=not train, name="mine")(x)
        return linen.Dense(2, name="head")(x)


@pytest.mark.parametrize("flax", [NnxLibrary, LinenLibrary])
def test_library_layers_are_portable_without_the_switch(flax: object) -> None:
    """dropout="native" leaves the library's own layers portable: a plain run of each backend matches by itself."""
    given = experiment(TorchLibrary, flax)
    trainers = [mb.Trainer(given, backend) for backend in ("torch", "jax")]
    trainers[1].load_parameters(trainers[0].parameters())
    losses = [trainer.fit(updates=10).history["loss"] for trainer in trainers]
    assert_arrays_match(losses[0], losses[1], relative=ONE_WINDOW, what="loss")


class TorchChannels(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = torch.nn.Conv2d(2, 6, 3), torch.nn.Dropout2d(0.4), torch.nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.conv(x.permute(0, 3, 1, 2))).mean(dim=(2, 3)))


class NnxChannels(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, 6, (3, 3), padding="VALID", rngs=rngs)
        self.drop = nnx.Dropout(0.4, broadcast_dims=(1, 2), rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.drop(self.conv(x)).mean(axis=(1, 2)))


def test_whole_channels() -> None:
    """Dropout2d on [N, C, H, W] and broadcast_dims=(1, 2) on [N, H, W, C] drop the same channels."""
    data = {"x": RANDOM.normal(size=(29, 6, 6, 2)), "y": ROWS["y"]}
    report = mb.compare(experiment(TorchChannels, NnxChannels, data), updates=10, executions=QUICK)
    assert report.max_relative_difference < MANY_UPDATES, report.first_divergence


@pytest.mark.parametrize(
    ("kind", "shape", "mask"),
    [
        (torch.nn.Dropout1d, (4, 3, 7), (4, 3, 1)),
        (torch.nn.Dropout1d, (3, 7), (3, 1)),
        (torch.nn.Dropout2d, (4, 3, 5, 6), (4, 3, 1, 1)),
        (torch.nn.Dropout3d, (2, 3, 4, 5, 6), (2, 3, 1, 1, 1)),
        (torch.nn.Dropout3d, (3, 4, 5, 6), (3, 1, 1, 1)),
    ],
)
def test_torch_channel_dropout_shares_what_torch_shares(kind: type, shape: tuple, mask: tuple) -> None:
    """Where torch's own layer drops whole channels, the portable one does."""
    native = kind(0.5)(torch.ones(shape)).numpy()
    assert np.array_equal(native, np.broadcast_to(native[tuple(slice(n) for n in mask)], shape))
    layer = kind(0.5)
    _, draws = torch_dropout.prepare_dropout(layer, 0, portable=True, rename={}, compiled=False)
    draws.at(0, 0)
    expected = np.broadcast_to(2.0 * dropout.keep_mask(0, 0, 0, "", mask, 0.5), shape)
    assert np.array_equal(layer(torch.ones(shape)).numpy(), expected)


def test_what_cannot_be_replaced_is_named() -> None:
    """Modules that drop in their own way are refused, all of them in one message; rate 0 passes."""
    stack = torch.nn.ModuleList([torch.nn.AlphaDropout(0.1), torch.nn.MultiheadAttention(4, 2, dropout=0.2)])
    with pytest.raises(ConfigurationError, match=r"2 problems(?s:.*)'0' is a AlphaDropout(?s:.*)'1' is a Multihead"):
        torch_dropout.prepare_dropout(stack, 0, portable=True, rename={}, compiled=False)
    quiet = torch.nn.MultiheadAttention(4, 2)
    assert torch_dropout.prepare_dropout(quiet, 0, portable=True, rename={}, compiled=False) == ((), None)
    attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.2, decode=False, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigurationError, match=r"MultiHeadAttention that drops at rate 0\.2"):
        jax_dropout.prepare_nnx(attention, 0, portable=True, rename={})


def test_layers_that_do_not_pair_are_named() -> None:
    """compare says which dropout layers are left over."""
    given = experiment(models.TorchMlp, NnxLibrary)
    with pytest.raises(ConfigurationError, match="'zdrop', 'drop' of the reference and 'mine' of the other are left"):
        mb.compare(given, updates=1)


class Recomputed(models.TorchBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + checkpoint(lambda x: self.residual_drop(self.attend(self.norm1(x))), x, use_reentrant=False)
        return self.head(x + checkpoint(self.feed, x, use_reentrant=torch.is_grad_enabled()))

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.residual_drop(self.down(torch.tanh(self.up(self.norm2(x)))))


def test_activation_checkpointing_keeps_the_masks() -> None:
    """A torch model that recomputes in the backward pass, a layer called twice included, matches as if it did not."""
    report = mb.compare(experiment(Recomputed, models.NnxBlock, SEQUENCES), updates=10, executions=QUICK)
    assert report.max_relative_difference < tolerance_for("float64").parameters, report.first_divergence


def test_check_accumulation_explains_portable_dropout() -> None:
    """k matters, because a mask belongs to a micro-batch; the layers are named."""
    report = mb.check_accumulation(experiment(models.TorchMlp, models.NnxMlp, dropout="portable"), "jax")
    assert not report.matches
    assert len(report.reasons) == 1
    assert "portable dropout in 'zdrop', 'drop'" in report.reasons[0]


def test_plain_training_draws_as_before() -> None:
    """The switch off leaves stock layers alone."""
    module = models.TorchMlp()
    names, draws = torch_dropout.prepare_dropout(module, 0, portable=False, rename={}, compiled=False)
    assert names == ("zdrop", "drop")
    assert draws is None
    assert type(module.drop) is torch.nn.Dropout
    flax_module = models.NnxMlp(nnx.Rngs(0))
    before = flax_module.drop.rngs.key[...]
    assert jax_dropout.prepare_nnx(flax_module, 0, portable=False, rename={}) == ("zdrop", "drop")
    assert type(flax_module.drop) is nnx.Dropout
    assert flax_module.drop.rngs.key[...] == before
