"""What each module of a Flax model is called with and returns: `linen.intercept_methods`, or patched nnx classes.

What is called inside a transformation (scan, vmap, checkpoint, a nested jit) exists only while that is being traced
and cannot be handed out; such calls are passed through unseen.
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
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def host(array: Any) -> np.ndarray:
    """A copy on the host; bfloat16, which numpy lacks, as float32."""
    return np.array(array, np.float32 if array.dtype == jnp.bfloat16 else None)


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
        forced: by (layer name, call), what to put in place of inputs and outputs; their arrays may be traced.
    """

    def __init__(self, forced: Mapping[tuple[str, int], Forced] | None = None) -> None:
        self.calls: list[Call] = []
        self._forced = forced or {}
        self._counts: dict[str, int] = {}
        self._open: list[Call] = []
        self._home = _transformation()

    def here(self) -> bool:
        """Whether arrays belong to the function that made this observer, and may be handed out by it."""
        return _transformation() == self._home

    def run(self, name: str, module: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module, recorded."""
        if self._open and not name:  # a module that was applied by itself, with variables from elsewhere
            own = getattr(module, "name", None) or type(module).__name__
            name = f"{self._open[-1].name}.{own}".lstrip(".")
        number = self._counts[name] = self._counts.get(name, -1) + 1
        inputs = arrays_in((args, kwargs), is_array)
        call = Call(name, number, type(module).__name__, _settings(module), len(self._open), inputs)
        if self._open:
            self._open[-1].leaf = False
        self.calls.append(call)
        self._open.append(call)
        wanted = self._forced.get((name, number), Forced())
        if wanted.inputs is not None:
            args, kwargs = _replaced((args, kwargs), inputs, wanted.inputs, f"the inputs of {name!r}")
        try:
            outputs = run(*args, **kwargs)
        finally:
            self._open.pop()
        call.outputs = arrays_in(outputs, is_array)
        if wanted.outputs is None:
            return outputs
        return _replaced(outputs, call.outputs, wanted.outputs, f"the outputs of {name!r}")


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Where models tell an observer what they call."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def observed(module: nnx.Module | None = None) -> contextlib.AbstractContextManager[None]:
    """Where the active observer, if there is one, sees calls of an nnx module and those below; or of linen modules."""
    observer = _OBSERVER.get()
    if observer is None:
        return contextlib.nullcontext()
    return linen.intercept_methods(_interceptor(observer)) if module is None else _patched(module, observer)


def _interceptor(observer: Observer) -> Callable[..., Any]:
    def intercept(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        if context.method_name != "__call__" or not observer.here():
            return next_function(*args, **kwargs)
        return observer.run(".".join(context.module.path), context.module, next_function, args, kwargs)

    return intercept


@contextlib.contextmanager
def _patched(root: nnx.Module, observer: Observer) -> Iterator[None]:
    """The classes of a tree of nnx modules, with a `__call__` that tells the observer; put back afterwards."""
    paths = {id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(root) if callable(part)}
    kinds = {type(part) for _, part in nnx.iter_modules(root) if callable(part)}
    own = {kind: kind.__dict__.get("__call__") for kind in kinds}
    new = {kind: _telling(kind, paths, observer) for kind in kinds}  # before any is changed: classes inherit
    try:
        for kind in kinds:
            kind.__call__ = new[kind]  # pyright: ignore[reportAttributeAccessIssue] - callable, so it has one
        yield
    finally:
        for kind, function in own.items():
            if function is None:
                del kind.__call__  # pyright: ignore[reportAttributeAccessIssue] - set above
            else:
                kind.__call__ = function  # pyright: ignore[reportAttributeAccessIssue] - as it was


def _telling(kind: type, paths: Mapping[int, str], observer: Observer) -> Callable[..., Any]:
    original: Callable[..., Any] = kind.__call__  # pyright: ignore[reportAttributeAccessIssue] - callable
    running: set[int] = set()  # a class may call that of its base

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in paths or type(self) is not kind or id(self) in running or not observer.here():
            return original(self, *args, **kwargs)
        running.add(id(self))
        try:
            return observer.run(paths[id(self)], self, functools.partial(original, self), args, kwargs)
        finally:
            running.discard(id(self))

    return call


def _transformation() -> Any:
    """What is being traced now."""
    return jax.extend.core.get_opaque_trace_state(convention="nnx")


def _replaced(tree: Any, found: Sequence[Any], wanted: Sequence[Any | None], what: str) -> Any:
    """The tree with forced arrays of the dtypes that they replace."""
    new = [
        None if array is None else jnp.asarray(array, old.dtype)
        for old, array in zip(found, forced_arrays(found, wanted, what), strict=True)
    ]
    return with_arrays(tree, new, is_array)


def _settings(module: Any) -> dict[str, Any]:
    """The hyperparameters: a linen module's fields, an nnx module's attributes."""
    if isinstance(module, linen.Module):
        attributes = {name: getattr(module, name, None) for name in type(module).__dataclass_fields__}
    else:
        attributes = vars(module)
    return plain_settings({name: value for name, value in attributes.items() if name not in _FLAX_FIELDS})
