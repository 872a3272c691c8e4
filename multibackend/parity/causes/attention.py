"""Attention from recorded projections: heads, scale, mask, softmax axis, roles of projections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.functions import softmax
from multibackend.parity.causes.recorded_layers import Source

__all__ = ["DEFAULTS", "attend", "attention_traits"]

DEFAULTS = {
    "split into heads": "[heads, dim]",
    "scale": "1/sqrt(head dim)",
    "masked scores": "-inf",
    "softmax over": "keys",
    "heads joined": "[heads, dim]",
}
"""What is tried first; roles, number of heads and mask have no default."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "split into heads": ("[dim, heads]", "without exchanging axes"),
    "scale": ("1", "1/sqrt(width)", "1/head dim", "1/width", "sqrt(head dim)", "1/sqrt(heads)", "1/sqrt(length)"),
    "masked scores": ("0", "-1", "-5", "-10", "-100", "-1e4, added", "1, added", "-1, added", "0 after the softmax"),
    "softmax over": ("queries", "heads"),
    "heads joined": ("[dim, heads]", "without exchanging axes"),
}
_MASKS = ("causal", "none", "causal, one position later", "causal, without the position itself", "anti-causal")
_AXES = {"keys": -1, "queries": -2, "heads": 1}
# How many positions ahead a query may look.
_REACHES = {"causal": 0, "causal, one position later": 1, "causal, without the position itself": -1}
_HEADS = (4, 2, 8, 1, 12, 3, 6, 16, 5, 10)
_MOST_HEADS = 6


def attention_traits(sources: Sequence[Source], target: Array) -> Iterator[dict[str, Any]]:
    """The traits under which `attend` may give [n, t, d] or [n, t, heads, dim], likely first."""
    width = int(np.prod(target.shape[2:]))
    roles = list(_roles(sources, target))
    heads = _heads(sources, target, width)
    # every further unusual trait makes the list tenfold: then fewer roles and masks are tried
    for count, tried_roles, masks in ((0, roles, _MASKS), (1, roles, _MASKS[:2]), (2, roles[:1], _MASKS[:2])):
        for (query, key, value), number, mask in itertools.product(tried_roles, heads, masks):
            base = {"query": query, "key": key, "value": value, "heads": number, "mask": mask, **DEFAULTS}
            for names in itertools.combinations(_CHOICES, count):
                if mask == "none" and "masked scores" in names:
                    continue
                for values in itertools.product(*(_CHOICES[name] for name in names)):
                    yield {**base, **dict(zip(names, values, strict=True))}


def attend(traits: Mapping[str, Any], sources: Mapping[str, Source]) -> Array | None:
    """softmax(q k^T * scale + mask) v by heads, with the given traits: [n, t, width]."""
    projections = []
    for role in ("query", "key", "value"):
        projection = _projection(traits[role], sources)
        if projection is None:
            return None
        projections.append(projection)
    examples, _, width = projections[0].shape
    heads = int(traits["heads"])
    if width % heads or any(array.shape[0] != examples for array in projections):
        return None
    q, k, v = (_split(array, heads, traits["split into heads"]) for array in projections)
    scores = np.einsum("nhqd,nhkd->nhqk", q, k) * _scale(traits["scale"], width, heads, k.shape[2])
    joined = np.einsum("nhqk,nhkd->nhqd", _weights(scores, traits), v)
    return _joined(joined, traits["heads joined"])


def _weights(scores: Array, traits: Mapping[str, Any]) -> Array:
    """The softmax of scores [n, h, queries, keys] under the traits' mask."""
    allowed = _allowed(traits["mask"], scores.shape[-2], scores.shape[-1])
    axis = _AXES[traits["softmax over"]]
    masked = traits["masked scores"]
    if allowed is None:
        return softmax(scores, axis)
    if masked == "0 after the softmax":
        return np.where(allowed, softmax(scores, axis), 0.0)
    if masked.endswith(", added"):
        return softmax(scores + np.where(allowed, 0.0, float(masked.partition(",")[0])), axis)
    # another number in place of the score; a row that may look at nothing is -inf - -inf
    with np.errstate(invalid="ignore"):
        return softmax(np.where(allowed, scores, float(masked)), axis)


