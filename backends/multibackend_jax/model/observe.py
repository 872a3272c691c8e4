"""What each module of a Flax model is called with and returns: `linen.intercept_methods`, or patched nnx classes.

What is called inside a transformation (scan, vmap, checkpoint, a nested jit) exists only while that
is being traced and cannot be handed out; such calls are passed through unrecorded.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from multibackend.protocol.tracing import Forced, arrays_in, forced_arrays, plain_settings, with_arrays

__all__ = ["Call", "Observer", "host", "is_array", "observed", "observing"]

_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("observer", default=None)
_FLAX_FIELDS = frozenset({"parent", "name", "rngs", "scope"})


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array, random keys aside."""
    if not isinstance(leaf, jax.Array):
        return isinstance(leaf, np.ndarray)
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)  # which numpy does not know


def host(array: Any) -> np.ndarray:
    """Copy an array to the host; bfloat16, which numpy lacks, as float32."""
    dtype = np.float32 if array.dtype == jnp.bfloat16 else None
    return np.array(array, dtype)


@dataclass
class Call:
    """A `multibackend.protocol.tracing.LayerCall` but for its arrays, which are traced."""

    name: str
    call: int
    kind: str
    settings: Mapping[str, Any]
    depth: int
    inputs: list[Any]
    outputs: list[Any] = field(default_factory=list)
    leaf: bool = True


class Observer:
    """Records the calls of a model's modules in the order in which they begin.

    Args:
        forced: by (layer name, call), what to put in place of inputs and outputs; their arrays
            may be traced.
    """

    def __init__(self, forced: Mapping[tuple[str, int], Forced] | None = None) -> None:
        self.calls: list[Call] = []
        self._forced = forced or {}
        self._counts: dict[str, int] = {}
        self._open: list[Call] = []
        self._transformation = _current_transformation()

    def may_record(self) -> bool:
        """Whether arrays belong to the function that made this observer, and may be handed out by it."""
        return _current_transformation() == self._transformation

    def run(self, name: str, module: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record one call of a module."""
        if self._open and not name:  # a module that was applied by itself, with variables from elsewhere
            own_name = getattr(module, "name", None) or type(module).__name__
            name = f"{self._open[-1].name}.{own_name}".lstrip(".")
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        inputs = arrays_in((args, kwargs), is_array)
        call = Call(name, number, type(module).__name__, _settings(module), len(self._open), inputs)
        if self._open:  # it is called by that module, which so is no leaf
            self._open[-1].leaf = False
        self.calls.append(call)
        self._open.append(call)
        forced = self._forced.get((name, number), Forced())
        if forced.inputs is not None:
            args, kwargs = _replaced((args, kwargs), inputs, forced.inputs, f"the inputs of {name!r}")
        try:
            outputs = run(*args, **kwargs)
        finally:
            self._open.pop()
        # what the layer computed, not what is forced: the caller asks how the two differ
        call.outputs = arrays_in(outputs, is_array)
        if forced.outputs is None:
            return outputs
        return _replaced(outputs, call.outputs, forced.outputs, f"the outputs of {name!r}")


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Let models tell an observer what they call."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def observed(module: nnx.Module | None = None) -> contextlib.AbstractContextManager[None]:
    """Let the active observer, if any, see calls of an nnx module's parts; or of linen modules."""
    observer = _OBSERVER.get()
    if observer is None:
        return contextlib.nullcontext()
    if module is None:
        return linen.intercept_methods(_interceptor(observer))
    return _patched(module, observer)


def _interceptor(observer: Observer) -> Callable[..., Any]:
    def intercept(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        if context.method_name != "__call__" or not observer.may_record():
            return next_function(*args, **kwargs)
        return observer.run(".".join(context.module.path), context.module, next_function, args, kwargs)

    return intercept


@contextlib.contextmanager
def _patched(root: nnx.Module, observer: Observer) -> Iterator[None]:
    """Give the classes in a tree of nnx modules a `__call__` that tells the observer."""
    parts = [(path, part) for path, part in nnx.iter_modules(root) if callable(part)]
    paths = {id(part): ".".join(map(str, path)) for path, part in parts}
    kinds: list[Any] = list(dict.fromkeys(type(part) for _, part in parts))
    before = {kind: vars(kind).get("__call__") for kind in kinds}
    # all are made before any class is changed: classes inherit
    patches = {kind: _telling(kind, paths, observer) for kind in kinds}
    try:
        for kind in kinds:
            kind.__call__ = patches[kind]
        yield
    finally:
        for kind in kinds:
            if before[kind] is None:  # the class inherits its call
                del kind.__call__
            else:
                kind.__call__ = before[kind]


def _telling(kind: Any, paths: Mapping[int, str], observer: Observer) -> Callable[..., Any]:
    original: Callable[..., Any] = kind.__call__
    running: set[int] = set()

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a class may call the patched one of its base: that is a part of the same call
        nested = type(self) is not kind or id(self) in running
        if nested or id(self) not in paths or not observer.may_record():
            return original(self, *args, **kwargs)
        running.add(id(self))
        try:
            return observer.run(paths[id(self)], self, functools.partial(original, self), args, kwargs)
        finally:
            running.discard(id(self))

    return call


def _current_transformation() -> Any:
    """Return a token of what is being traced now; equal tokens mean the same trace."""
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


def _replaced(tree: Any, arrays: Sequence[Any], forced: Sequence[Any | None], what: str) -> Any:
    """Return the tree with forced arrays, of the dtypes of those that they replace."""
    replacements = []
    for array, replacement in zip(arrays, forced_arrays(arrays, forced, what), strict=True):
        replacements.append(None if replacement is None else jnp.asarray(replacement, array.dtype))
    return with_arrays(tree, replacements, is_array)


def _settings(module: Any) -> dict[str, Any]:
    """Return the hyperparameters: a linen module's fields, an nnx module's attributes."""
    attributes = vars(module)
    if isinstance(module, linen.Module):
        attributes = {name: getattr(module, name, None) for name in type(module).__dataclass_fields__}
    return plain_settings({name: value for name, value in attributes.items() if name not in _FLAX_FIELDS})
