"""Flax modules, nnx and linen, as one kind of pure function.

`FlaxModel.apply(parameters, state, batch, stamp, train) -> (outputs, state)` works on flat dicts keyed by canonical
name, the arrays in their native layout. State is whatever a module keeps that is no parameter: BatchNorm statistics
and other mutable collections. Random streams are no state: they are a pure function of the seed and of a stamp
(update, micro-batch), so that a window that was skipped leaves no trace.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from multibackend.errors import ConfigurationError
from multibackend.experiment import Model
from multibackend_jax.names import Layout, canonical_names, layout_of
from multibackend_jax.precision import Precision

__all__ = ["Arrays", "FlaxModel", "Stamp", "build_model"]

Arrays = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Stamp:
    """When a micro-batch runs: two integers that, with the seed, decide every random number in it."""

    update: jax.Array
    micro_batch: jax.Array

    def fold_into(self, key: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, self.update), self.micro_batch)


@dataclass(frozen=True)
class FlaxModel:
    """A Flax module as a pure function.

    Attributes:
        parameters, state: initial values by canonical name, in native layout.
        layouts: of every parameter and state array.
        apply: `(parameters, state, batch, stamp, train) -> (outputs, state)`; `stamp` is None in evaluation.
    """

    parameters: Arrays
    state: Arrays
    layouts: Mapping[str, Layout]
    apply: Callable[[Arrays, Arrays, Batch, Stamp | None, bool], tuple[Any, Arrays]]


def build_model(model: Model, precision: Precision, seed: int, example: Batch) -> FlaxModel:
    """Call the user's builder and wrap what it returns; raises `ConfigurationError` for what is no Flax module."""
    builder = model.builder("jax")
    rngs = {"rngs": nnx.Rngs(seed)} if _takes_rngs(builder) else {}
    module = builder(**rngs)
    if isinstance(module, nnx.Module):
        return _wrap_nnx(module, model, precision)
    if isinstance(module, linen.Module):
        return _wrap_linen(module, model, precision, seed, example)
    raise ConfigurationError(
        "Model", [f"the jax builder must return a flax nnx or linen Module, got {type(module).__name__}"]
    )


def _takes_rngs(builder: Callable[..., Any]) -> bool:
    """Whether a builder wants `rngs`; the metaclass of nnx modules hides it from the signature of a class."""
    given: set[str] = set()
    while isinstance(builder, functools.partial):
        given |= builder.keywords.keys()
        builder = builder.func
    target = builder.__init__ if isinstance(builder, type) else builder
    return "rngs" in inspect.signature(target).parameters and "rngs" not in given


def _caller(model: Model, forward: Callable[..., Any]) -> Callable[[Any, Batch, bool], Any]:
    """How to call the module: the user's way, or on its inputs, told the mode where its signature asks for it."""
    custom = model.call("jax")
    if custom is not None:
        return custom
    accepted = inspect.signature(forward).parameters
    modes: dict[str, Callable[[bool], bool]] = {
        "train": lambda train: train,
        "training": lambda train: train,
        "deterministic": lambda train: not train,
        "use_running_average": lambda train: not train,
    }
    asked = {name: mode for name, mode in modes.items() if name in accepted}

    def call(module: Any, batch: Batch, train: bool) -> Any:
        return module(*model.arguments(batch), **{name: mode(train) for name, mode in asked.items()})

    return call


class _Leaves:
    """The leaves of one nnx state, flat and by canonical name."""

    def __init__(self, state: nnx.State, owners: Mapping[tuple[Any, ...], object], precision: Precision) -> None:
        values, self._structure = jax.tree.flatten(state)
        paths = [path for path, _ in nnx.to_flat_state(state)]
        layers = [owners.get(tuple(path[:-1])) for path in paths]
        self.names = canonical_names(paths, layers)
        self.arrays = {n: precision.cast_array(jnp.asarray(v)) for n, v in zip(self.names, values, strict=True)}
        self.layouts = {
            name: layout_of(str(path[-1]), array.shape, layer)
            for (name, array), path, layer in zip(self.arrays.items(), paths, layers, strict=True)
        }

    def restore(self, arrays: Arrays) -> nnx.State:
        return jax.tree.unflatten(self._structure, [arrays[name] for name in self.names])

    def flatten(self, state: Any) -> Arrays:
        return dict(zip(self.names, jax.tree.leaves(state), strict=True))


