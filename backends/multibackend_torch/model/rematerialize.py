"""Modules that recompute their activations in the backward pass, by `torch.utils.checkpoint`.

The class of a chosen module is replaced by a subclass whose `forward` runs under a checkpoint. So names stay what
they are, `copy.deepcopy` gives working copies, and `isinstance` still holds.
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

__all__ = ["kept_activations", "rematerialize"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ORIGINAL = "_class_that_keeps_activations"


def rematerialize(module: nn.Module, rule: Rematerialize) -> nn.Module:
    """`module`, the modules that `rule` chooses changed in place; raises `ConfigurationError` where it chooses none."""
    named = dict(module.named_modules())
    for path in choose_modules(rule, [_describe(path, part) for path, part in named.items()]) if rule else ():
        named[path].__class__ = _rematerialized(type(named[path]))
    return module


@contextlib.contextmanager
def kept_activations(module: nn.Module) -> Iterator[None]:
    """Where the chosen modules keep their activations after all, so that each is called once."""
    chosen = [(part, type(part)) for part in module.modules() if hasattr(type(part), _ORIGINAL)]
    try:
        for part, kind in chosen:
            part.__class__ = getattr(kind, _ORIGINAL)
        yield
    finally:
        for part, kind in chosen:
            part.__class__ = kind


def _describe(path: str, module: nn.Module) -> ModuleInfo:
    return ModuleInfo(
        path,
        type(module),
        parameters=next(module.parameters(), None) is not None,
        container=isinstance(module, _CONTAINERS),
        callable=not isinstance(module, nn.ModuleList | nn.ModuleDict),
    )


@functools.cache
def _rematerialized(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind` whose forward pass keeps its inputs only."""
    original = kind.forward

    @functools.wraps(original)  # the mode is passed where the signature asks for it, so it must stay
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return original(self, *args, **kwargs)
        run = functools.partial(original, self)
        if torch.compiler.is_compiling():  # the compiler knows which writes to buffers belong to the first pass
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        before = _buffers(self)

        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), _with_buffers(self, before)

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, _ORIGINAL: kind}
    return type(kind.__name__, (kind,), {"forward": forward, **names})


Buffers = list[tuple[nn.Module, str, torch.Tensor]]


def _buffers(module: nn.Module) -> Buffers:
    """Copies of the buffers of a module, as the forward pass finds them."""
    return [
        (part, name, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]


@contextlib.contextmanager
def _with_buffers(module: nn.Module, buffers: Buffers) -> Iterator[None]:
    """Where the second forward pass runs: it starts from the buffers of the first, and what it does to them is
    dropped. So BatchNorm's statistics are updated once, and a layer whose buffers decide its output repeats itself.
    """
    kept = [part._buffers[name] for part, name, _ in buffers]
    for part, name, before in buffers:
        part._buffers[name] = before
    try:
        yield
    finally:
        for (part, name, _), buffer in zip(buffers, kept, strict=True):
            part._buffers[name] = buffer
