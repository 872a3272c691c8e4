"""Linear layers and embeddings: weight (transposed, another parameter's), bias, scale, rounded inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.formats import rounded
from multibackend.parity.causes.formulas import Formula
from multibackend.parity.causes.recorded_layers import RecordedLayer

__all__ = ["ROUNDED_FACTORS", "biases_of", "embedding_formulas", "linear_formulas"]

ROUNDED_FACTORS = 2**-21
"""Slack of a product of rounded factors, whose sum the accelerator accumulates in float32."""


def biases_of(side: RecordedLayer) -> dict[str, Array | None]:
    """What may be added to a layer's product, by the name of the trait: its bias, if it has one, or nothing."""
    bias = side.own("bias")
    return {"left out": None} if bias is None else {"added": bias, "left out": None}


def linear_formulas(side: RecordedLayer) -> list[Formula]:
    """y = x W^T + b: with and without bias, W transposed or another parameter, inputs rounded to fewer bits."""
    x = side.input
    target = side.output
    own = side.own("weight")
    if x is None or target is None or x.ndim == 0 or target.ndim == 0:
        return []
    formulas = []
    biases = biases_of(side)
    usual = next(iter(biases))
    digits_of_factors = ("all", "tf32", "bf16", "fp16", "float32")
    weights = list(_weights(side, x, target, own))
    for (name, weight), (bias, added), digits in itertools.product(weights, biases.items(), digits_of_factors):
        # one thing at a time: rounded factors only of what the layer itself would multiply and add
        if digits != "all" and (bias != usual or name != "its own"):
            continue
        traits = {"weight": name, "bias": bias, "digits of the factors": digits}
        slack = 0.0 if digits == "all" else ROUNDED_FACTORS
        compute = partial(_product, x, weight, added, digits, target.shape)
        formulas.append(Formula("Linear", traits, compute, slack))
    # [c, h, w] and [h, w, c] flatten into other orders, which the weight of a converted model does not know
    if own is not None and own.shape == (target.shape[-1], x.shape[-1]):
        for order, moved in _orders(side, x):
            traits = {"weight": "its own", "bias": usual, "digits of the factors": "all", "order of inputs": order}
            formulas.append(
                Formula("Linear", traits, partial(_product, moved, own, biases[usual], "all", target.shape))
            )
    return formulas


def _orders(side: RecordedLayer, x: Array) -> Iterator[tuple[str, Array]]:
    """The input with the axes of an image that was flattened into it in another order."""
    sources = [s.array for s in side.sources if s.kind != "parameter" and s.array.ndim in (3, 4)]
    leading = x.ndim - 1
    for shape in {array.shape[1:] for array in sources}:
        if math.prod(shape) != x.shape[-1]:
            continue
        image = x.reshape(*x.shape[:-1], *shape)
        for axes in itertools.permutations(range(len(shape))):
            if axes == tuple(range(len(shape))):
                continue
            moved = image.transpose(*range(leading), *(axis + leading for axis in axes))
            order = ", ".join(str(shape[axis]) for axis in axes)
            yield f"{order} of {shape}", moved.reshape(x.shape)


def _product(x: Array, weight: Array, bias: Array | None, digits: str, shape: tuple[int, ...]) -> Array | None:
    if x.size % weight.shape[1]:
        return None
    rows = x.reshape(-1, weight.shape[1])
    if rows.shape[0] * weight.shape[0] != math.prod(shape):
        return None
    if digits != "all":
        rows = rounded(rows, digits)
        weight = rounded(weight, digits)
    product = rows @ weight.T
    if bias is not None:
        product = product + bias.reshape(-1)
    return product.reshape(shape)


def _weights(side: RecordedLayer, x: Array, target: Array, own: Array | None) -> Iterator[tuple[str, Array]]:
    """Two-dimensional parameters that fit: the layer's own, that transposed, then those of other layers."""
    if own is not None and own.ndim > 2:
        return
    shape = (target.shape[-1], x.shape[-1])
    if own is not None and own.ndim == 2:
        # a weight that fits transposed alone is how this framework stores it, and no mistake
        fitting = [weight for weight in (own, own.T) if weight.shape == shape]
        yield from zip(("its own", "its own, transposed"), fitting, strict=False)
    # another layer's parameter fits by chance in shape, never in numbers: a tied weight where it should not be
    for name, array in side.parameters.items():
        if name in side.call.parameters or array.ndim != 2:
            continue
        for way, weight in ((name, array), (f"{name}, transposed", array.T)):
            if weight.shape == shape:
                yield way, np.asarray(weight, np.float64)


def embedding_formulas(side: RecordedLayer) -> list[Formula]:
    """Rows of the table: as they are, or scaled; of these indices, or of shifted ones."""
    table = side.own("weight")
    indices = next((np.asarray(array) for array in side.call.inputs if array.dtype.kind in "iu"), None)
    if table is None or side.output is None or indices is None or table.ndim != 2 or table.size == 0:
        return []
    width = table.shape[1]
    root = math.sqrt(width)
    scales = {"1": 1.0, f"sqrt({width})": root, f"1/sqrt({width})": 1 / root}
    formulas = []
    for (name, scale), shift in itertools.product(scales.items(), (0, 1, -1, 2, -2)):
        traits = {"scale": name, "indices": "as given" if shift == 0 else f"shifted by {shift:+d}"}
        formulas.append(Formula("Embedding", traits, partial(_rows, table, indices + shift, scale)))
    return formulas


def _rows(table: Array, indices: Array, scale: float) -> Array | None:
    if indices.size == 0 or indices.min() < 0 or indices.max() >= len(table):
        return None
    return scale * table[indices]
