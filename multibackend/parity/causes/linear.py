"""Linear layers and embeddings: weight (transposed, another's), bias, scale, rounded inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formats import rounded
from multibackend.parity.causes.formulas import Formula
from multibackend.parity.causes.recorded_layers import RecordedLayer

__all__ = ["SLACKS", "biases_of", "embedding_formulas", "linear_formulas"]

SLACKS: Mapping[str, float] = {"all": 0.0, **dict.fromkeys(("tf32", "bf16", "fp16", "float32"), 2**-21)}
"""Slack of a product by the digits of its factors: rounded ones are accumulated in float32."""


def biases_of(side: RecordedLayer) -> dict[str, Array | None]:
    """What may be added to a layer's product, by the trait's name: its bias, or nothing."""
    bias = side.own("bias")
    if bias is None:
        return {"left out": None}
    return {"added": bias, "left out": None}


def linear_formulas(side: RecordedLayer) -> list[Formula]:
    """y = x W^T + b: without bias, W transposed or another's, inputs rounded to fewer bits."""
    x = side.input
    target = side.output
    own = side.own("weight")
    if x is None or target is None or x.ndim == 0 or target.ndim == 0:
        return []
    formulas = []
    biases = biases_of(side)
    usual = next(iter(biases))
    weights = list(_weights(side, x, target, own))
    for (name, weight), (bias, added), digits in itertools.product(weights, biases.items(), SLACKS):
        # one thing at a time: rounded factors only of what the layer itself would multiply and add
        if digits != "all" and (bias != usual or name != "its own"):
            continue
        traits = {"weight": name, "bias": bias, "digits of the factors": digits}
        compute = partial(_product, x, weight, added, digits, target.shape)
        formulas.append(Formula("Linear", traits, compute, SLACKS[digits]))
    # [c, h, w] and [h, w, c] flatten into other orders, unknown to a converted model's weight
    if own is not None and own.shape == (target.shape[-1], x.shape[-1]):
        plain = {"weight": "its own", "bias": usual, "digits of the factors": "all"}
        for order, moved in _orders(side, x):
            compute = partial(_product, moved, own, biases[usual], "all", target.shape)
            formulas.append(Formula("Linear", {**plain, "order of inputs": order}, compute))
    return formulas


def _orders(side: RecordedLayer, x: Array) -> Iterator[tuple[str, Array]]:
    """The input with the axes of an image that was flattened into it in another order."""
    images = [s.array for s in side.sources if s.kind != "parameter" and s.array.ndim in (3, 4)]
    leading = range(x.ndim - 1)
    for shape in {array.shape[1:] for array in images}:
        if math.prod(shape) != x.shape[-1]:
            continue
        image = x.reshape(*x.shape[:-1], *shape)
        # the first permutation leaves all axes as they are
        for axes in list(itertools.permutations(range(len(shape))))[1:]:
            moved = image.transpose(*leading, *(axis + len(leading) for axis in axes))
            order = ", ".join(str(shape[axis]) for axis in axes)
            yield f"{order} of {shape}", moved.reshape(x.shape)


def _product(x: Array, weight: Array, bias: Array | None, digits: str, shape: tuple[int, ...]) -> Array | None:
    if x.size % weight.shape[1]:
        return None
    rows = x.reshape(-1, weight.shape[1])
    if rows.shape[0] * weight.shape[0] != math.prod(shape):
        return None
    product = rounded(rows, digits) @ rounded(weight, digits).T
    if bias is not None:
        product = product + bias.reshape(-1)
    return product.reshape(shape)


def _weights(side: RecordedLayer, x: Array, target: Array, own: Array | None) -> Iterator[tuple[str, Array]]:
    """Two-dimensional parameters that fit: the layer's own, that transposed, then other layers'."""
    if own is not None and own.ndim > 2:
        return
    shape = (target.shape[-1], x.shape[-1])
    if own is not None and own.ndim == 2:
        # a weight that fits transposed alone is how this framework stores it, and no mistake
        fitting = [weight for weight in (own, own.T) if weight.shape == shape]
        yield from zip(("its own", "its own, transposed"), fitting, strict=False)
    # another layer's parameter may fit in shape, but in numbers only where it is wrongly tied
    for name, array in side.parameters.items():
        if name in side.call.parameters or array.ndim != 2:
            continue
        for way, weight in ((name, array), (f"{name}, transposed", array.T)):
            if weight.shape == shape:
                yield way, np.asarray(weight, np.float64)


def embedding_formulas(side: RecordedLayer) -> list[Formula]:
    """Rows of the table: as they are, or scaled; of these indices, or of shifted ones."""
    table = side.own("weight")
    whole = [np.asarray(array) for array in side.call.inputs if array.dtype.kind in "iu"]
    if table is None or side.output is None or not whole or table.ndim != 2 or table.size == 0:
        return []
    width = table.shape[1]
    root = math.sqrt(width)
    scales = {"1": 1.0, f"sqrt({width})": root, f"1/sqrt({width})": 1 / root}
    shifts = {"as given": 0, "shifted by +1": 1, "shifted by -1": -1, "shifted by +2": 2, "shifted by -2": -2}
    formulas = []
    for (name, scale), (way, shift) in itertools.product(scales.items(), shifts.items()):
        compute = partial(_rows, table, whole[0] + shift, scale)
        formulas.append(Formula("Embedding", {"scale": name, "indices": way}, compute))
    return formulas


def _rows(table: Array, indices: Array, scale: float) -> Array | None:
    if indices.size == 0 or indices.min() < 0 or indices.max() >= len(table):
        return None
    return scale * table[indices]
