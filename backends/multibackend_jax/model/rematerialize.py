"""Modules that recompute their activations in the backward pass, by `jax.checkpoint` as Flax lifts it.

nnx: the class of a chosen module is replaced by a subclass whose `__call__` runs under `nnx.remat`, so names stay what
they are. linen: an interceptor runs the `__call__` of the chosen modules under `linen.remat`, which keeps the scope
of each module and the random keys drawn in it.

Both hand arrays and modules over and leave everything else (`train=True`, None, ...) a Python value.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from multibackend.experiment.rematerialization import ModuleInfo, Rematerialize, choose_modules

__all__ = ["compiler_options", "kept_activations", "linen_scope", "rematerialize_linen", "rematerialize_nnx"]

Path = tuple[str, ...]

_KEPT = contextvars.ContextVar("kept", default=False)


@contextlib.contextmanager
def kept_activations() -> Iterator[None]:
    """Where functions are traced in which the chosen modules keep their activations after all."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


def compiler_options(rule: Rematerialize, platform: str) -> dict[str, Any] | None:
    """What the compiler must be told so that a second forward pass waits for the backward pass to come to it.

    `jax.checkpoint` puts a barrier before it. XLA removes barriers on CPU before it schedules, and then runs all second
    passes first: the same memory as without them, measured with jax 0.10, and more time. So that pass is left out.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if rule and platform == "cpu" else None


def rematerialize_nnx(module: nnx.Module, rule: Rematerialize) -> nnx.Module:
    """`module`, the modules that `rule` chooses changed in place; raises `ConfigurationError` where it chooses none."""
    named = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)} if rule else {}
    described = sorted((_describe_nnx(path, part) for path, part in named.items()), key=lambda info: _key(info.path))
    for path in choose_modules(rule, described):
        named[path].__class__ = _rematerialized(type(named[path]))
    return module


def _describe_nnx(path: str, module: nnx.Module) -> ModuleInfo:
    return ModuleInfo(
        path,
        type(module),
        parameters=bool(jax.tree.leaves(nnx.state(module, nnx.Param))),
        container=isinstance(module, nnx.Sequential),
        callable=callable(module),
    )


def _key(path: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts modules before what is inside them, and numbers as numbers."""
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.split(".") if part)


@functools.cache
def _rematerialized(kind: type[nnx.Module]) -> type[nnx.Module]:
    """A subclass of `kind` whose call keeps its inputs only."""
    original: Callable[..., Any] = kind.__call__  # pyright: ignore[reportAttributeAccessIssue] - chosen because it has one

    @functools.wraps(original)  # the mode is passed where the signature asks for it, so it must stay
    def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        if _KEPT.get():
            return original(self, *args, **kwargs)
        given, rebuild = _part(args, kwargs)

        @nnx.remat
        def run(module: nnx.Module, given: list[Any]) -> Any:
            args, kwargs = rebuild(given)
            return original(module, *args, **kwargs)

        return run(self, given)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})


def rematerialize_linen(
    modules: Mapping[Path, linen.Module], parameters: Iterable[Path], rule: Rematerialize
) -> frozenset[Path]:
    """The paths of the modules that `rule` chooses; raises `ConfigurationError` where it chooses none.

    Args:
        modules: every module that was called, by path.
        parameters: the paths of all parameters.
        rule: as of `Experiment.rematerialize`.
    """
    if not rule:
        return frozenset()
    holders = {path[:end] for path in parameters for end in range(len(path))}
    described = [
        ModuleInfo(
            ".".join(path), type(module), parameters=path in holders, container=isinstance(module, linen.Sequential)
        )
        for path, module in sorted(modules.items(), key=lambda item: _key(".".join(item[0])))
    ]
    chosen = set(choose_modules(rule, described))
    return frozenset(path for path in modules if ".".join(path) in chosen)


def linen_scope(chosen: frozenset[Path]) -> contextlib.AbstractContextManager[None]:
    """Where calls of the chosen modules keep their inputs only."""
    if not chosen or _KEPT.get():
        return contextlib.nullcontext()
    within: set[Path] = set()  # whose call is being rematerialised: what it calls in turn is the module itself

    def intercept(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path not in chosen or path in within:
            return next_function(*args, **kwargs)
        given, rebuild = _part(args, kwargs)

        def run(module: Any, given: list[Any]) -> Any:
            args, kwargs = rebuild(given)
            within.add(path)
            try:
                return module(*args, **kwargs)
            finally:
                within.discard(path)

        return linen.remat(run)(context.module, given)

    return linen.intercept_methods(intercept)


def _part(args: Any, kwargs: Any) -> tuple[list[Any], Callable[[list[Any]], tuple[Any, Any]]]:
    """The arrays and modules among the arguments, and what puts others in their place."""

    def handed_over(leaf: object) -> bool:
        return isinstance(leaf, jax.Array | np.ndarray | nnx.Pytree | nnx.Variable)

    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=handed_over)
    places = [index for index, leaf in enumerate(leaves) if handed_over(leaf)]

    def rebuild(given: list[Any]) -> tuple[Any, Any]:
        filled = list(leaves)
        for place, value in zip(places, given, strict=True):
            filled[place] = value
        return jax.tree.unflatten(structure, filled)

    return [leaves[place] for place in places], rebuild
