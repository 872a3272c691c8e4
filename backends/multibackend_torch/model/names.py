"""Canonical names of a torch module: its own, because the canonical layout is torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from multibackend.core.arrays import Arrays
from multibackend.protocol import NativeArrays

__all__ = [
    "exchanged",
    "kinds_of",
    "load_tensors",
    "named_parameters",
    "named_state",
    "native_arrays",
    "to_host",
    "unchanged",
    "with_tensors_of",
]

# JAX's backend has the same words for Flax's layers; arrays are paired where they are equal
_KINDS = {
    "linear": (nn.Linear,),
    "embedding": (nn.Embedding,),
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "normalisation": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    "attention": (nn.MultiheadAttention,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
}


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, a shared one once, under its first name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def named_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what else a state_dict has: persistent buffers, and parameters that are frozen."""
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    tensors = module.state_dict(keep_vars=True)  # without it, detached tensors with other ids
    return {name: tensor.detach() for name, tensor in tensors.items() if id(tensor) not in trained}


def kinds_of(module: nn.Module) -> dict[str, str]:
    """Return the kind of layer of each array, in order of definition; "" in a user's own module."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    names += module.state_dict()
    return {name: _kind(module.get_submodule(name.rpartition(".")[0])) for name in names}


def _kind(layer: nn.Module) -> str:
    for kind, layers in _KINDS.items():
        if isinstance(layer, layers):
            return kind
    return ""


def native_arrays(module: nn.Module) -> NativeArrays:
    """Translate a `state_dict`'s names, of which a tied weight has several and one canonical one."""
    tensors = module.state_dict(keep_vars=True)
    first_names = {id(tensor): name for name, tensor in reversed(tensors.items())}
    # also where a hook of the module renames what is in its state_dict
    first_names |= {id(p): name for name, p in module.named_parameters()}
    canonical = {name: first_names[id(tensor)] for name, tensor in tensors.items()}

    def to_native(arrays: Arrays) -> dict[str, np.ndarray]:
        return {name: arrays[source] for name, source in canonical.items() if source in arrays}

    def to_canonical(arrays: Arrays) -> dict[str, np.ndarray]:
        return {canonical.get(name, name): array for name, array in arrays.items()}

    return NativeArrays(to_native, to_canonical)


def to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors to the host."""
    # on a CPU `numpy` is a view of memory that training goes on to change in place, hence the copy
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


@torch.no_grad()
def load_tensors(tensors: Mapping[str, torch.Tensor], arrays: Arrays) -> None:
    """Overwrite tensors in place with host arrays of the same names."""
    for name, array in arrays.items():
        tensors[name].copy_(torch.from_numpy(np.asarray(array, order="C")))


@torch.no_grad()
def with_tensors_of(module: nn.Module, source: nn.Module) -> nn.Module:
    """Give a module the parameters and buffers of another one of its kind, copied."""
    parameters = dict(module.named_parameters())
    for name, parameter in source.named_parameters():
        parameters[name].copy_(parameter)
    # put in place rather than overwritten: a cache may have grown since the module was built
    copies: dict[int, torch.Tensor] = {}
    for name, buffer in source.named_buffers(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        copies.setdefault(id(buffer), buffer.clone())
        module.get_submodule(path)._buffers[leaf] = copies[id(buffer)]
    return module


@contextlib.contextmanager
def exchanged(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let parameters hold other tensors of the same names, uncopied; then give them theirs back."""
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


@contextlib.contextmanager
def unchanged(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Undo what a module writes into its buffers, as some do even in evaluation mode."""
    before = [(tensor, tensor.clone(), tensor._version) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, old, version in before:
            if tensor._version != version:  # counts writes, of which few modules make any
                tensor.copy_(old)
