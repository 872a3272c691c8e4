"""A linen module as a pure function: `apply` on variables that are nested anew for each call."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from multibackend.experiment import Model
from multibackend_jax.model.calls import Call, caller
from multibackend_jax.model.dropout import STREAM, prepare_linen, run_key
from multibackend_jax.model.names import Leaf, canonical_names
from multibackend_jax.model.norm import decays_of, freeze_linen
from multibackend_jax.model.observe import observed
from multibackend_jax.model.precision import Precision
from multibackend_jax.model.pure import Arrays, Batch, FlaxModel, ModelOptions, Stamp
from multibackend_jax.model.rematerialize import linen_scope, rematerialize_linen
from multibackend_jax.model.transformers_models import held_call, held_module, held_variables, holding

__all__ = ["wrap_linen"]

Path = tuple[str, ...]
Layers = dict[Path, linen.Module]


def wrap_linen(built: Any, model: Model, precision: Precision, options: ModelOptions, example: Batch) -> FlaxModel:
    """Make a linen module, or an object that holds one, a pure function."""
    module = built
    call = caller(model, type(built).__call__)
    initial: dict[str, Any] = {}
    holder = not isinstance(built, linen.Module)
    if holder:
        module = held_module(built, precision)
        call = held_call(built, call)
        initial = held_variables(built)
    key = jax.random.key(options.seed)
    variables, layers = _initialise(module, call, example, key, _flat(initial))
    leaves = _named(variables, layers, precision)
    paths = {name: leaf.path for name, leaf in leaves.items()}
    parameters = {name: leaf.array for name, leaf in leaves.items() if leaf.path[0] == "params"}
    others = {name: leaf.array for name, leaf in leaves.items() if leaf.path[0] != "params"}
    mutable = sorted({paths[name][0] for name in others})
    parameter_paths = [paths[name][1:] for name in parameters]
    rematerialized = rematerialize_linen(layers, parameter_paths, options.rematerialize)
    dropout_layers, portable = prepare_linen(layers, portable=options.portable_dropout, rename=model.rename)
    mask_key = run_key(options.seed)
    interceptors = [] if portable is None else [portable]
    if options.frozen_statistics:
        interceptors.append(freeze_linen)

    def variables_of(values: Arrays, state: Arrays) -> dict[str, Any]:
        return _nested({paths[name]: value for name, value in {**values, **state}.items()})

    def bind(values: Arrays, state: Arrays) -> Any:
        tree = variables_of(values, state)
        return holding(built, tree) if holder else module.bind(tree)

    def apply(values: Arrays, state: Arrays, batch: Batch, stamp: Stamp | None, train: bool) -> tuple[Any, Arrays]:
        tree = variables_of(values, state)
        streams = _streams(key if stamp is None else stamp.fold_into(key))
        if portable is not None:
            streams[STREAM] = mask_key if stamp is None else stamp.fold_into(mask_key)
        with contextlib.ExitStack() as interceptions:
            interceptions.enter_context(observed())
            interceptions.enter_context(linen_scope(rematerialized))
            # in evaluation layers neither drop nor move statistics
            for interceptor in interceptors if train else ():
                interceptions.enter_context(linen.intercept_methods(interceptor))
            outputs, changed = module.apply(
                tree,
                batch,
                method=lambda bound, batch: call(bound, batch, train),
                rngs=streams,
                mutable=mutable if train else [],
            )
        if not train:
            return outputs, state
        return outputs, {name: _leaf(changed, paths[name]) for name in state}

    # model libraries store the parameters of a model without state without their collection's name
    start = 1 if holder and not others else 0
    return FlaxModel(
        parameters,
        others,
        layouts={name: leaf.layout for name, leaf in leaves.items()},
        apply=apply,
        bind=bind,
        dropout_layers=dropout_layers,
        statistics=decays_of({".".join(path): layer for path, layer in layers.items()}, others),
        kinds={name: leaves[name].kind for name in _in_order_of_calls(paths, layers)},
        paths=paths,
        native={name: ".".join(path[start:]) for name, path in paths.items()},
    )


def _initialise(
    module: linen.Module, call: Call, example: Batch, key: jax.Array, initial: Mapping[Path, Any]
) -> tuple[dict[Path, Any], Layers]:
    """Return the variables by (collection, *path) and the layers by path, in the order of their first call.

    Values in `initial` take precedence; where all are there, the model is traced only, not run.
    """
    layers: Layers = {}

    def record(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        layers[context.module.path] = context.module
        return next_function(*args, **kwargs)

    def variables() -> Any:
        # in evaluation mode, which asks for no streams but these
        return module.init(_streams(key), example, method=lambda bound, batch: call(bound, batch, False))

    with linen.intercept_methods(record):
        if initial:
            shapes = _flat(jax.eval_shape(variables))
            if shapes and shapes.keys() <= initial.keys():
                return {path: initial[path] for path in shapes}, layers
        return {**_flat(variables()), **initial}, layers


def _named(variables: Mapping[Path, Any], layers: Layers, precision: Precision) -> dict[str, Leaf]:
    """Return the leaves by canonical name, which leaves the collection out."""
    leaves = []
    for path, value in variables.items():
        leaves.append(Leaf(path, precision.cast_array(jnp.asarray(value)), layers.get(path[1:-1])))
    names = canonical_names([leaf.path[1:] for leaf in leaves], [leaf.owner for leaf in leaves])
    return dict(zip(names, leaves, strict=True))


def _in_order_of_calls(paths: Mapping[str, Path], layers: Layers) -> list[str]:
    """Sort names by the first call of their layers."""
    # linen sorts variables by name; the order of calls is the nearest to that of definition
    positions = {path: index for index, path in enumerate(layers)}
    return sorted(paths, key=lambda name: positions.get(paths[name][1:-1], len(positions)))


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    return {"params": key, "dropout": jax.random.fold_in(key, 1)}


def _flat(variables: Mapping[str, Any]) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(linen.unbox(variables))[0]
    return {tuple(str(key.key) for key in keys): leaf for keys, leaf in leaves}


def _nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _leaf(tree: Mapping[str, Any], path: Path) -> Any:
    for part in path:
        tree = tree[part]
    return tree
