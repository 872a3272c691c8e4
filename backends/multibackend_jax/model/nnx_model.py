"""An nnx module as a pure function: split into graph and states once, merged anew for each call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from multibackend.experiment import Model
from multibackend_jax.model.calls import caller
from multibackend_jax.model.dropout import prepare_nnx
from multibackend_jax.model.names import Leaf, canonical_names
from multibackend_jax.model.norm import decays_of, freeze_nnx
from multibackend_jax.model.observe import observed
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import Arrays, Batch, FlaxModel, ModelOptions, Stamp
from multibackend_jax.model.rematerialize import rematerialize_nnx, without_rematerialization

__all__ = ["wrap_nnx"]


def wrap_nnx(module: nnx.Module, model: Model, precision: Precision, options: ModelOptions) -> FlaxModel:
    """Make an nnx module a pure function; it is changed in place where the options ask for it."""
    dropout_layers = prepare_nnx(module, options.seed, portable=options.portable_dropout, rename=model.rename)
    rematerialize_nnx(module, options.rematerialize)
    layers = {tuple(path): layer for path, layer in nnx.iter_modules(module)}
    _free_embeddings(layers.values())
    # without `__call__` a module is called the user's way, which asks for no signature
    call = caller(model, type(module).__call__ if callable(module) else lambda: None)
    # the mode is an attribute of layers and so a part of the graph: one graph for each
    graphs = {}
    for train in (False, True):
        module.train() if train else module.eval()
        if train and options.frozen_statistics:
            freeze_nnx(layers.values())
        graphs[train], *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    parameter_state, random_state, other_state = states
    parameters = _Leaves(parameter_state, layers, precision)
    others = _Leaves(other_state, layers, precision)

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        streams = _streams(random_state, stamp)
        live = nnx.merge(graphs[train], parameters.restore(values), streams, others.restore(state))
        with observed(live):
            outputs = call(live, batch, train)
        _, _, _, new_state = nnx.split(live, nnx.Param, nnx.RngState, ...)
        return outputs, others.flatten(new_state)

    def bind(values: Arrays, state: Arrays) -> nnx.Module:
        streams = _streams(random_state, None)
        live = nnx.merge(graphs[False], parameters.restore(values), streams, others.restore(state))
        without_rematerialization(live)
        return live

    leaves = {**parameters.leaves, **others.leaves}
    named_layers = {".".join(map(str, path)): layer for path, layer in layers.items()}
    return FlaxModel(
        parameters.arrays,
        others.arrays,
        layouts={name: leaf.layout for name, leaf in leaves.items()},
        apply=apply,
        bind=bind,
        dropout_layers=dropout_layers,
        statistics=decays_of(named_layers, others.arrays),
        kinds={name: leaf.kind for name, leaf in leaves.items()},
        paths={name: leaf.path for name, leaf in leaves.items()},
        native={name: ".".join(leaf.path) for name, leaf in leaves.items()},
    )


class _Leaves:
    """The leaves of one nnx state by canonical name, and how they become that state again."""

    def __init__(self, state: nnx.State, layers: Mapping[tuple[Any, ...], object], precision: Precision) -> None:
        values, self._structure = jax.tree.flatten(state)
        paths = [path for path, _ in nnx.to_flat_state(state)]
        owners = [layers.get(tuple(path[:-1])) for path in paths]
        names = canonical_names(paths, owners)
        self.leaves: dict[str, Leaf] = {}
        for name, path, value, owner in zip(names, paths, values, owners, strict=True):
            array = precision.cast_array(jnp.asarray(value))
            self.leaves[name] = Leaf(tuple(map(str, path)), array, owner)
        self.arrays = {name: leaf.array for name, leaf in self.leaves.items()}

    def restore(self, arrays: Arrays) -> nnx.State:
        return jax.tree.unflatten(self._structure, [arrays[name] for name in self.leaves])

    def flatten(self, state: Any) -> Arrays:
        return dict(zip(self.leaves, jax.tree.leaves(state), strict=True))


def _free_embeddings(layers: Iterable[object]) -> None:
    """Undo that `nnx.Embed` fixes its default dtype before the run's precision is applied."""
    for layer in layers:
        if isinstance(layer, nnx.Embed) and layer.dtype == layer.embedding.dtype:
            layer.dtype = None


def _streams(random_state: nnx.State, stamp: Stamp | None) -> nnx.State:
    """Return the random streams at a stamp: keys folded with it, counters at 0."""

    def at_stamp(leaf: jax.Array) -> jax.Array:
        if stamp is None:
            return leaf
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return stamp.fold_into(leaf) if is_key else jnp.zeros_like(leaf)

    # mapped without a stamp too: a merged module holds the very variables of a state
    return jax.tree.map(at_stamp, random_state)
