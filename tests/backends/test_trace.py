"""Traces of models whose modules do unusual things; what every backend must do is in the conformance suite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from support.block_models import LinenBlocks, LinenSetup, NnxBlocks, TorchBlocks
from torch import nn

import multibackend as mb
from multibackend.errors import DataError
from multibackend.protocol import Position
from multibackend.protocol.tracing import Forced, Trace, arrays_in, plain_settings, with_arrays
from multibackend.testing import assert_arrays_match, assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import regression
from multibackend.testing.tolerances import FORMULA, ONE_WINDOW
from multibackend.training.input.feed import Feed

DATA = regression(4)
DEFAULTS: dict[str, Any] = {
    "optimizer": mb.optimizers.SGD(learning_rate=1.0),
    "train_data": DATA,
    "micro_batch_size": 4,
    "shuffle": False,
    "precision": "float64",
}


def traced(backend: str, builder: Callable[..., Any], **options: Any) -> tuple[mb.Trainer, Trace]:
    """A trainer, and the trace of its first micro-batch."""
    forced, call = options.pop("forced", None), options.pop("call", None)
    builders: dict[str, Any] = {backend: builder}
    experiment = mb.Experiment(
        model=mb.Model(inputs="x", call=call, **builders),
        loss=mb.losses.MeanSquaredError(target="y"),
        **{**DEFAULTS, **options},
    )
    trainer = mb.Trainer(experiment, backend, execution="dispatch" if backend == "jax" else "auto")
    stack = Feed(experiment).next(Position(), 0, 1, trainer.program.info, most=1, epochs=None)
    batch, factors = next(stack.micro_batches(0))
    program: Any = trainer.program
    state = program.restore(trainer.snapshot())
    return trainer, program.trace(state, batch, factors, stamp=(0, 0, 1), forced=forced)


def names(trace: Trace) -> list[str]:
    return [layer.name for layer in trace.layers]


ROWS = [
    ("torch", TorchBlocks, "blocks.1", "BatchNorm1d", {"eps": 1e-5, "momentum": 0.1}),
    ("jax", NnxBlocks, "blocks.1", "BatchNorm", {"epsilon": 1e-5, "momentum": 0.9}),
    ("jax", LinenBlocks, "LinenBlock_1", "BatchNorm", {"epsilon": 1e-5, "momentum": 0.9}),
    ("jax", LinenSetup, "blocks_1", "BatchNorm", {"epsilon": 1e-5, "momentum": 0.9}),
]


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize(("backend", "builder", "block", "kind", "settings"), ROWS)
def test_nested_modules(
    backend: str, builder: Any, block: str, kind: str, settings: dict[str, Any], rematerialize: bool
) -> None:
    """Order, depth, kinds, settings and parameters; checkpointing hides nothing; gradients are those of the update."""
    trainer, trace = traced(backend, builder, rematerialize=rematerialize)
    layers = {layer.name: layer for layer in trace.layers}
    assert len(layers) == len(trace.layers) == 13
    assert names(trace)[0] == ""
    assert names(trace)[1] == "stem"
    assert names(trace)[-1] == "head"
    inside = [layer for layer in trace.layers if layer.name.startswith(block + ".")]
    assert [layer.kind for layer in inside] == [kind, *inside_kinds(backend, builder)]
    assert layers[block].depth == 1
    assert not layers[block].leaf
    assert all(layer.leaf and layer.depth == 2 for layer in inside)
    assert settings.items() <= inside[0].settings.items()
    assert set(inside[0].parameters) == {f"{inside[0].name}.weight", f"{inside[0].name}.bias"}
    assert layers[block].parameters == ()
    assert_bit_identical(layers[block].inputs[0], inside[0].inputs[0])
    before = trainer.parameters()
    trainer.fit(updates=1)
    moved = {name: before[name] - array for name, array in trainer.parameters().items()}
    assert_arrays_match(dict(trace.gradients), moved, relative=ONE_WINDOW)
    assert np.abs(moved["stem.weight"]).max() > 0
    state = trainer.snapshot().model_state
    assert_arrays_match(dict(trace.model_state), {n: np.asarray(a) for n, a in state.items()}, relative=FORMULA)


def inside_kinds(backend: str, builder: Any) -> list[str]:
    dense = "Dense" if builder in (LinenBlocks, LinenSetup) else "Linear"
    return [dense, "Dropout", dense]


def test_torch_module_is_left_alone() -> None:
    """No hook, no gradient, no mode, no random number is left behind, also after an error on the way."""
    trainer, _ = traced("torch", TorchBlocks)
    state = trainer.state.program_state
    stack = Feed(trainer.experiment).next(Position(), 0, 1, trainer.program.info, most=1, epochs=None)
    batch, factors = next(stack.micro_batches(0))
    state.module.blocks[1].eval()
    generator = torch.get_rng_state()
    program: Any = trainer.program
    program.trace(state, batch, factors, stamp=(0, 0, 1))
    wrong = {("stem", 0): Forced(outputs=(np.zeros((1, 1)),))}
    assert_raises(
        DataError, lambda: program.trace(state, batch, factors, stamp=(0, 0, 1), forced=wrong), "stem", "(4, 6)"
    )
    parts = list(state.module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    assert all(parameter.grad is None for parameter in state.module.parameters())
    assert [part.training for part in parts if isinstance(part, nn.BatchNorm1d)] == [True, False]
    assert torch.equal(torch.get_rng_state(), generator)


def test_nnx_classes_are_left_alone() -> None:
    """The classes have the very `__call__` that they had, inherited ones included, also after an error on the way."""

    class Inherits(nnx.Linear):
        pass

    before = nnx.Linear.__call__
    _, trace = traced("jax", lambda rngs: Inherits(3, 2, rngs=rngs))
    assert [(layer.name, layer.kind) for layer in trace.layers] == [("", "Inherits")]
    wrong = {("", 0): Forced(outputs=(np.zeros((1, 1)),))}
    assert_raises(DataError, lambda: traced("jax", lambda rngs: Inherits(3, 2, rngs=rngs), forced=wrong), "(4, 2)")
    assert nnx.Linear.__call__ is before
    assert "__call__" not in vars(Inherits)


class TorchPair(nn.Module):
    """Takes and returns nested things, is called twice, and hands a dict on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = TorchInner(), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.inner({"x": x, "label": "a"}, scale=2.0)
        second = self.inner({"x": first["parts"][0]}, scale=1.0)
        return self.head(second["parts"][1])


