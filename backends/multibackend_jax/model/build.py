"""Flax modules, nnx and linen, built and made pure functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from multibackend.errors import ConfigurationError
from multibackend.experiment import Model
from multibackend.experiment.rematerialization import Rematerialize
from multibackend_jax.model.dropout import STREAM, prepare_linen, prepare_nnx, run_key
from multibackend_jax.model.names import canonical_names, kind_of, layout_of
from multibackend_jax.model.norm import decays_of, freeze_linen, freeze_nnx
from multibackend_jax.model.observe import observed
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import Arrays, Batch, FlaxModel, Stamp
from multibackend_jax.model.rematerialize import linen_scope, rematerialize_linen, rematerialize_nnx
from multibackend_jax.model.transformers_models import held_call, held_module, held_variables, is_holder

__all__ = ["build_model"]


def build_model(
    model: Model,
    precision: Precision,
    seed: int,
    example: Batch,
    *,
    portable_dropout: bool = False,
    frozen: bool = False,
    rematerialize: Rematerialize = False,
) -> FlaxModel:
    """Call the user's builder and wrap what it returns; raises `ConfigurationError` for what is no Flax module."""
    builder = model.builder("jax")
    rngs = {"rngs": nnx.Rngs(seed)} if _takes_rngs(builder) else {}
    module = builder(**rngs)
    if isinstance(module, nnx.Module):
        dropout_layers = prepare_nnx(module, seed, portable=portable_dropout, rename=model.rename)
        module = rematerialize_nnx(module, rematerialize)
        return replace(_wrap_nnx(module, model, precision, frozen), dropout_layers=dropout_layers)
    if isinstance(module, linen.Module):
        return _wrap_linen(module, model, precision, seed, example, portable_dropout, frozen, rematerialize)
    if is_holder(module):
        return _wrap_linen(module, model, precision, seed, example, portable_dropout, frozen, rematerialize)
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
        self.paths = {name: tuple(map(str, path)) for name, path in zip(self.names, paths, strict=True)}
        self.arrays = {n: precision.cast_array(jnp.asarray(v)) for n, v in zip(self.names, values, strict=True)}
        self.layouts = {
            name: layout_of(str(path[-1]), array.shape, layer)
            for (name, array), path, layer in zip(self.arrays.items(), paths, layers, strict=True)
        }
        self.layers = dict(zip(self.names, layers, strict=True))

    def restore(self, arrays: Arrays) -> nnx.State:
        return jax.tree.unflatten(self._structure, [arrays[name] for name in self.names])

    def flatten(self, state: Any) -> Arrays:
        return dict(zip(self.names, jax.tree.leaves(state), strict=True))


def _wrap_nnx(module: nnx.Module, model: Model, precision: Precision, frozen: bool) -> FlaxModel:
    owners = {tuple(path): owner for path, owner in nnx.iter_modules(module)}
    _free_embeddings(owners.values())
    call = _caller(model, type(module).__call__) if callable(module) else _caller(model, lambda: None)
    graphs = {}
    for train in (False, True):
        module.train() if train else module.eval()
        freeze_nnx(owners.values() if train and frozen else ())
        graphs[train], parameter_state, random_state, other_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    parameters = _Leaves(parameter_state, owners, precision)
    others = _Leaves(other_state, owners, precision)

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        # a new state either way: merged modules hold the very variables of a state, and belong to this trace
        random = jax.tree.map(lambda leaf: leaf, random_state) if stamp is None else _stamped(random_state, stamp)
        live = nnx.merge(graphs[train], parameters.restore(values), random, others.restore(state))
        with observed(live):
            outputs = call(live, batch, train)
        return outputs, others.flatten(nnx.split(live, nnx.Param, nnx.RngState, ...)[3])

    layers = {".".join(map(str, path)): owner for path, owner in owners.items()}
    layouts = {**parameters.layouts, **others.layouts}
    kinds = {name: kind_of(layer) for name, layer in {**parameters.layers, **others.layers}.items()}
    paths = {**parameters.paths, **others.paths}
    return FlaxModel(
        parameters.arrays,
        others.arrays,
        layouts,
        apply,
        statistics=decays_of(layers, others.arrays),
        kinds=kinds,
        paths=paths,
        native={name: ".".join(path) for name, path in paths.items()},
    )


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


