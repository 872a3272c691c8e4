"""Linear layers and embeddings: weight (transposed, another parameter's), bias, scale, rounded inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formats import rounded
from multibackend.parity.causes.laws import Law
from multibackend.parity.causes.sides import Side

__all__ = ["embedding_laws", "linear_laws"]


def linear_laws(side: Side) -> list[Law]:
    """y = x W^T + b: with and without bias, W transposed or another parameter, inputs rounded to fewer bits."""
    x, target, own = side.input, side.output, side.own("weight")
    if x is None or target is None:
        return []
    bias, found = side.own("bias"), []
    biases = {"added": bias, "left out": None} if bias is not None else {"left out": None}
    for (name, weight), (way, added), digits in itertools.product(
        _weights(side, x, target, own), biases.items(), ("all", "tf32", "bf16", "fp16", "float32")
    ):
        if digits != "all" and ((way == "left out" and bias is not None) or name != "its own"):
            continue
        traits = {"weight": name, "bias": way, "digits of the factors": digits}
        slack = 0.0 if digits == "all" else 2**-21
        found.append(Law("Linear", traits, _Product(x, weight, added, digits, target.shape), slack))
    if own is not None and own.ndim == 2 and own.shape == (target.shape[-1], x.shape[-1]):
        for order, moved in _orders(side, x):
            traits = {"weight": "its own", "bias": next(iter(biases)), "digits of the factors": "all"}
            compute = _Product(moved, own, bias, "all", target.shape)
            found.append(Law("Linear", {**traits, "order of inputs": order}, compute))
    return found


def _orders(side: Side, x: Array) -> Iterator[tuple[str, Array]]:
    """The input with the axes of an image that was flattened into it in another order."""
    shapes = {s.array.shape[1:] for s in side.sources if s.kind != "parameter" and s.array.ndim in (3, 4)}
    for shape in shapes:
        if math.prod(shape) == x.shape[-1]:
            for axes in itertools.permutations(range(len(shape))):
                if axes != tuple(range(len(shape))):
                    order = tuple(axis + x.ndim - 1 for axis in axes)
                    image = x.reshape(*x.shape[:-1], *shape)
                    moved = image.transpose(*range(x.ndim - 1), *order)
                    yield ", ".join(str(shape[axis]) for axis in axes) + f" of {shape}", moved.reshape(x.shape)


class _Product:
    def __init__(self, x: Array, weight: Array, bias: Array | None, digits: str, shape: tuple[int, ...]) -> None:
        self._arguments = (x, weight, bias, digits, shape)

    def __call__(self) -> Array | None:
        x, weight, bias, digits, shape = self._arguments
        rows = x.reshape(-1, weight.shape[1]) if x.size % weight.shape[1] == 0 else None
        if rows is None or rows.shape[0] * weight.shape[0] != math.prod(shape):
            return None
        if digits != "all":
            rows, weight = rounded(rows, digits), rounded(weight, digits)
        product = rows @ weight.T
        product = product if bias is None else product + bias.reshape(-1)
        return product.reshape(shape)


def _weights(side: Side, x: Array, target: Array, own: Array | None) -> Iterator[tuple[str, Array]]:
    """Two-dimensional parameters that fit: the layer's own, that transposed, then those of other layers."""
    if own is not None and own.ndim > 2:
        return
    if own is not None and own.ndim == 2:
        ways = [w for w in (own, own.T) if w.shape == (target.shape[-1], x.shape[-1])]
        yield from zip(("its own", "its own, transposed"), ways, strict=False)
    mine = set(side.call.parameters)
    for name, array in side.parameters.items():
        if name in mine or array.ndim != 2:
            continue
        for way, candidate in ((f"{name}", array), (f"{name}, transposed", array.T)):
            if candidate.shape[1] == x.shape[-1] and candidate.shape[0] == target.shape[-1]:
                yield way, np.asarray(candidate, np.float64)


def embedding_laws(side: Side) -> list[Law]:
    """Rows of the table: as they are, or scaled; of these indices, or of shifted ones."""
    table, target = side.own("weight"), side.output
    indices = next((np.asarray(a) for a in side.call.inputs if a.dtype.kind in "iu"), None)
    if table is None or target is None or indices is None or table.ndim != 2:
        return []
    width, found = table.shape[1], []
    scales = {"1": 1.0, f"sqrt({width})": math.sqrt(width), f"1/sqrt({width})": 1 / math.sqrt(width)}
    for (text, scale), shift in itertools.product(scales.items(), (0, 1, -1, 2, -2)):
        traits = {"scale": text, "indices": "as given" if shift == 0 else f"shifted by {shift:+d}"}
        found.append(Law("Embedding", traits, _Rows(table, indices + shift, scale)))
    return found


class _Rows:
    def __init__(self, table: Array, indices: Array, scale: float) -> None:
        self._arguments = (table, indices, scale)

    def __call__(self) -> Array | None:
        table, indices, scale = self._arguments
        if indices.size == 0 or indices.min() < 0 or indices.max() >= len(table):
            return None
        return scale * table[indices]
