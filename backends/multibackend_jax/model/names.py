"""Canonical names and layouts of Flax parameters.

Flax stores a Linear's kernel [in, out] and a Conv's [*spatial, in, out]; the canonical layout is torch's. The layer
that owns a leaf decides its layout, so that a three-dimensional kernel of an attention projection is not taken for a
one-dimensional convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import linen, nnx

from multibackend.errors import ConfigurationError
from multibackend.protocol import NativeArrays

__all__ = ["Layout", "canonical_names", "kind_of", "layout_of", "native_arrays"]

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_LAYER_MODULES = ("flax.nnx.nn.", "flax.linen.linear", "flax.linen.normalization", "flax.linen.attention")
_NORMS = (nnx.BatchNorm, linen.BatchNorm)
_CONVOLUTIONS = (nnx.Conv, linen.Conv)
_TRANSPOSED = (nnx.ConvTranspose, linen.ConvTranspose)
_GENERAL = (nnx.LinearGeneral, linen.DenseGeneral)


_KINDS = {
    "linear": (nnx.Linear, linen.Dense, *_GENERAL),
    "embedding": (nnx.Embed, linen.Embed),
    "convolution": (*_CONVOLUTIONS, *_TRANSPOSED),
    "normalisation": (
        *_NORMS,
        *(nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm),
        *(linen.LayerNorm, linen.GroupNorm, linen.RMSNorm),
    ),
}


def kind_of(owner: object) -> str:
    """The sort of Flax layer that an array belongs to; "" for a user's own module."""
    found = [kind for kind, layers in _KINDS.items() if isinstance(owner, layers)]
    return found[0] if found else ""


def canonical_names(paths: Sequence[Sequence[Any]], owners: Sequence[object]) -> list[str]:
    """The canonical names of leaves, for example ("layers", 0, "kernel") of a Linear → "layers.0.weight".

    Leaves of the user's own modules keep their names, and so does one whose canonical name is already taken.
    """
    names: list[str] = []
    for path, owner in zip(paths, owners, strict=True):
        *modules, leaf = (str(part) for part in path)
        table = _LEAVES if _is_flax_layer(owner) else {}
        if isinstance(owner, _NORMS) and leaf in _STATISTICS:
            table = _STATISTICS
        name = ".".join([*modules, table.get(leaf, leaf)])
        names.append(".".join([*modules, leaf]) if name in names else name)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigurationError(
            "Model", [f"two arrays of the flax model share a name: {', '.join(twice)}; rename one"]
        )
    return names


def _is_flax_layer(owner: object) -> bool:
    """Whether a module is one of Flax's own layers, or derives from one."""
    modules = (base.__module__ for base in type(owner).__mro__)
    return any(module.startswith(_LAYER_MODULES) for module in modules)


@dataclass(frozen=True)
class Layout:
    """How a native array becomes its canonical one: reshape to `merged`, permute by `axes`, flip the last axes.

    Attributes:
        native: the native shape.
        merged: the native shape with axes joined, for example [in, heads * dim].
        axes: the permutation of `merged` that gives the canonical array.
        flipped: how many trailing canonical axes are reversed (the spatial ones of a transposed convolution).
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
        """A native array (on the host or a device) as a canonical numpy array, a copy."""
        result = np.asarray(array).reshape(self.merged).transpose(self.axes)
        return np.array(self._flip(result), order="C")

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_canonical`."""
        return np.asarray(self._flip(array).transpose(np.argsort(self.axes)).reshape(self.native), order="C")

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array, tuple(range(array.ndim - self.flipped, array.ndim))) if self.flipped else array


def native_arrays(paths: Mapping[str, str], layouts: Mapping[str, Layout]) -> NativeArrays:
    """Dotted paths and native layouts of a Flax model, by canonical name."""
    names = {path: name for name, path in paths.items()}

    def to_native(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {paths[name]: layouts[name].from_canonical(array) for name, array in arrays.items()}

    def to_canonical(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        def moved(path: str, array: np.ndarray) -> np.ndarray:
            layout = layouts[names[path]] if path in names else None
            return array if layout is None or layout.native != array.shape else layout.to_canonical(array)

        return {names.get(path, path): moved(path, array) for path, array in arrays.items()}

    return NativeArrays(to_native, to_canonical)


def layout_of(leaf: str, shape: tuple[int, ...], owner: object) -> Layout:
    """The layout of the leaf called `leaf` ("kernel", "bias", ...) with a native shape, owned by a layer."""
    rank = len(shape)
    if isinstance(owner, _GENERAL):
        return _general_layout(leaf, shape, owner)
    if leaf != "kernel" or rank < 2 or not _is_flax_layer(owner):
        return Layout(shape, shape, tuple(range(rank)))
    spatial = tuple(range(rank - 2))
    if isinstance(owner, _TRANSPOSED):
        if owner.transpose_kernel:  # already [*spatial, out, in]: torch's, but for the order of axes
            return Layout(shape, shape, (rank - 1, rank - 2, *spatial))
        return Layout(shape, shape, (rank - 2, rank - 1, *spatial), flipped=rank - 2)
    if isinstance(owner, _CONVOLUTIONS) or rank == 2:
        return Layout(shape, shape, (rank - 1, rank - 2, *spatial))
    return Layout(shape, shape, tuple(range(rank)))


def _general_layout(leaf: str, shape: tuple[int, ...], owner: Any) -> Layout:
    """A projection over several axes, [in..., out...], as the Linear that it is: [out, in]."""
    outputs = owner.out_features if isinstance(owner, nnx.LinearGeneral) else owner.features
    kept = len(outputs) if isinstance(outputs, Sequence) else 1
    if leaf == "bias":
        return Layout(shape, (math.prod(shape),), (0,))
    split = len(shape) - kept
    return Layout(shape, (math.prod(shape[:split]), math.prod(shape[split:])), (1, 0))
