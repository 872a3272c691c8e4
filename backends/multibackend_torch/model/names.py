"""Canonical names of a torch module: its own, because the canonical layout is torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

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
]

_CONVOLUTIONS = (
    *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
    *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
)
_NORMS = (
    *(torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d),
    *(torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm),
)
_KINDS = {
    "linear": (torch.nn.Linear,),
    "embedding": (torch.nn.Embedding,),
    "convolution": _CONVOLUTIONS,
    "normalisation": _NORMS,
    "attention": (torch.nn.MultiheadAttention,),
    "recurrent": (torch.nn.RNNBase, torch.nn.RNNCellBase),
}


def named_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name; one that is shared appears once, under its first name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def named_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a state_dict holds besides trained parameters: persistent buffers, and parameters that are frozen."""
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    held = module.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in held.items() if id(tensor) not in trained}


def kinds_of(module: torch.nn.Module) -> dict[str, str]:
    """For each array by name, in order of definition, the sort of torch layer it belongs to; "" for a user's module."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)] + list(module.state_dict())
    return {name: _kind(module.get_submodule(name.rpartition(".")[0])) for name in names}


def _kind(layer: torch.nn.Module) -> str:
    own = any(base.__module__.startswith("torch.nn.modules") for base in type(layer).__mro__[:-2])
    found = [kind for kind, layers in _KINDS.items() if isinstance(layer, layers)]
    return found[0] if own and found else ""


def native_arrays(module: torch.nn.Module) -> NativeArrays:
    """A `state_dict`'s names; a tied weight has one canonical name and several in a `state_dict`."""
    first = {id(tensor): name for name, tensor in reversed(module.state_dict(keep_vars=True).items())}
    first.update({id(p): name for name, p in module.named_parameters()})
    held = {name: first[id(tensor)] for name, tensor in module.state_dict(keep_vars=True).items()}

    def to_native(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: arrays[canonical] for name, canonical in held.items() if canonical in arrays}

    def to_canonical(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {held.get(name, name): array for name, array in arrays.items()}

    return NativeArrays(to_native, to_canonical)


def to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies on the host."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


@torch.no_grad()
def load_tensors(tensors: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    """Overwrite tensors in place with host arrays of the same names."""
    for name, array in arrays.items():
        tensors[name].copy_(torch.from_numpy(np.asarray(array, order="C")))


@contextlib.contextmanager
def exchanged(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Where parameters hold other tensors of the same names; nothing is copied, and their own come back."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


@contextlib.contextmanager
def unchanged(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Where a module may write into its buffers, even in evaluation mode, without effect."""
    before = [(tensor, tensor.clone(), tensor._version) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, old, version in before:
            if tensor._version != version:
                tensor.copy_(old)