def _allowed(mask: str, queries: int, keys: int) -> Array | None:
    """bool [queries, keys]; None for no mask. With -inf a row without any key is NaN."""
    if mask == "none":
        return None
    # the last query stands at the last key, as in generation with a cache
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None] - (keys - queries)
    if mask == "anti-causal":
        return ahead >= 0
    return ahead <= _REACHES[mask]


def _scale(name: str, width: int, heads: int, length: int) -> float:
    dim = width // heads
    scales = {
        "1": 1.0,
        "1/sqrt(head dim)": 1 / math.sqrt(dim),
        "1/sqrt(width)": 1 / math.sqrt(width),
        "1/head dim": 1 / dim,
        "1/width": 1 / width,
        "sqrt(head dim)": math.sqrt(dim),
        "1/sqrt(heads)": 1 / math.sqrt(heads),
        "1/sqrt(length)": 1 / math.sqrt(length),
    }
    return scales[name]


def _split(x: Array, heads: int, way: str) -> Array:
    """[n, t, width] as [n, heads, t, dim]."""
    n, t, _ = x.shape
    if way == "[dim, heads]":
        return x.reshape(n, t, -1, heads).transpose(0, 3, 1, 2)
    if way == "without exchanging axes":
        return x.reshape(n, heads, t, -1)
    return x.reshape(n, t, heads, -1).transpose(0, 2, 1, 3)


def _joined(y: Array, way: str) -> Array:
    """[n, heads, t, dim] as [n, t, width]."""
    n, _, t, _ = y.shape
    if way == "[dim, heads]":
        return y.transpose(0, 2, 3, 1).reshape(n, t, -1)
    if way == "without exchanging axes":
        return y.reshape(n, t, -1)
    return y.transpose(0, 2, 1, 3).reshape(n, t, -1)


def _projection(role: str, sources: Mapping[str, Source]) -> Array | None:
    """A source by name, as [n, t, width].

    "name[1/3]" is the second third of its last axis, "name[1 of 3 per head, 4]" of each of 4 heads.
    """
    name, _, part = role.partition("[")
    if name not in sources or sources[name].array.ndim < 3 or not sources[name].array.size:
        return None
    x = np.asarray(sources[name].array, np.float64)
    x = x.reshape(*x.shape[:2], -1)
    if not part:
        return x
    index = int(part[0])
    heads = int(part.rstrip("]").rpartition(" ")[2]) if "per head" in part else 1
    if x.shape[-1] % (3 * heads):
        return None
    return x.reshape(*x.shape[:2], heads, 3, -1)[:, :, :, index].reshape(*x.shape[:2], -1)


def _roles(sources: Sequence[Source], target: Array) -> Iterator[tuple[str, ...]]:
    """Thirds of one source, or three of the target's size, in the order of their calls first."""
    floats = [s for s in sources if s.array.dtype.kind == "f"]
    # one layer may have projected all three at once
    fused = [s.name for s in sources if s.array.size == 3 * target.size and s.array.ndim >= 3]
    for name in fused[:1]:
        for first, second, third in itertools.permutations(range(3)):
            yield f"{name}[{first}/3]", f"{name}[{second}/3]", f"{name}[{third}/3]"
        for heads in _divisors(int(np.prod(target.shape[2:]))):
            thirds = [f"{name}[{index} of 3 per head, {heads}]" for index in range(3)]
            yield from itertools.permutations(thirds)
    latest = [s.name for s in floats if s.array.size == target.size and s.array.ndim in (3, 4)][:3]
    # sources come with the latest first, and most models project query, key, value in this order
    if len(latest) == 3:
        yield from itertools.permutations(latest[::-1])


def _heads(sources: Sequence[Source], target: Array, width: int) -> list[int]:
    """The number of heads where an array tells it, else every divisor of the width."""
    for array in (target, *(source.array for source in sources[:3])):
        if array.ndim == 4:
            return [array.shape[2]]
    return _divisors(width)


def _divisors(width: int) -> list[int]:
    """Usual numbers of heads that divide a width, each head having more than one element."""
    return [heads for heads in _HEADS if width % heads == 0 and width // heads > 1][:_MOST_HEADS]