class TorchInner(nn.Module):
    def forward(self, given: dict[str, Any], scale: float) -> dict[str, Any]:
        return {"parts": (scale * given["x"], given["x"] + 1), "note": "text"}


class NnxPair(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner, self.head = NnxInner(), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        first = self.inner({"x": x, "label": "a"}, scale=2.0)
        second = self.inner({"x": first["parts"][0]}, scale=1.0)
        return self.head(second["parts"][1])


class NnxInner(nnx.Module):
    def __call__(self, given: dict[str, Any], scale: float) -> dict[str, Any]:
        return {"parts": (scale * given["x"], given["x"] + 1), "note": "text"}


class LinenPair(linen.Module):
    def setup(self) -> None:
        self.inner, self.head = LinenInner(), linen.Dense(2)

    def __call__(self, x: jax.Array) -> jax.Array:
        first = self.inner({"x": x, "label": "a"}, scale=2.0)
        second = self.inner({"x": first["parts"][0]}, scale=1.0)
        return self.head(second["parts"][1])


class LinenInner(linen.Module):
    def __call__(self, given: dict[str, Any], scale: float) -> dict[str, Any]:
        return {"parts": (scale * given["x"], given["x"] + 1), "note": "text"}


PAIRS = [("torch", TorchPair), ("jax", NnxPair), ("jax", LinenPair)]


@pytest.mark.parametrize(("backend", "builder"), PAIRS)
def test_nested_values_and_repeated_calls(backend: str, builder: Any) -> None:
    """Arrays are found in nested arguments and outputs; the calls of one module are counted."""
    _, trace = traced(backend, builder)
    calls = [(layer.name, layer.call) for layer in trace.layers]
    assert calls == [("", 0), ("inner", 0), ("inner", 1), ("head", 0)]
    first, second = trace.layers[1:3]
    assert_arrays_match(first.outputs, (2 * DATA["x"], DATA["x"] + 1), relative=FORMULA)
    assert_arrays_match(second.inputs, (2 * DATA["x"],), relative=FORMULA)


@pytest.mark.parametrize(("backend", "builder"), PAIRS)
def test_forcing_one_call(backend: str, builder: Any) -> None:
    """One of two calls, one of two outputs, and inputs by their place among the arguments."""
    plain = traced(backend, builder)[1]
    zeros = np.zeros((4, 3))
    second = {("inner", 1): Forced(inputs=(zeros,)), ("inner", 0): Forced(outputs=(None, zeros))}
    trace = traced(backend, builder, forced=second)[1]
    assert_bit_identical(trace.layers[1].outputs, plain.layers[1].outputs)
    assert_bit_identical(trace.layers[2].inputs, plain.layers[2].inputs)
    assert_arrays_match(trace.layers[2].outputs, (zeros, zeros + 1), relative=0.0)
    assert_arrays_match(trace.layers[3].inputs[0], zeros + 1, relative=0.0)
    many = {("inner", 0): Forced(outputs=(None, None, zeros))}
    assert_raises(DataError, lambda: traced(backend, builder, forced=many), "inner", 3, 2)


def test_parts_called_by_hand() -> None:
    """Where `call=` never calls the whole model, it still comes first, with what the loss sees."""

    def call(model: Any, batch: Any, train: bool) -> Any:
        return model.head(model.stem(batch["x"]))

    for backend, builder in (("torch", TorchBlocks), ("jax", NnxBlocks), ("jax", LinenSetup)):
        trace = traced(backend, builder, call=call)[1]
        assert names(trace) == ["", "stem", "head"]
        assert_bit_identical(trace.layers[0].outputs, trace.layers[2].outputs)


class Scanned(linen.Module):
    """Two dense layers in a scan, one under a checkpoint, one applied by itself with another's kernel."""

    def setup(self) -> None:
        self.layers = linen.scan(
            ScanBody, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=2
        )()
        self.kept, self.tied, self.head = linen.remat(ScanBody)(), linen.Dense(3, use_bias=False), linen.Dense(2)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, _ = self.layers(x, None)
        x, _ = self.kept(x, None)
        head = self.head(x)
        return head + self.tied.apply({"params": {"kernel": jnp.eye(3)}}, x)[:, :2]


class ScanBody(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return jnp.tanh(linen.Dense(3)(x)), None


class NnxScanned(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(3, 3, rngs=rngs)

        self.layers, self.kept = create(rngs), nnx.Linear(3, 3, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(3, 2, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x: jax.Array, layer: nnx.Linear) -> jax.Array:
            return jnp.tanh(layer(x))

        x = forward(x, self.layers)
        x = nnx.remat(lambda layer, x: layer(x))(self.kept, x)
        return self.heads[0](nnx.jit(lambda x: 2 * x)(x))


@pytest.mark.parametrize(("builder", "seen"), [(Scanned, {"", "tied", "head"}), (NnxScanned, {"", "heads.0"})])
def test_calls_inside_transformations(builder: Any, seen: set[str]) -> None:
    """What is called inside scan, vmap, checkpoint or jit is not seen, and does not disturb what is."""
    trainer, trace = traced("jax", builder)
    assert seen <= set(names(trace))
    assert not any("Dense_0" in name or name == "layers.0" for name in names(trace))
    before = trainer.parameters()
    loss = trainer.fit(updates=1).history[0].loss
    moved = {name: before[name] - array for name, array in trainer.parameters().items()}
    assert_arrays_match(dict(trace.gradients), moved, relative=ONE_WINDOW)
    assert_arrays_match(trace.terms, np.array([loss]), relative=FORMULA)


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])


class NnxAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(1, 3, decode=False, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.attention(x[:, None])[:, 0])


def test_attention_layers() -> None:
    """torch's attention calls none of its parts, flax's all of them."""
    torch_trace, flax_trace = traced("torch", TorchAttention)[1], traced("jax", NnxAttention)[1]
    assert names(torch_trace) == ["", "attention", "head"]
    assert torch_trace.layers[1].settings["num_heads"] == 1
    assert set(torch_trace.layers[1].parameters) == {"attention.in_proj_weight", "attention.in_proj_bias"}
    assert names(flax_trace) == ["", "attention", *(f"attention.{p}" for p in ("query", "key", "value", "out")), "head"]
    assert flax_trace.layers[1].settings["num_heads"] == 1


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize(("backend", "builder"), [("torch", TorchBlocks), ("jax", NnxBlocks), ("jax", LinenBlocks)])
def test_precision(backend: str, builder: Any, precision: str) -> None:
    """Arrays have the dtype of the run; of bfloat16 arithmetic they are float32 on the host."""
    trace = traced(backend, builder, precision=precision)[1]
    dtype = "float64" if precision == "float64" else "float32"
    arrays = [array for layer in trace.layers for array in (*layer.inputs, *layer.outputs)]
    assert {str(array.dtype) for array in [*arrays, *trace.gradients.values(), *trace.outputs]} == {dtype}
    assert trace.terms.dtype == np.float64
    assert np.isfinite(trace.terms).all()


def test_frozen_and_tied_parameters() -> None:
    """Frozen parameters have no gradient; a tied one belongs to both layers in torch, whose modules hold it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x)))

    group = mb.optimizers.Group("head.*", frozen=True)
    trace = traced("torch", Tied, optimizer=mb.optimizers.SGD(learning_rate=1.0, groups=(group,)))[1]
    assert trace.gradients.keys() == {"first.weight", "first.bias", "second.bias"}
    assert trace.layers[2].parameters == ("first.weight", "second.bias")


@dataclasses.dataclass
class Output:
    logits: Any
    hidden: Any = None


def test_nested_arrays() -> None:
    """Arrays are listed and replaced in tuples, lists, mappings, dataclasses and named tuples alike."""
    a, b, c = (np.full(2, float(value)) for value in range(3))

    def is_array(leaf: object) -> bool:
        return isinstance(leaf, np.ndarray)

    tree = (Output(a, [b]), {"deep": {"c": c}, "text": "t"}, None, 3)
    assert_bit_identical(arrays_in(tree, is_array), [a, b, c])
    other = with_arrays(tree, [None, c, a], is_array)
    assert_bit_identical(arrays_in(other, is_array), [a, c, a])
    assert isinstance(other[0], Output)
    assert other[1]["text"] == "t"
    assert with_arrays(tree, [None] * 3, is_array) is tree


def test_plain_settings() -> None:
    """Numbers, booleans, strings, tuples and functions by name; nothing private, no modules, no arrays."""
    attributes = {
        "eps": np.float32(0.5),
        "size": [1, (2, 3)],
        "activation": functools.partial(sorted, reverse=True),
        "dtype": torch.float32,
        "param_dtype": jnp.float32,
        "numpy": np.dtype("float64"),
        "weights": np.zeros(3),
        "_private": 1,
        "child": object(),
    }
    assert plain_settings(attributes) == {
        "eps": 0.5,
        "size": (1, (2, 3)),
        "activation": "sorted(reverse=True)",
        "dtype": "float32",
        "param_dtype": "float32",
        "numpy": "float64",
    }


@pytest.mark.filterwarnings("ignore")  # the package announces that its Flax models will go
def test_models_that_nobody_here_wrote() -> None:
    """GPT-2 of the transformers library, tiny and random: both twins tell every layer, ties included."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2LMHeadModule  # noqa: PLC0415

    config = transformers.GPT2Config(vocab_size=7, n_positions=6, n_embd=6, n_layer=1, n_head=2)
    tokens = np.random.default_rng(0).integers(0, 7, (4, 6))
    data = {"x": tokens, "y": np.eye(7)[tokens]}

    def torch_call(model: Any, batch: Any, train: bool) -> Any:
        return model(input_ids=batch["x"]).logits

    def flax_call(model: Any, batch: Any, train: bool) -> Any:
        ones = jnp.ones_like(batch["x"])
        return model(batch["x"], ones, jnp.cumsum(ones, 1) - 1, deterministic=not train).logits

    for backend, builder, call in (
        ("torch", transformers.GPT2LMHeadModel, torch_call),
        ("jax", FlaxGPT2LMHeadModule, flax_call),
    ):
        trainer, trace = traced(backend, functools.partial(builder, config), call=call, train_data=data)
        told = {layer.name: layer for layer in trace.layers}
        parts = ("wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "ln_f")
        assert {f"transformer.{part}" for part in parts} <= told.keys()
        assert told["lm_head"].outputs[0].shape == (4, 6, 7)
        assert len(told["transformer.h.0"].outputs) >= 1
        assert trace.gradients.keys() == set(trainer.program.info.parameter_names)
        assert all(np.isfinite(array).all() for array in trace.gradients.values())
