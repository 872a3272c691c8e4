"""Convolutions and pooling in numpy: stride, padding, dilation, flipped kernels, what an average counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formats import rounded
from multibackend.parity.causes.laws import Law
from multibackend.parity.causes.sides import Side

__all__ = ["convolution_laws", "paddings", "pool", "windows_of"]

Pads = tuple[tuple[int, int], ...]


def windows_of(x: Array, kernel: tuple[int, ...], stride: int, pads: Pads, dilation: int = 1, fill: float = 0) -> Array:
    """The patches of x [n, c, *spatial]: [n, c, *out, *kernel]."""
    x = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=fill)
    reach = tuple(dilation * (k - 1) + 1 for k in kernel)
    spatial = tuple(range(2, x.ndim))
    patches = np.lib.stride_tricks.sliding_window_view(x, reach, axis=spatial)
    steps = (slice(None), slice(None), *[slice(None, None, stride)] * len(kernel))
    return patches[(*steps, *[slice(None, None, dilation)] * len(kernel))]


def paddings(spatial: tuple[int, ...], kernel: tuple[int, ...], stride: int, dilation: int = 1) -> dict[str, Pads]:
    """The usual ones by name: SAME puts the odd row at the end, explicit padding pads both sides alike.

    >>> paddings((8,), (3,), 2)["SAME"]
    ((0, 1),)
    """
    named: dict[str, Pads] = {}
    reach = [dilation * (k - 1) + 1 for k in kernel]
    same = []
    for size, r in zip(spatial, reach, strict=True):
        total = max((-(-size // stride) - 1) * stride + r - size, 0)
        same.append((total // 2, total - total // 2))
    for width in range(max(reach)):
        named[f"{width} on each side"] = tuple((width, width) for _ in spatial)
    halves = tuple(((r - 1) // 2, (r - 1) // 2) for r in reach)
    named.setdefault("half the kernel on each side", halves)
    named["SAME"] = tuple(same)
    named["SAME, the odd row first"] = tuple((high, low) for low, high in same)
    named["before only"] = tuple((r - 1, 0) for r in reach)
    unique: dict[Pads, str] = {}
    for name, pads in named.items():
        unique.setdefault(pads, name)
    return {name: pads for pads, name in unique.items()}


def convolution_laws(side: Side, partner: Side | None = None) -> list[Law]:
    """y = sum over patches of w * x + b: kernel as it is, flipped, or with its two axes exchanged.

    Args:
        side: the layer.
        partner: whose output may have another shape, which is then tried here too.
    """
    x, target, weight = side.input, side.output, side.own("weight")
    if x is None or target is None or weight is None or weight.ndim < 3 or x.ndim != weight.ndim:
        return []
    bias, found = side.own("bias"), []
    biases = {"added": bias, "left out": None} if bias is not None else {"left out": None}
    for first, image in _channels_first(x, weight):
        shapes = _spatial(target, partner)
        for stride, pads, dilation in _geometries(image.shape[2:], weight.shape[2:], shapes):
            turns = ("as it is", "flipped", "axes exchanged") if weight.ndim == 4 else ("as it is", "flipped")
            for turn, (way, added), digits in itertools.product(turns, biases.items(), ("all", "tf32", "bf16")):
                if (turn != "as it is") + (way == "left out" and bias is not None) + (digits != "all") > 1:
                    continue
                traits = {
                    "dilation": dilation,
                    "stride": stride,
                    "padding": pads[0] if len(set(pads)) == 1 else pads,
                    "kernel": turn,
                    "bias": way,
                    "digits of the factors": digits,
                }
                compute = _Convolution(image, weight, added, (stride, pads, dilation), turn, digits, first)
                found.append(Law("convolution", traits, compute, 0.0 if digits == "all" else 2**-21))
    return found


class _Convolution:
    def __init__(
        self, x: Array, w: Array, b: Array | None, how: tuple[int, Pads, int], turn: str, digits: str, first: bool
    ) -> None:
        self._arguments = (x, w, b, how, turn, digits, first)

    def __call__(self) -> Array | None:
        x, w, b, (stride, pads, dilation), turn, digits, first = self._arguments
        rank = w.ndim - 2
        if turn == "flipped":
            w = np.flip(w, tuple(range(2, w.ndim)))
        elif turn == "axes exchanged":
            w = w.swapaxes(2, 3)
        if digits != "all":
            x, w = rounded(x, digits), rounded(w, digits)
        groups = x.shape[1] // w.shape[1]
        if x.shape[1] % w.shape[1] or w.shape[0] % groups:
            return None
        try:
            patches = windows_of(x, w.shape[2:], stride, pads, dilation)
        except ValueError:  # the kernel reaches beyond the padded image
            return None
        axes = tuple(range(2 + rank, 2 + 2 * rank))
        parts = []
        for group in range(groups):
            part = patches[:, group * w.shape[1] : (group + 1) * w.shape[1]]
            size = w.shape[0] // groups
            kernel = w[group * size : (group + 1) * size]
            parts.append(np.tensordot(part, kernel, ((1, *axes), tuple(range(1, w.ndim)))))
        y = np.moveaxis(np.concatenate(parts, -1), -1, 1)
        y = y if b is None else y + b.reshape(1, -1, *[1] * rank)
        return y if first else np.moveaxis(y, 1, -1)


def pool(x: Array, kernel: int, stride: int, pads: Pads, kind: str) -> Array:
    """Pooling of x [n, c, *spatial]: "max", "average" (padding counts as zeros), "average of what is there"."""
    size = (kernel,) * (x.ndim - 2)
    axes = tuple(range(-len(size), 0))
    if kind == "max":
        return windows_of(x, size, stride, pads, fill=-np.inf).max(axes)
    total = windows_of(x, size, stride, pads).sum(axes)
    if kind == "average":
        return total / kernel ** len(size)
    return total / windows_of(np.ones_like(x), size, stride, pads).sum(axes)


def _spatial(target: Array, partner: Side | None) -> set[tuple[int, ...]]:
    """The spatial shapes that an output may have, the channels being its second axis or its last."""
    outputs = [target, *([] if partner is None or partner.output is None else [partner.output])]
    return {shape for output in outputs for shape in (output.shape[2:], output.shape[1:-1])}


def _first(x: Array) -> Array:
    return np.moveaxis(x, -1, 1)


def _channels_first(x: Array, weight: Array) -> Iterator[tuple[bool, Array]]:
    """Whether the channels are the second axis, and x with them there; both ways where shapes do not tell."""
    if x.shape[1] % weight.shape[1] == 0:
        yield True, x
    if x.shape[-1] % weight.shape[1] == 0:
        yield False, _first(x)


def _geometries(
    spatial: tuple[int, ...], kernel: tuple[int, ...], shapes: set[tuple[int, ...]]
) -> Iterator[tuple[int, Pads, int]]:
    """Strides, paddings and dilations that give one of some shapes."""
    for stride, dilation in itertools.product((1, 2, 3, 4, 8, 16), (1, 2, 3)):
        for pads in paddings(spatial, kernel, stride, dilation).values():
            reach = [dilation * (k - 1) + 1 for k in kernel]
            sizes = [(s + sum(p) - r) // stride + 1 for s, p, r in zip(spatial, pads, reach, strict=True)]
            if tuple(sizes) in shapes:
                yield stride, pads, dilation
