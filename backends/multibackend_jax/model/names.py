"""Canonical names and layouts of Flax parameters.

Flax stores a Linear's kernel [in, out] and a Conv's [*spatial, in, out]; the canonical layout is
torch's. The layer that owns a leaf decides its layout, so that a three-dimensional kernel of an
attention projection is not taken for a one-dimensional convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from multibackend.core.arrays import Arrays
from multibackend.errors import ConfigurationError
from multibackend.protocol import NativeArrays

__all__ = ["Layout", "Leaf", "canonical_names", "native_arrays"]

_WEIGHTS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
# a "kernel" of the user's own layer may mean anything: only Flax's layers are known
_LAYER_MODULES = ("flax.nnx.nn.", "flax.linen.linear", "flax.linen.normalization", "flax.linen.attention")

_BATCH_NORMS = (nnx.BatchNorm, linen.BatchNorm)
_OTHER_NORMS = (nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm, linen.LayerNorm, linen.GroupNorm, linen.RMSNorm)
_CONVOLUTIONS = (nnx.Conv, linen.Conv)
_TRANSPOSED = (nnx.ConvTranspose, linen.ConvTranspose)
_GENERAL = (nnx.LinearGeneral, linen.DenseGeneral)

_KINDS = {
    "linear": (nnx.Linear, linen.Dense, *_GENERAL),
    "embedding": (nnx.Embed, linen.Embed),
    "convolution": (*_CONVOLUTIONS, *_TRANSPOSED),
    "normalisation": (*_BATCH_NORMS, *_OTHER_NORMS),
}


@dataclass(frozen=True)
class Layout:
    """How a native array becomes its canonical one: reshape to `merged`, permute by `axes`, flip the last axes.

    Attributes:
        native: the native shape.
        merged: the native shape with axes joined, for example [in, heads * dim].
        axes: the permutation of `merged` that gives the canonical array.
        flipped: how many trailing canonical axes are reversed (the spatial ones of a transposed
            convolution).
    """

    native: tuple[int, ...]
    merged: tuple[int, ...]
    axes: tuple[int, ...]
    flipped: int = 0

    @property
    def canonical(self) -> tuple[int, ...]:
        """The canonical shape."""
        return tuple(self.merged[axis] for axis in self.axes)

    def to_canonical(self, array: Any) -> np.ndarray:
        """Copy a native array, on the host or a device, to a canonical numpy array."""
        permuted = np.asarray(array).reshape(self.merged).transpose(self.axes)
        return np.array(self._flip(permuted), order="C")

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Invert `to_canonical`."""
        permuted = self._flip(array).transpose(np.argsort(self.axes))
        return np.asarray(permuted.reshape(self.native), order="C")

    def _flip(self, array: np.ndarray) -> np.ndarray:
        if not self.flipped:
            return array
        return np.flip(array, tuple(range(array.ndim - self.flipped, array.ndim)))


@dataclass(frozen=True)
class Leaf:
    """An array of a Flax module, the path at which it is kept and the layer that owns it."""

    path: tuple[str, ...]
    array: jax.Array
    owner: object

    @property
    def kind(self) -> str:
        """The sort of Flax layer that the array belongs to; "" for a user's own module."""
        for kind, layers in _KINDS.items():
            if isinstance(self.owner, layers):
                return kind
        return ""

    @property
    def layout(self) -> Layout:
        """How the array becomes canonical, told by its name ("kernel", "bias", ...) and its owner."""
        shape = self.array.shape
        rank = len(shape)
        if isinstance(self.owner, _GENERAL):
            return _general_layout(self.path[-1], shape, self.owner)
        unchanged = Layout(shape, shape, tuple(range(rank)))
        if self.path[-1] != "kernel" or rank < 2 or not _is_flax_layer(self.owner):
            return unchanged
        spatial = tuple(range(rank - 2))
        swapped = Layout(shape, shape, (rank - 1, rank - 2, *spatial))
        if isinstance(self.owner, _TRANSPOSED):
            if self.owner.transpose_kernel:  # already [*spatial, out, in]: torch's, but for the order of axes
                return swapped
            # torch's layer is the gradient of a convolution: its kernel is mirrored in space
            return Layout(shape, shape, (rank - 2, rank - 1, *spatial), flipped=rank - 2)
        if isinstance(self.owner, _CONVOLUTIONS) or rank == 2:
            return swapped
        return unchanged


def _general_layout(leaf: str, shape: tuple[int, ...], owner: Any) -> Layout:
    """Treat a projection over several axes, [in..., out...], as a Linear: [out, in]."""
    if leaf == "bias":  # [out...]
        return Layout(shape, (math.prod(shape),), (0,))
    outputs = owner.out_features if isinstance(owner, nnx.LinearGeneral) else owner.features
    output_axes = len(outputs) if isinstance(outputs, Sequence) else 1
    split = len(shape) - output_axes
    return Layout(shape, (math.prod(shape[:split]), math.prod(shape[split:])), (1, 0))


def canonical_names(paths: Sequence[Sequence[Any]], owners: Sequence[object]) -> list[str]:
    """Return the canonical names of leaves, for example ("layers", 0, "kernel") of a Linear → "layers.0.weight".

    Leaves of the user's own modules keep their names, and so does one whose canonical name
    is already taken.
    """
    names: list[str] = []
    for path, owner in zip(paths, owners, strict=True):
        *modules, leaf = map(str, path)
        table = _WEIGHTS if _is_flax_layer(owner) else {}
        if isinstance(owner, _BATCH_NORMS) and leaf in _STATISTICS:
            table = _STATISTICS
        name = ".".join([*modules, table.get(leaf, leaf)])
        if name in names:
            name = ".".join([*modules, leaf])
        names.append(name)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ConfigurationError(
            "Model", [f"two arrays of the flax model share a name: {', '.join(duplicates)}; rename one"]
        )
    return names


def _is_flax_layer(owner: object) -> bool:
    """Whether a module is one of Flax's own layers, or derives from one."""
    # by the module that defines it: a list of classes would lack those of the next Flax
    modules = (base.__module__ for base in type(owner).__mro__)
    return any(module.startswith(_LAYER_MODULES) for module in modules)


def native_arrays(paths: Mapping[str, str], layouts: Mapping[str, Layout]) -> NativeArrays:
    """Translate arrays by the dotted paths and the layouts of a Flax model, both by canonical name."""
    names = {path: name for name, path in paths.items()}

    def to_native(arrays: Arrays) -> dict[str, np.ndarray]:
        return {paths[name]: layouts[name].from_canonical(array) for name, array in arrays.items()}

    def to_canonical(arrays: Arrays) -> dict[str, np.ndarray]:
        canonical = {}
        for path, array in arrays.items():
            if path not in names:
                canonical[path] = array
                continue
            layout = layouts[names[path]]
            # an array of another shape stays as it is: that shape is then reported
            fits = layout.native == array.shape
            canonical[names[path]] = layout.to_canonical(array) if fits else array
        return canonical

    return NativeArrays(to_native, to_canonical)
