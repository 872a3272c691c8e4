"""Modules that recompute their activations in the backward pass, by `jax.checkpoint` as Flax lifts it.

nnx: the class of a chosen module is replaced by a subclass whose `__call__` runs under `nnx.remat`,
so names stay what they are. linen: an interceptor runs the `__call__` of the chosen modules under
`linen.remat`, which keeps the scope of each module and the random keys drawn in it.

Both hand arrays and modules over and leave everything else (`train=True`, None, ...) a Python
value.
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

__all__ = [
    "compiler_options",
    "kept_activations",
    "linen_scope",
    "rematerialize_linen",
    "rematerialize_nnx",
    "without_rematerialization",
]

Path = tuple[str, ...]

_ORIGINALS: dict[type, type] = {}  # by the class that recomputes, the one that it stands for
_KEPT = contextvars.ContextVar("kept", default=False)


@contextlib.contextmanager
def kept_activations() -> Iterator[None]:
    """Let the chosen modules keep their activations in functions that are traced meanwhile."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


def compiler_options(rule: Rematerialize, platform: str) -> dict[str, Any] | None:
    """Return what makes the second forward pass of a module wait for its backward pass.

    `jax.checkpoint` puts a barrier before it. Before jax 0.11.1 XLA removes barriers on CPU before
    it schedules, and then runs all second passes first: the same memory as without them, and more
    time. So that pass is left out. Later ones schedule as they should (27 MiB where activations
    take 146, the same as without the pass), and without it the XLA of 0.12.0.1 aborts the process.
    """
    if rule and platform == "cpu" and jax.__version_info__ < (0, 11, 1):
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return None


def rematerialize_nnx(module: nnx.Module, rule: Rematerialize) -> None:
    """Change the modules that `rule` chooses in place; raises `ConfigurationError` where it chooses none."""
    if not rule:
        return
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)}
    # by changing the class in place: names and every reference to the module stay right
    for path in choose_modules(rule, [_describe_nnx(path, parts[path]) for path in sorted(parts, key=_key)]):
        parts[path].__class__ = _rematerialized(type(parts[path]))


def without_rematerialization(module: nnx.Module) -> None:
    """Give the chosen modules their own classes back, in place."""
    for _, part in nnx.iter_modules(module):
        part.__class__ = _ORIGINALS.get(type(part), type(part))


def _describe_nnx(path: str, module: nnx.Module) -> ModuleInfo:
    return ModuleInfo(
        path,
        type(module),
        parameters=bool(jax.tree.leaves(nnx.state(module, nnx.Param))),
        container=isinstance(module, nnx.Sequential),
        callable=callable(module),
    )


def _key(path: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort modules before what is inside them, and numbers as numbers."""
    keys = []
    for part in path.split("."):
        if part:  # the path of the whole model is ""
            number = int(part) if part.isdigit() else 0
            keys.append((part.isdigit(), number, part))
    return tuple(keys)


@functools.cache  # so that modules of one class stay of one class
def _rematerialized(kind: type[nnx.Module]) -> type[nnx.Module]:
    """Return a subclass of `kind` whose call keeps its inputs only."""
    original: Callable[..., Any] = kind.__call__  # pyright: ignore[reportAttributeAccessIssue] - chosen because it has one

    @functools.wraps(original)  # the mode is passed where the signature asks for it, so it must stay
    def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        if _KEPT.get():
            return original(self, *args, **kwargs)
        arrays, rebuild = _split(args, kwargs)

        @nnx.remat
        def run(module: nnx.Module, arrays: list[Any]) -> Any:
            args, kwargs = rebuild(arrays)
            return original(module, *args, **kwargs)

        return run(self, arrays)

    names = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    rematerialized = type(kind.__name__, (kind,), names)
    _ORIGINALS[rematerialized] = kind
    return rematerialized


def rematerialize_linen(
    modules: Mapping[Path, linen.Module], parameters: Iterable[Path], rule: Rematerialize
) -> frozenset[Path]:
    """Return the paths that `rule` chooses; raises `ConfigurationError` where it chooses none.

    Args:
        modules: every module that was called, by path.
        parameters: the paths of all parameters.
        rule: as of `Experiment.rematerialize`.
    """
    if not rule:
        return frozenset()
    with_parameters = {path[:end] for path in parameters for end in range(len(path))}
    paths = {".".join(path): path for path in modules}
    described = []
    for name in sorted(paths, key=_key):
        module = modules[paths[name]]
        is_container = isinstance(module, linen.Sequential)
        has_parameters = paths[name] in with_parameters
        described.append(ModuleInfo(name, type(module), parameters=has_parameters, container=is_container))
    return frozenset(paths[name] for name in choose_modules(rule, described))


def linen_scope(chosen: frozenset[Path]) -> contextlib.AbstractContextManager[None]:
    """Let calls of the chosen modules keep their inputs only."""
    if not chosen or _KEPT.get():
        return contextlib.nullcontext()
    # whose call is being rematerialised: `run` calls the module anew, which must then go through
    within: set[Path] = set()

    def intercept(next_function: Any, args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path not in chosen or path in within:
            return next_function(*args, **kwargs)
        arrays, rebuild = _split(args, kwargs)

        def run(module: Any, arrays: list[Any]) -> Any:
            args, kwargs = rebuild(arrays)
            within.add(path)
            try:
                return module(*args, **kwargs)
            finally:
                within.discard(path)

        return linen.remat(run)(context.module, arrays)

    return linen.intercept_methods(intercept)


def _split(args: Any, kwargs: Any) -> tuple[list[Any], Callable[[list[Any]], tuple[Any, Any]]]:
    """Return the arrays and modules among the arguments, and what puts others in their place."""

    def is_traced(leaf: object) -> bool:
        return isinstance(leaf, jax.Array | np.ndarray | nnx.Pytree | nnx.Variable)

    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=is_traced)
    # the rest stays as it is: a traced `train` could not be asked for its value
    places = [index for index, leaf in enumerate(leaves) if is_traced(leaf)]

    def rebuild(arrays: list[Any]) -> tuple[Any, Any]:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return jax.tree.unflatten(structure, filled)

    return [leaves[place] for place in places], rebuild
