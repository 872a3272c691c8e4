"""Convolutions and pooling in numpy: stride, padding, dilation, kernels, what averages count."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formats import rounded
from multibackend.parity.causes.formulas import Formula
from multibackend.parity.causes.linear import SLACKS, biases_of
from multibackend.parity.causes.recorded_layers import RecordedLayer

__all__ = ["Pads", "convolution_formulas", "out_sizes", "paddings", "pool", "shown_pads"]

Pads = tuple[tuple[int, int], ...]


Shape = tuple[int, ...]


def _windows(x: Array, kernel: Shape, stride: int, pads: Pads, dilation: int = 1, fill: float = 0) -> Array:
    """The patches of x [n, c, *spatial]: [n, c, *out, *kernel]."""
    x = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=fill)
    reach = tuple(dilation * (size - 1) + 1 for size in kernel)
    patches = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    strides = [slice(None, None, stride)] * len(kernel)
    dilations = [slice(None, None, dilation)] * len(kernel)
    return patches[(slice(None), slice(None), *strides, *dilations)]


def out_sizes(spatial: Shape, reach: Shape, stride: int, pads: Pads) -> Shape:
    """How many windows fit along each axis.

    >>> out_sizes((8, 8), (3, 3), 2, ((0, 1), (1, 1)))
    (4, 4)
    """
    sizes = []
    for size, window, pad in zip(spatial, reach, pads, strict=True):
        sizes.append((size + sum(pad) - window) // stride + 1)
    return tuple(sizes)


def shown_pads(pads: Pads) -> tuple[int, int] | Pads:
    """As a reader expects them: once where they are the same along every axis."""
    if len(set(pads)) == 1:
        return pads[0]
    return pads


def paddings(spatial: Shape, kernel: Shape, stride: int, dilation: int = 1) -> dict[str, Pads]:
    """The usual ones by name: SAME puts the odd row at the end, others pad both sides alike.

    >>> paddings((8,), (3,), 2)["SAME"]
    ((0, 1),)
    """
    reach = [dilation * (size - 1) + 1 for size in kernel]
    same = []
    for size, window in zip(spatial, reach, strict=True):
        # as TensorFlow defined SAME and JAX took it over: ceil(size / stride) windows
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        same.append((total // 2, total - total // 2))
    named: dict[str, Pads] = {}
    for width in range(max(reach)):
        named[f"{width} on each side"] = ((width, width),) * len(spatial)
    named["half the kernel on each side"] = tuple(((r - 1) // 2, (r - 1) // 2) for r in reach)
    named["SAME"] = tuple(same)
    named["SAME, the odd row first"] = tuple((high, low) for low, high in same)
    named["before only"] = tuple((window - 1, 0) for window in reach)
    # what is the same padding under two names is tried once, under the first
    unique: dict[Pads, str] = {}
    for name, pads in named.items():
        unique.setdefault(pads, name)
    return {name: pads for pads, name in unique.items()}


@dataclass(frozen=True)
class _Geometry:
    """How the windows of a convolution lie."""

    stride: int
    pads: Pads
    dilation: int


def convolution_formulas(side: RecordedLayer, partner: RecordedLayer | None = None) -> list[Formula]:
    """y = sum over patches of w * x + b: kernel as it is, flipped, or with its two axes exchanged.

    Args:
        side: the layer.
        partner: whose output may have another shape, which is then tried here too.
    """
    x = side.input
    target = side.output
    weight = side.own("weight")
    if x is None or target is None or weight is None or weight.ndim < 3:
        return []
    if x.ndim != weight.ndim or x.size == 0 or weight.size == 0:
        return []
    biases = biases_of(side)
    usual = next(iter(biases))
    # two of these mistakes in one layer are not looked for: the list would be three times as long
    choices = [("as it is", usual, digits) for digits in ("all", "tf32", "bf16")]
    choices += [("as it is", bias, "all") for bias in list(biases)[1:]]
    choices.append(("flipped", usual, "all"))
    if weight.ndim == 4:
        choices.append(("axes exchanged", usual, "all"))
    shapes = _spatial_shapes(target, partner)
    formulas = []
    for channels, image in _images(x, weight):
        for geometry in _geometries(image.shape[2:], weight.shape[2:], shapes):
            for turn, bias, digits in choices:
                traits = {
                    "dilation": geometry.dilation,
                    "stride": geometry.stride,
                    "padding": shown_pads(geometry.pads),
                    "kernel": turn,
                    "bias": bias,
                    "digits of the factors": digits,
                }
                added = biases[bias]
                compute = partial(_convolved, image, weight, added, geometry, turn, digits, channels)
                formulas.append(Formula("convolution", traits, compute, SLACKS[digits]))
    return formulas


def _convolved(
    x: Array, w: Array, b: Array | None, geometry: _Geometry, turn: str, digits: str, channels: int
) -> Array | None:
    """The convolution of x [n, c, *spatial] with w [out, in / groups, *kernel]."""
    rank = w.ndim - 2
    if turn == "flipped":
        w = np.flip(w, tuple(range(2, w.ndim)))
    elif turn == "axes exchanged":
        w = w.swapaxes(2, 3)
    x = rounded(x, digits)
    w = rounded(w, digits)
    groups = x.shape[1] // w.shape[1]
    if x.shape[1] % w.shape[1] or w.shape[0] % groups:
        return None
    # a kernel beyond the padded image is a ValueError of numpy's: the formula does not apply
    patches = _windows(x, w.shape[2:], geometry.stride, geometry.pads, geometry.dilation)
    kernel_axes = tuple(range(2 + rank, 2 + 2 * rank))
    parts = []
    for inputs, kernel in zip(np.split(patches, groups, 1), np.split(w, groups), strict=True):
        parts.append(np.tensordot(inputs, kernel, ((1, *kernel_axes), tuple(range(1, w.ndim)))))
    y = np.moveaxis(np.concatenate(parts, -1), -1, 1)
    if b is not None:
        y = y + b.reshape(1, -1, *[1] * rank)
    return np.moveaxis(y, 1, channels)


def pool(x: Array, kernel: int, stride: int, pads: Pads, kind: str) -> Array:
    """Pooling of x [n, c, *spatial]: "max", "average" with padding, "average of what is there"."""
    size = (kernel,) * (x.ndim - 2)
    axes = tuple(range(-len(size), 0))
    if kind == "max":
        return _windows(x, size, stride, pads, fill=-np.inf).max(axes)
    # padding adds 0 to a sum; whether it counts is where the frameworks' averages differ
    total = _windows(x, size, stride, pads).sum(axes)
    if kind == "average":
        return total / kernel ** len(size)
    return total / _windows(np.ones_like(x), size, stride, pads).sum(axes)


def _spatial_shapes(target: Array, partner: RecordedLayer | None) -> set[Shape]:
    """The spatial shapes that an output may have, its channels second or last."""
    shapes = {target.shape[2:], target.shape[1:-1]}
    if partner is not None and partner.output is not None:
        shapes |= {partner.output.shape[2:], partner.output.shape[1:-1]}
    return shapes


def _images(x: Array, weight: Array) -> Iterator[tuple[int, Array]]:
    """The axis of the channels, and x with them second; both ways where shapes do not tell."""
    for channels in (1, x.ndim - 1):
        # a multiple of the weight's channels: the others belong to other groups
        if x.shape[channels] % weight.shape[1] == 0:
            yield channels, np.moveaxis(x, channels, 1)


def _geometries(spatial: Shape, kernel: Shape, shapes: set[Shape]) -> Iterator[_Geometry]:
    """Strides, paddings and dilations that give one of some shapes."""
    for stride, dilation in itertools.product((1, 2, 3, 4, 8, 16), (1, 2, 3)):
        reach = tuple(dilation * (size - 1) + 1 for size in kernel)
        for pads in paddings(spatial, kernel, stride, dilation).values():
            if out_sizes(spatial, reach, stride, pads) in shapes:
                yield _Geometry(stride, pads, dilation)
