"""What each module of a torch model is called with and returns, by hooks removed afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from multibackend.protocol.tracing import Forced, LayerCall, arrays_in, forced_arrays, plain_settings, with_arrays

__all__ = ["Observer", "host", "is_tensor", "observing"]


def is_tensor(leaf: object) -> bool:
    """Tell whether a leaf is an array."""
    return isinstance(leaf, torch.Tensor)


def host(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to the host; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.numpy())


class Observer:
    """Record the calls of a module's submodules in the order in which they begin.

    Args:
        module: the whole model.
        parameters: its parameters by canonical name.
        forced: by (layer name, call), what to put in place of inputs and outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        forced: Mapping[tuple[str, int], Forced] | None = None,
    ) -> None:
        self.layers: list[LayerCall] = []
        self._names = {id(part): name for name, part in module.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in parameters.items()}
        self._forced = forced or {}
        self._calls: dict[str, int] = {}
        self._open: list[int] = []  # indices of the calls that have not returned

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Record a call that begins, and return its forced inputs: a forward pre-hook."""
        name = self._names[id(module)]
        call = self._calls.get(name, -1) + 1
        self._calls[name] = call
        inputs = arrays_in((args, kwargs), is_tensor)
        if self._open:
            caller = self._open[-1]
            self.layers[caller] = dataclasses.replace(self.layers[caller], leaf=False)
        ids = [id(parameter) for parameter in module._parameters.values()]  # None's, of a bias switched off
        parameters = tuple(self._parameters[key] for key in ids if key in self._parameters)
        self.layers.append(
            LayerCall(
                name,
                call,
                type(module).__name__,
                tuple(map(host, inputs)),
                (),
                leaf=True,
                settings=_settings(module),
                parameters=parameters,
                depth=len(self._open),
            )
        )
        self._open.append(len(self.layers) - 1)
        forced = self._forced.get((name, call), Forced()).inputs
        if forced is None:
            return None
        return _with_forced((args, kwargs), inputs, forced, f"the inputs of {name!r}")

    def leave(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """Add its outputs to a call, and return its forced outputs: a forward hook."""
        index = self._open.pop()
        call = self.layers[index]
        tensors = arrays_in(outputs, is_tensor)
        self.layers[index] = dataclasses.replace(call, outputs=tuple(map(host, tensors)))
        forced = self._forced.get((call.name, call.call), Forced()).outputs
        if forced is None:
            return None
        return _with_forced(outputs, tensors, forced, f"the outputs of {call.name!r}")


@contextlib.contextmanager
def observing(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Show an observer every call of the module and of those below it."""
    with contextlib.ExitStack() as hooks:  # torch's handles remove their hook as they are left
        for part in module.modules():
            hooks.enter_context(part.register_forward_pre_hook(observer.enter, with_kwargs=True))
            hooks.enter_context(part.register_forward_hook(observer.leave, with_kwargs=True))
        yield


def _with_forced(tree: Any, tensors: list[torch.Tensor], forced: tuple[np.ndarray | None, ...], what: str) -> Any:
    """Put forced arrays, as tensors like those that they replace, into a tree."""
    replacements: list[torch.Tensor | None] = []
    for tensor, array in zip(tensors, forced_arrays(tensors, forced, what), strict=True):
        replacements.append(None if array is None else torch.from_numpy(np.array(array)).to(tensor))
    return with_arrays(tree, replacements, is_tensor)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's hyperparameters; of a bias whether there is one."""
    settings = plain_settings(vars(module))
    settings.pop("training", None)
    if "bias" in module._parameters:
        settings["bias"] = module._parameters["bias"] is not None
    return settings