def _wrap_nnx(module: nnx.Module, model: Model, precision: Precision) -> FlaxModel:
    owners = {tuple(path): owner for path, owner in nnx.iter_modules(module)}
    _free_embeddings(owners.values())
    call = _caller(model, type(module).__call__) if callable(module) else _caller(model, lambda: None)
    graphs = {}
    for train in (False, True):
        module.train() if train else module.eval()
        graphs[train], parameter_state, random_state, other_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    parameters = _Leaves(parameter_state, owners, precision)
    others = _Leaves(other_state, owners, precision)

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        random = random_state if stamp is None else _stamped(random_state, stamp)
        live = nnx.merge(graphs[train], parameters.restore(values), random, others.restore(state))
        outputs = call(live, batch, train)
        return outputs, others.flatten(nnx.split(live, nnx.Param, nnx.RngState, ...)[3])

    return FlaxModel(parameters.arrays, others.arrays, {**parameters.layouts, **others.layouts}, apply)


def _free_embeddings(owners: Iterable[object]) -> None:
    """Undo that `nnx.Embed` fixes its default dtype, "same as embedding", before the run's precision is applied."""
    for owner in owners:
        if isinstance(owner, nnx.Embed) and owner.dtype == owner.embedding.dtype:
            owner.dtype = None


def _stamped(random_state: nnx.State, stamp: Stamp) -> nnx.State:
    """Random streams as they are at a stamp: each key folded with it, each counter at 0."""

    def at_stamp(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return stamp.fold_into(leaf) if is_key else jnp.zeros_like(leaf)

    return jax.tree.map(at_stamp, random_state)


def _wrap_linen(module: linen.Module, model: Model, precision: Precision, seed: int, example: Batch) -> FlaxModel:
    call = _caller(model, type(module).__call__)
    base = jax.random.key(seed)
    owners: dict[tuple[str, ...], linen.Module] = {}

    def record(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        owners[context.module.path] = context.module
        return next_function(*args, **kwargs)

    with linen.intercept_methods(record):
        streams = {"params": base, "dropout": jax.random.fold_in(base, 1)}
        variables = module.init(streams, example, method=lambda bound, batch: call(bound, batch, False))
    leaves = {
        tuple(str(key.key) for key in keys): precision.cast_array(jnp.asarray(leaf))
        for keys, leaf in jax.tree_util.tree_flatten_with_path(linen.unbox(variables))[0]
    }  # by (collection, *path)
    layers = [owners.get(path[1:-1]) for path in leaves]
    names = canonical_names([path[1:] for path in leaves], layers)
    paths = dict(zip(names, leaves, strict=True))
    layouts = {
        name: layout_of(path[-1], leaves[path].shape, layer)
        for (name, path), layer in zip(paths.items(), layers, strict=True)
    }
    parameters = {name: leaves[path] for name, path in paths.items() if path[0] == "params"}
    others = {name: leaves[path] for name, path in paths.items() if path[0] != "params"}
    mutable = sorted({paths[name][0] for name in others})

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        tree = _nest({paths[name]: value for name, value in {**values, **state}.items()})
        key = base if stamp is None else stamp.fold_into(base)
        outputs, changed = module.apply(
            tree,
            batch,
            method=lambda bound, given: call(bound, given, train),
            rngs={"params": key, "dropout": jax.random.fold_in(key, 1)},
            mutable=mutable if train else [],
        )
        return outputs, {name: _leaf(changed, paths[name]) for name in state} if train else state

    return FlaxModel(parameters, others, layouts, apply)


def _nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _leaf(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree
