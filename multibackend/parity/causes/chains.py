"""What may happen to one array between two layers: an activation, pooling, other axes, a shift, a scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.convolutions import Pads, out_sizes, paddings, pool, shown_pads
from multibackend.parity.causes.functions import ACTIVATIONS, leaky_relu

__all__ = ["Move", "activated", "moves", "scales"]

Shape = tuple[int, ...]
Move = tuple[dict[str, object], Callable[[Array], Array]]
"""A change of an array's axes: its traits, and the function."""

# Sizes and strides of pooling.
_WINDOWS = ((2, 2), (3, 2), (2, 1), (3, 1), (3, 3), (4, 4), (4, 2), (5, 2), (5, 5), (7, 7))
# Of each kind of pooling, what it is called, and whether padding counts in it.
_KINDS = {
    "max": ("max", "yes"),
    "average": ("average", "yes"),
    "average of what is there": ("average", "no"),
}
# Numbers that are no size of an array and stand before one: halves, tenths, temperatures, ...
_NUMBERS = (2.0, 0.5, -1.0, 0.1, 10.0, 4.0, 0.25, 3.0, 1.5, 0.7, 0.8, 0.9, 1.1, 1.2, 5.0, 100.0, 0.01, 0.07)


def activated(x: Array, name: str) -> Array:
    """An activation of `functions.ACTIVATIONS`, by name; a leaky relu of any slope."""
    with np.errstate(over="ignore", invalid="ignore"):
        if name.startswith("leaky relu "):
            return leaky_relu(x, float(name.removeprefix("leaky relu ")))
        return ACTIVATIONS[name](x)


def scales(*sizes: int) -> dict[str, float]:
    """Factors that people put before an array, by name: 1, roots of its sizes, halves, tenths, ..."""
    named = {"1": 1.0}
    for size in dict.fromkeys(sizes):
        if size > 1:
            root = math.sqrt(size)
            named |= {f"sqrt({size})": root, f"1/sqrt({size})": 1 / root}
            named |= {str(size): float(size), f"1/{size}": 1 / size}
    for number in _NUMBERS:
        named.setdefault(f"{number:g}", number)
    named |= {"1/sqrt(2)": 1 / math.sqrt(2), "sqrt(2)": math.sqrt(2)}
    named |= {"255": 255.0, "1/255": 1 / 255, "20": 20.0, "0.05": 0.05}
    return named


def moves(source: Shape, target: Shape) -> Iterator[Move]:
    """Changes of an array's axes from one shape to another, with their traits, plainest first."""
    if math.prod(source) == math.prod(target):
        yield from _same_elements(source, target)
    else:
        yield from _reductions(source, target)
    if len(source) == 4:
        yield from _poolings(source, target)


def _same_elements(source: Shape, target: Shape) -> Iterator[Move]:
    yield {}, partial(_permuted, axes=tuple(range(len(source))), target=target)
    if len(source) in (3, 4) and len(target) <= len(source):
        # the examples stay first; the first permutation leaves all axes as they are
        for axes in list(itertools.permutations(range(1, len(source))))[1:]:
            sizes = [source[axis] for axis in axes]
            if len(target) == len(source) and tuple(sizes) != target[1:]:
                continue
            letters = "".join("abcd"[axis] for axis in axes)
            order = f"{', '.join(map(str, sizes))} (axes {letters})"
            yield {"order of axes": order}, partial(_permuted, axes=(0, *axes), target=target)
    # with more axes it is not said which one counts positions
    if source == target and 2 <= len(source) <= 3:
        for by in (1, -1):
            yield {"positions": f"shifted by {by:+d}"}, partial(_shifted, by=by)
        yield {"positions": "reversed"}, partial(np.flip, axis=1)


def _permuted(x: Array, axes: Shape, target: Shape) -> Array:
    return x.transpose(axes).reshape(target)


def _shifted(x: Array, by: int) -> Array:
    moved = np.zeros_like(x)
    if by > 0:
        moved[:, by:] = x[:, :-by]
    else:
        moved[:, :by] = x[:, -by:]
    return moved


def _reductions(source: Shape, target: Shape) -> Iterator[Move]:
    """Means, maxima and sums over one axis or two, and the first and the last position of one."""
    for count in (1, 2):
        for axes in itertools.combinations(range(1, len(source)), count):
            rest = math.prod(size for axis, size in enumerate(source) if axis not in axes)
            if rest != math.prod(target):
                continue
            over = f"axis {axes[0]}"
            if len(source) != 4 or count == 2:
                over = "all positions"
            reductions: dict[str, Callable[..., Array]] = {
                f"mean over {over}": np.mean,
                f"maximum over {over}": np.max,
                f"sum over {over}": np.sum,
            }
            if count == 1:
                reductions["the first position"] = partial(_taken, index=0)
                reductions["the last position"] = partial(_taken, index=-1)
            for name, reduce in reductions.items():
                yield {"pooling": name}, partial(_reduced, reduce=reduce, axes=axes, target=target)


def _taken(x: Array, axis: Shape, index: int) -> Array:
    return np.take(x, index, axis[0])


def _reduced(x: Array, reduce: Callable[..., Array], axes: Shape, target: Shape) -> Array:
    return reduce(x, axis=axes).reshape(target)


def _poolings(source: Shape, target: Shape) -> Iterator[Move]:
    """Pooling over two axes, the channels second or last; flattened in either order."""
    # two frameworks may see one image in both layouts, and shapes rarely tell which it is
    for channels, elsewhere, order in ((1, 3, "channels last"), (3, 1, "channels first")):
        for kernel, stride, pads, shape in _pooled_shapes(source, channels):
            if math.prod(shape) != math.prod(target) or (len(target) == 4 and target != shape):
                continue
            geometry = {"window": kernel, "stride": stride, "padding": shown_pads(pads)}
            for kind, (pooling, counts) in _KINDS.items():
                # without padding all averages are the same
                if counts == "no" and not any(before or after for before, after in pads):
                    continue
                window = (kernel, stride, pads, kind)
                traits = {"pooling": pooling, **geometry, "padding counts": counts}
                pooled = partial(_pooled, window=window, channels=channels, target=target)
                yield traits, partial(pooled, moved_to=channels)
                if len(target) == 2:
                    yield {**traits, "order of axes": order}, partial(pooled, moved_to=elsewhere)


def _pooled_shapes(source: Shape, channels: int) -> Iterator[tuple[int, int, Pads, Shape]]:
    """Kernel, stride, padding and shape of what usual poolings make of an array."""
    spatial = tuple(size for axis, size in enumerate(source) if axis not in (0, channels))
    for kernel, stride in _WINDOWS:
        if kernel > min(spatial) + 1:
            continue
        for pads in paddings(spatial, (kernel, kernel), stride).values():
            out = out_sizes(spatial, (kernel, kernel), stride, pads)
            # a window of nothing but padding has no maximum
            if min(out) >= 1 and max(width for pad in pads for width in pad) < kernel:
                shape = [source[0], *out]
                shape.insert(channels, source[channels])
                yield kernel, stride, pads, tuple(shape)


def _pooled(x: Array, window: tuple[int, int, Pads, str], channels: int, moved_to: int, target: Shape) -> Array:
    """Pooling of x along all axes but that of its channels, which then move to another one."""
    y = pool(np.moveaxis(x, channels, 1), *window)
    return np.moveaxis(y, 1, moved_to).reshape(target)
