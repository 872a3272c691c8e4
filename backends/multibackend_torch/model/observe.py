"""What each module of a torch model is called with and returns, by hooks that are gone afterwards."""

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
    """Whether a leaf is an array."""
    return isinstance(leaf, torch.Tensor)


def host(tensor: torch.Tensor) -> np.ndarray:
    """A copy on the host; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


class Observer:
    """Records the calls of a module's submodules in the order in which they begin.

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
        """Before a module runs."""
        name = self._names[id(module)]
        call = self._calls[name] = self._calls.get(name, -1) + 1
        inputs = arrays_in((args, kwargs), is_tensor)
        if self._open:
            above = self._open[-1]
            self.layers[above] = dataclasses.replace(self.layers[above], leaf=False)
        own = [self._parameters.get(id(parameter)) for parameter in module._parameters.values()]
        self.layers.append(
            LayerCall(
                name,
                call,
                type(module).__name__,
                tuple(map(host, inputs)),
                (),
                leaf=True,
                settings=_settings(module),
                parameters=tuple(parameter for parameter in own if parameter is not None),
                depth=len(self._open),
            )
        )
        self._open.append(len(self.layers) - 1)
        wanted = self._forced.get((name, call), Forced()).inputs
        return None if wanted is None else _replaced((args, kwargs), inputs, wanted, f"the inputs of {name!r}")

    def leave(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """After it."""
        index = self._open.pop()
        call, found = self.layers[index], arrays_in(outputs, is_tensor)
        self.layers[index] = dataclasses.replace(call, outputs=tuple(map(host, found)))
        wanted = self._forced.get((call.name, call.call), Forced()).outputs
        return None if wanted is None else _replaced(outputs, found, wanted, f"the outputs of {call.name!r}")


@contextlib.contextmanager
def observing(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Where an observer sees every call of the module and of those below it."""
    handles = []
    try:
        for part in module.modules():
            handles.append(part.register_forward_pre_hook(observer.enter, with_kwargs=True))
            handles.append(part.register_forward_hook(observer.leave, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replaced(tree: Any, found: list[torch.Tensor], wanted: tuple[np.ndarray | None, ...], what: str) -> Any:
    """The tree with forced arrays as tensors like those that they replace."""
    new = [
        None if array is None else torch.from_numpy(np.array(array)).to(dtype=old.dtype, device=old.device)
        for old, array in zip(found, forced_arrays(found, wanted, what), strict=True)
    ]
    return with_arrays(tree, new, is_tensor)


def _settings(module: nn.Module) -> dict[str, Any]:
    """The hyperparameters; of a bias whether there is one."""
    settings = plain_settings({name: value for name, value in vars(module).items() if name != "training"})
    if "bias" in module._parameters:
        settings["bias"] = module._parameters["bias"] is not None
    return settings