def _wrap_linen(
    built: Any,
    model: Model,
    precision: Precision,
    seed: int,
    example: Batch,
    portable_dropout: bool,
    frozen: bool,
    rematerialize: Rematerialize,
) -> FlaxModel:
    call, module, given = _caller(model, type(built).__call__), built, {}
    if not isinstance(built, linen.Module):
        call, module, given = held_call(built, call), held_module(built, precision), held_variables(built)
    base = jax.random.key(seed)
    owners: dict[tuple[str, ...], linen.Module] = {}

    def record(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        owners[context.module.path] = context.module
        return next_function(*args, **kwargs)

    with linen.intercept_methods(record):
        streams = {"params": base, "dropout": jax.random.fold_in(base, 1)}
        values = _initial(functools.partial(module.init, streams, example), call, _flat(given))
    leaves = {path: precision.cast_array(jnp.asarray(leaf)) for path, leaf in values.items()}  # by (collection, *path)
    layers = [owners.get(path[1:-1]) for path in leaves]
    names = canonical_names([path[1:] for path in leaves], layers)
    paths = dict(zip(names, leaves, strict=True))
    layouts = {
        name: layout_of(path[-1], leaves[path].shape, layer)
        for (name, path), layer in zip(paths.items(), layers, strict=True)
    }
    called = {layer: index for index, layer in enumerate(owners)}  # modules in the order of their first call
    order = sorted(names, key=lambda name: called.get(paths[name][1:-1], len(called)))
    kinds = {name: kind_of(owners.get(paths[name][1:-1])) for name in order}
    parameters = {name: leaves[path] for name, path in paths.items() if path[0] == "params"}
    others = {name: leaves[path] for name, path in paths.items() if path[0] != "params"}
    mutable = sorted({paths[name][0] for name in others})
    checkpointed = rematerialize_linen(owners, [paths[name][1:] for name in parameters], rematerialize)
    dropout_layers, portable = prepare_linen(owners, portable=portable_dropout, rename=model.rename)
    masks = run_key(seed)
    interceptors = [*((portable,) if portable is not None else ()), *((freeze_linen,) if frozen else ())]
    layers = {".".join(path): layer for path, layer in owners.items()}

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        tree = _nest({paths[name]: value for name, value in {**values, **state}.items()})
        key = base if stamp is None else stamp.fold_into(base)
        streams = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        if portable is not None:
            streams[STREAM] = masks if stamp is None else stamp.fold_into(masks)
        with contextlib.ExitStack() as interceptions:
            interceptions.enter_context(observed())
            interceptions.enter_context(linen_scope(checkpointed))
            for interceptor in interceptors if train else ():
                interceptions.enter_context(linen.intercept_methods(interceptor))
            outputs, changed = module.apply(
                tree,
                batch,
                method=lambda bound, given: call(bound, given, train),
                rngs=streams,
                mutable=mutable if train else [],
            )
        return outputs, {name: _leaf(changed, paths[name]) for name in state} if train else state

    native = {name: ".".join(path if others or built is module else path[1:]) for name, path in paths.items()}
    return FlaxModel(
        parameters, others, layouts, apply, dropout_layers, decays_of(layers, others), kinds, paths, native
    )


def _initial(init: Callable[..., Any], call: Callable[..., Any], given: dict[tuple[str, ...], Any]) -> dict:
    """Initial values by (collection, *path); where all are given the model is traced only, not run."""

    def variables() -> Any:
        return init(method=lambda bound, batch: call(bound, batch, False))

    if given and jax.tree.leaves(shapes := _flat(jax.eval_shape(variables))) and shapes.keys() <= given.keys():
        return {path: given[path] for path in shapes}
    return {**_flat(variables()), **given}


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    flat = jax.tree_util.tree_flatten_with_path(linen.unbox(variables))[0]
    return {tuple(str(key.key) for key in keys): leaf for keys, leaf in flat}


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
