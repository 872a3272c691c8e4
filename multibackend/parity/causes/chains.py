"""What may happen to one array between two layers: an activation, pooling, a change of axes, a shift, a scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.convolutions import paddings, pool
from multibackend.parity.causes.functions import ACTIVATIONS, leaky_relu

__all__ = ["activated", "moves", "scales"]

Move = Callable[[Array], Array]

_WINDOWS = (
    (2, 2),
    (3, 2),
    (2, 1),
    (3, 1),
    (3, 3),
    (4, 4),
    (4, 2),
    (5, 2),
    (5, 5),
    (7, 7),
)  # sizes and strides of pooling


def activated(x: Array, name: str) -> Array:
    """An activation of `functions.ACTIVATIONS`, by name."""
    with np.errstate(over="ignore", invalid="ignore"):
        if name.startswith("leaky relu "):
            return leaky_relu(x, float(name.removeprefix("leaky relu ")))
        return ACTIVATIONS[name](x)


def scales(*sizes: int) -> dict[str, float]:
    """Factors that people put before an array, by name: 1, square roots of its sizes, halves, tenths, ..."""
    named = {"1": 1.0}
    for size in dict.fromkeys(size for size in sizes if size > 1):
        named |= {f"sqrt({size})": math.sqrt(size), f"1/sqrt({size})": 1 / math.sqrt(size)}
        named |= {str(size): float(size), f"1/{size}": 1 / size}
    for number in (2.0, 0.5, -1.0, 0.1, 10.0, 4.0, 0.25, 3.0, 1.5, 0.7, 0.8, 0.9, 1.1, 1.2, 5.0, 100.0, 0.01, 0.07):
        named.setdefault(f"{number:g}", number)
    root = 1 / math.sqrt(2)
    return {
        **named,
        "1/sqrt(2)": root,
        "sqrt(2)": math.sqrt(2),
        "255": 255.0,
        "1/255": 1 / 255,
        "20": 20.0,
        "0.05": 0.05,
    }


def moves(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[tuple[dict[str, object], Move]]:
    """Changes of an array's axes from one shape to another, each with its traits, the plainest first."""
    if math.prod(source) == math.prod(target):
        yield from _same_elements(source, target)
    yield from _reductions(source, target)
    if len(source) == 4:
        yield from _poolings(source, target)


def _same_elements(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[tuple[dict[str, object], Move]]:
    yield {}, lambda x: x.reshape(target)
    if len(source) in (3, 4) and len(target) <= len(source):
        words = "abcd"[: len(source)]
        for axes in itertools.permutations(range(1, len(source))):
            order = (0, *axes)
            if order == tuple(range(len(source))):
                continue
            if len(target) == len(source) and tuple(source[axis] for axis in order) != target:
                continue
            name = ", ".join(str(source[axis]) for axis in axes) + f" (axes {''.join(words[axis] for axis in axes)})"
            yield {"order of axes": name}, lambda x, order=order: x.transpose(order).reshape(target)
    if source == target and len(source) >= 2 and len(source) <= 3:
        for shift in (1, -1):
            yield {"positions": f"shifted by {shift:+d}"}, lambda x, shift=shift: _shifted(x, shift)
        yield {"positions": "reversed"}, lambda x: np.flip(x, 1)


def _shifted(x: Array, by: int) -> Array:
    moved = np.zeros_like(x)
    if by > 0:
        moved[:, by:] = x[:, :-by]
    else:
        moved[:, :by] = x[:, -by:]
    return moved


def _reductions(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[tuple[dict[str, object], Move]]:
    for count in (1, 2):
        for axes in itertools.combinations(range(1, len(source)), count):
            left = [size for axis, size in enumerate(source) if axis not in axes]
            if math.prod(left) != math.prod(target) or math.prod(source) == math.prod(target):
                continue
            of = "all positions" if len(source) != 4 or count == 2 else f"axis {axes[0]}"
            yield {"pooling": f"mean over {of}"}, lambda x, axes=axes: x.mean(axes).reshape(target)
            yield {"pooling": f"maximum over {of}"}, lambda x, axes=axes: x.max(axes).reshape(target)
            yield {"pooling": f"sum over {of}"}, lambda x, axes=axes: x.sum(axes).reshape(target)
            if count == 1:
                for word, index in (("first", 0), ("last", -1)):
                    yield (
                        {"pooling": f"the {word} position"},
                        lambda x, axis=axes[0], index=index: x.take(index, axis).reshape(target),
                    )


def _poolings(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[tuple[dict[str, object], Move]]:
    """Pooling over two axes, the channels being the second or the last; flattened in either order."""
    for first in (True, False):
        spatial, channels = (source[2:], source[1]) if first else (source[1:3], source[3])
        for kernel, stride in _WINDOWS:
            if kernel > min(spatial) + 1:
                continue
            for pads in paddings(spatial, (kernel, kernel), stride).values():
                out = tuple((s + sum(p) - kernel) // stride + 1 for s, p in zip(spatial, pads, strict=True))
                shapes = ((source[0], channels, *out), (source[0], *out, channels))
                if min(out) < 1 or math.prod(shapes[0]) != math.prod(target) or max(map(max, pads)) >= kernel:
                    continue
                if len(target) == 4 and target != shapes[not first]:
                    continue
                for kind in (
                    ("max", "average", "average of what is there") if any(map(any, pads)) else ("max", "average")
                ):
                    traits = {
                        "pooling": "max" if kind == "max" else "average",
                        "window": kernel,
                        "stride": stride,
                        "padding": pads[0] if len(set(pads)) == 1 else pads,
                        "padding counts": "no" if kind == "average of what is there" else "yes",
                    }
                    yield traits, _Pooling(kernel, stride, pads, kind, first, target)
                    if len(target) == 2:
                        turned = "channels last" if first else "channels first"
                        yield (
                            {**traits, "order of axes": turned},
                            _Pooling(kernel, stride, pads, kind, first, target, turned=True),
                        )


class _Pooling:
    def __init__(
        self,
        kernel: int,
        stride: int,
        pads: tuple[tuple[int, int], ...],
        kind: str,
        first: bool,
        target: tuple[int, ...],
        *,
        turned: bool = False,
    ) -> None:
        self._arguments = (kernel, stride, pads, kind)
        self._first, self._target, self._turned = first, target, turned

    def __call__(self, x: Array) -> Array:
        y = pool(x if self._first else np.moveaxis(x, -1, 1), *self._arguments)
        return (y if self._first != self._turned else np.moveaxis(y, 1, -1)).reshape(self._target)
