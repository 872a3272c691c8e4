"""Portable dropout in JAX: the masks that `multibackend.protocol.dropout_masks` defines, from JAX's own threefry.

The primitive is bound directly: no flag of the process (default generator, partitionable or not)
has a say.

>>> layer = Dropout(0.1, name="head.drop")       # in an nnx module
>>> layer = LinenDropout(0.1, not train)         # in a linen one    # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax
from jax.extend.random import threefry2x32_p

from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError
from multibackend.protocol.dropout_masks import keep_threshold, name_layers, root_key

__all__ = ["STREAM", "Dropout", "LinenDropout", "keep_mask", "prepare_linen", "prepare_nnx", "run_key"]

STREAM = "portable_dropout"  # the name of linen's random stream that holds the micro-batch's key


def run_key(seed: int) -> jax.Array:
    """Return the key of a run, as a typed threefry key."""
    return jax.random.wrap_key_data(jnp.asarray(root_key(seed), jnp.uint32), impl="threefry2x32")


def keep_mask(key: jax.Array, shape: Sequence[int], rate: float) -> jax.Array:
    """Tell which elements are kept, bool; `multibackend.protocol.dropout_masks.keep_mask` bit for bit."""
    count = math.prod(shape)
    if count > 2**32:
        raise ConfigurationError("Dropout", [f"a mask has at most 2**32 elements, this one has the shape {shape}"])
    first, second = jax.random.key_data(key)
    # counted by place in the flat array, as the definition has it
    index = lax.iota(jnp.uint32, count)
    high, low = threefry2x32_p.bind(first, second, jnp.zeros_like(index), index)
    drawn = (high ^ low) >> np.uint32(9)
    return (drawn < np.uint32(keep_threshold(rate))).reshape(tuple(shape))


def _dropped(inputs: jax.Array, key: jax.Array, rate: float, broadcast_dims: Sequence[int]) -> jax.Array:
    """Return inputs * keep / (1 - rate), one decision along each of `broadcast_dims`."""
    shape = list(inputs.shape)
    for axis in broadcast_dims:
        shape[axis] = 1
    # selected, not multiplied by 0 and 1: an infinite value that is dropped would become NaN
    return jnp.where(keep_mask(key, shape, rate), inputs * (1.0 / (1.0 - rate)), jnp.zeros_like(inputs))


class Dropout(nnx.Dropout):
    """Dropout whose masks every backend reproduces: y = x * keep / (1 - rate) in training, y = x in evaluation.

    `keep` is `multibackend.protocol.dropout_masks.keep_mask` of the run's seed, the update, the
    micro-batch and the layer's name; the gradient is keep / (1 - rate). A library layer is portable
    whatever the experiment's `dropout` says.

    Args:
        rate: the probability of dropping an element, in [0, 1).
        name: by which the layer draws; its path in the model unless given.
        broadcast_dims: axes along which elements share a decision.

    Raises:
        ConfigurationError: the rate is outside [0, 1).

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting".
    """

    name: str | None
    word: int

    def __init__(self, rate: float, name: str | None = None, *, broadcast_dims: Sequence[int] = ()) -> None:
        problems = Problems("Dropout")
        problems.number("rate", rate, minimum=0.0, below=1.0)
        problems.raise_if_any()
        super().__init__(float(rate), broadcast_dims=tuple(broadcast_dims))
        _make_portable(self, run_key(0), 0, name)  # until a program is built: it knows the run's seed

    def __call__(self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: object = None) -> jax.Array:
        """`rngs` is what nnx.Dropout takes; a portable layer draws from the run instead."""
        off = self.deterministic if deterministic is None else deterministic
        if self.rate == 0 or off:
            return inputs
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        stream: Any = self.rngs
        layer_key = jax.random.fold_in(stream.key[...], np.uint32(self.word))
        key = jax.random.fold_in(layer_key, stream.count[...])
        stream.count[...] += 1  # so that a layer that is called twice draws two masks
        return _dropped(inputs, key, self.rate, self.broadcast_dims)


class LinenDropout(linen.Dropout):
    """The same layer for linen modules, with the arguments of `linen.Dropout`."""

    def __post_init__(self) -> None:
        problems = Problems("LinenDropout")
        problems.number("rate", self.rate, minimum=0.0, below=1.0)
        problems.raise_if_any()
        super().__post_init__()


def _make_portable(layer: Any, key: jax.Array, word: int, name: str | None) -> None:
    """Let an nnx layer draw by a word: in place, so that every reference to it stays right."""
    layer.__class__ = Dropout
    layer.name = name
    layer.word = word
    layer.rngs = nnx.RngStream(key, tag="dropout")


def prepare_nnx(module: nnx.Module, seed: int, *, portable: bool, rename: Mapping[str, str]) -> tuple[str, ...]:
    """Name the dropout layers of an nnx module and make all, or the library's own, portable.

    Returns the names (paths, unless given) of all dropout layers whose rate is not 0, in
    order of definition.

    Raises:
        ConfigurationError: `portable`, and a layer drops in a way that cannot be replaced.
    """
    paths = {id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(module)}
    layers = {paths[id(layer)]: layer for layer in _in_order(module, set()) if _rate(layer) > 0}
    if portable:
        _check_replaceable(layers)
    names = []
    portable_layers = {}
    for path, layer in layers.items():
        name = layer.name if isinstance(layer, Dropout) else None
        names.append(name or path)
        if portable or isinstance(layer, Dropout):
            portable_layers[path] = (layer, name)
    words = name_layers([name or path for path, (_, name) in portable_layers.items()], rename)
    for path, (layer, name) in portable_layers.items():
        _make_portable(layer, run_key(seed), words[name or path], name)
    return tuple(names)


def prepare_linen(
    layers: Mapping[tuple[str, ...], linen.Module], *, portable: bool, rename: Mapping[str, str]
) -> tuple[tuple[str, ...], Callable[..., Any] | None]:
    """Return the paths of a linen module's dropout layers whose rate is not 0, in order of call.

    With them an interceptor for `linen.intercept_methods` that makes all of them, or the library's
    own, draw portable masks; None where there are none.

    Raises:
        ConfigurationError: `portable`, and a layer drops in a way that cannot be replaced.
    """
    dropout_layers = {".".join(path): layer for path, layer in layers.items() if _rate(layer) > 0}
    if portable:
        _check_replaceable(dropout_layers)
    words = name_layers(
        [path for path, layer in dropout_layers.items() if portable or isinstance(layer, LinenDropout)], rename
    )

    def interceptor(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, linen.Dropout) and context.method_name == "__call__":
            path = ".".join(layer.path)
            if path in words:
                return _call_linen(layer, words[path], *args, **kwargs)
        return next_function(*args, **kwargs)

    return tuple(dropout_layers), interceptor if words else None


def _call_linen(
    layer: linen.Dropout, word: int, inputs: jax.Array, deterministic: bool | None = None, rng: object = None
) -> jax.Array:
    """Call a linen layer with a portable mask; the arguments after `word` are those of `linen.Dropout`."""
    off = linen.merge_param("deterministic", layer.deterministic, deterministic)
    if layer.rate == 0 or off:
        return inputs
    if layer.rate == 1:
        return jnp.zeros_like(inputs)
    scope: Any = layer.scope
    # a lifted loop passes on only the streams that it names: its layers share a path, and must not
    # share a mask
    stream = STREAM if STREAM in scope.rngs else layer.rng_collection
    call = scope.rng_counters[stream]
    scope.rng_counters[stream] = call + 1
    layer_key = jax.random.fold_in(scope.rngs[stream].rng, np.uint32(word))
    key = jax.random.fold_in(layer_key, call)
    return _dropped(inputs, key, layer.rate, layer.broadcast_dims)


def _rate(layer: object) -> float:
    """Return the rate at which a module drops by itself; 0 for one that does not."""
    if isinstance(layer, nnx.Dropout | linen.Dropout):
        return float(layer.rate)
    if isinstance(layer, nnx.MultiHeadAttention | linen.MultiHeadDotProductAttention):
        return float(layer.dropout_rate)
    return 0.0


def _check_replaceable(layers: Mapping[str, object]) -> None:
    problems = Problems("dropout='portable'")
    for path, layer in layers.items():
        # by the very class: a subclass may drop in a way of its own
        if type(layer) not in (nnx.Dropout, linen.Dropout, Dropout, LinenDropout):
            problems.add(
                f"{path!r} is a {type(layer).__name__} that drops at rate {_rate(layer)} in its own way; give it rate "
                "0 and put a Dropout beside it"
            )
    problems.raise_if_any()


def _in_order(node: object, visited: set[int]) -> Iterator[nnx.Module]:
    """Yield the modules of an nnx tree in order of definition; `nnx.iter_modules` sorts them by name."""
    if id(node) in visited or isinstance(node, str | bytes | jax.Array | np.ndarray | nnx.Variable):
        return
    visited.add(id(node))
    if isinstance(node, nnx.Module):
        yield node
    for child in _children(node):
        yield from _in_order(child, visited)


def _children(node: object) -> tuple[object, ...]:
    if isinstance(node, Mapping):
        return tuple(node.values())
    if isinstance(node, list | tuple):
        return tuple(node)
    if isinstance(node, nnx.Pytree):
        return tuple(vars(node).values())
    return ()
