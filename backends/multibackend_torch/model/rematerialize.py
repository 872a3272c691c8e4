"""Modules that recompute their activations in the backward pass, by `torch.utils.checkpoint`.

The class of a chosen module is replaced by a subclass whose `forward` runs under a checkpoint. So
names stay what they are, `copy.deepcopy` gives working copies, and `isinstance` still holds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from multibackend.experiment.rematerialization import ModuleInfo, Rematerialize, choose_modules

__all__ = ["kept_activations", "rematerialize", "without_rematerialization"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Kind = type[nn.Module]
Context = contextlib.AbstractContextManager[None]
_ORIGINALS: dict[Kind, Kind] = {}  # by the class that recomputes, the one that it stands for


def rematerialize(module: nn.Module, rule: Rematerialize) -> nn.Module:
    """Change the modules that `rule` chooses, in place; it is a `ConfigurationError` if there are none."""
    if rule:
        parts = dict(module.named_modules())
        for path in choose_modules(rule, [_describe(path, part) for path, part in parts.items()]):
            parts[path].__class__ = _rematerialized(type(parts[path]))
    return module


@contextlib.contextmanager
def kept_activations(module: nn.Module) -> Iterator[None]:
    """Let the chosen modules keep their activations after all, so that each is called once."""
    chosen = [(part, type(part)) for part in module.modules() if type(part) in _ORIGINALS]
    try:
        for part, kind in chosen:
            part.__class__ = _ORIGINALS[kind]
        yield
    finally:
        for part, kind in chosen:
            part.__class__ = kind


def without_rematerialization(module: nn.Module) -> None:
    """Give the chosen modules their own classes back, in place."""
    for part in module.modules():
        part.__class__ = _ORIGINALS.get(type(part), type(part))


def _describe(path: str, module: nn.Module) -> ModuleInfo:
    return ModuleInfo(
        path,
        type(module),
        parameters=next(module.parameters(), None) is not None,
        container=isinstance(module, _CONTAINERS),
        callable=not isinstance(module, nn.ModuleList | nn.ModuleDict),
    )


@functools.cache
def _rematerialized(kind: Kind) -> Kind:
    """Return a subclass of `kind` whose forward pass keeps its inputs only."""
    original = kind.forward

    @functools.wraps(original)  # whether the mode is passed is read from the signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):  # no backward pass will come
            return original(self, *args, **kwargs)
        run = functools.partial(original, self)
        if torch.compiler.is_compiling():  # which knows by itself what the first pass writes
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        before = _buffers(self)

        def contexts() -> tuple[Context, Context]:
            return contextlib.nullcontext(), _with_buffers(self, before)

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "forward": forward}
    rematerialized = type(kind.__name__, (kind,), names)
    _ORIGINALS[rematerialized] = kind
    return rematerialized


Buffers = list[tuple[nn.Module, str, torch.Tensor]]


def _buffers(module: nn.Module) -> Buffers:
    """Copy the buffers of a module, as the forward pass finds them."""
    copies: Buffers = []
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                copies.append((part, name, buffer.clone()))
    return copies


@contextlib.contextmanager
def _with_buffers(module: nn.Module, buffers: Buffers) -> Iterator[None]:
    """Let a second forward pass start from the buffers of the first, and drop what it does to them.

    So BatchNorm's statistics are updated once, and a layer whose buffers decide its
    output repeats it.
    """
    after_first_pass = [part._buffers[name] for part, name, _ in buffers]
    for part, name, before in buffers:
        part._buffers[name] = before
    try:
        yield
    finally:
        for (part, name, _), buffer in zip(buffers, after_first_pass, strict=True):
            part._buffers[name] = buffer
