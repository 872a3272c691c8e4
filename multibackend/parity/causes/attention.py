"""Attention from recorded projections: heads, scale, mask, softmax axis, which projection plays which role."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.functions import softmax
from multibackend.parity.causes.sides import Source

__all__ = ["attend", "attention_traits"]

Sources = Mapping[str, Source]

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


def attention_traits(sources: Sequence[Source], target: Array) -> Iterator[dict[str, Any]]:
    """The traits under which `attend` may give an array [n, t, d] or [n, t, heads, dim], likely ones first."""
    width = int(np.prod(target.shape[2:]))
    roles, heads = list(_roles(sources, target)), _heads(sources, target, width)
    for count, some, masks in ((0, roles, _MASKS), (1, roles, _MASKS[:2]), (2, roles[:1], _MASKS[:2])):
        for (q, k, v), number, mask in itertools.product(some, heads, masks):
            fixed = {"query": q, "key": k, "value": v, "heads": number, "mask": mask, **DEFAULTS}
            for names in itertools.combinations(_CHOICES, count):
                if mask == "none" and "masked scores" in names:
                    continue
                for values in itertools.product(*(_CHOICES[name] for name in names)):
                    yield {**fixed, **dict(zip(names, values, strict=True))}


def attend(traits: Mapping[str, Any], sources: Sources) -> Array | None:
    """softmax(q k^T * scale + mask) v by heads, with the given traits: [n, t, width]."""
    picked = [_picked(traits[role], sources) for role in ("query", "key", "value")]
    if any(array is None for array in picked):
        return None
    heads = int(traits["heads"])
    width = int(np.prod(picked[0].shape[2:]))  # type: ignore[union-attr]
    if width % heads or any(array.shape[:1] != picked[0].shape[:1] for array in picked):  # type: ignore[union-attr]
        return None
    q, k, v = (_split(array, heads, str(traits["split into heads"])) for array in picked)  # type: ignore[arg-type]
    scores = np.einsum("nhqd,nhkd->nhqk", q, k) * _scale(str(traits["scale"]), width, heads, k.shape[2])
    weights = _weights(scores, traits)
    if weights is None:
        return None
    return _joined(np.einsum("nhqk,nhkd->nhqd", weights, v), str(traits["heads joined"]))


def _weights(scores: Array, traits: Mapping[str, Any]) -> Array | None:
    allowed = _allowed(str(traits["mask"]), scores.shape[-2], scores.shape[-1])
    how, axis = str(traits["masked scores"]), {"keys": -1, "queries": -2, "heads": 1}[str(traits["softmax over"])]
    if allowed is None:
        return softmax(scores, axis)
    if how == "0 after the softmax":
        return np.where(allowed, softmax(scores, axis), 0.0)
    if how.endswith(", added"):
        return softmax(scores + np.where(allowed, 0.0, float(how.partition(",")[0])), axis)
    with np.errstate(invalid="ignore"):
        return softmax(np.where(allowed, scores, float(how)), axis)


def _allowed(mask: str, queries: int, keys: int) -> Array | None:
    """bool [queries, keys]; None for no mask. A row without any key is NaN, as in both frameworks with -inf."""
    if mask == "none":
        return None
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None] - (keys - queries)
    if mask == "anti-causal":
        return ahead >= 0
    return ahead <= {"causal": 0, "causal, one position later": 1, "causal, without the position itself": -1}[mask]


def _scale(name: str, width: int, heads: int, length: int) -> float:
    dim = width // heads
    table = {
        "1": 1.0,
        "1/sqrt(head dim)": 1 / math.sqrt(dim),
        "1/sqrt(width)": 1 / math.sqrt(width),
        "1/head dim": 1 / dim,
        "1/width": 1 / width,
        "sqrt(head dim)": math.sqrt(dim),
        "1/sqrt(heads)": 1 / math.sqrt(heads),
        "1/sqrt(length)": 1 / math.sqrt(length),
    }
    return table[name]


def _split(x: Array, heads: int, way: str) -> Array:
    """[n, t, width] as [n, heads, t, dim]."""
    n, t = x.shape[:2]
    x = x.reshape(n, t, -1)
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


def _picked(role: str, sources: Sources) -> Array | None:
    """A source by name; "name[1/3]" is the second third of its last axis, "name[1 of 3 per head, 4]" of each head's."""
    name, _, part = role.partition("[")
    if name not in sources:
        return None
    x = np.asarray(sources[name].array, np.float64)
    if not part:
        return x.reshape(*x.shape[:2], -1)
    x = x.reshape(*x.shape[:2], -1)
    index = int(part[0])
    if "per head" not in part:
        return np.split(x, 3, axis=-1)[index] if x.shape[-1] % 3 == 0 else None
    heads = int(part.rstrip("]").rpartition(" ")[2])
    if x.shape[-1] % (3 * heads):
        return None
    return x.reshape(*x.shape[:2], heads, 3, -1)[:, :, :, index].reshape(*x.shape[:2], -1)


def _roles(sources: Sequence[Source], target: Array) -> Iterator[tuple[str, str, str]]:
    """Three sources of the target's size in the order of their calls, then in other orders; or thirds of one."""
    size = target.size
    threes = [s.name for s in sources if s.array.size == size and s.array.ndim in (3, 4) and s.array.dtype.kind == "f"]
    fused = [s.name for s in sources if s.array.size == 3 * size and s.array.ndim >= 3]
    for name in fused[:1]:
        for order in itertools.permutations(range(3)):
            yield tuple(f"{name}[{index}/3]" for index in order)  # type: ignore[misc]
        for heads in _divisors(int(np.prod(target.shape[2:]))):
            for order in itertools.permutations(range(3)):
                yield tuple(f"{name}[{index} of 3 per head, {heads}]" for index in order)  # type: ignore[misc]
    latest = threes[:3][::-1]
    if len(latest) == 3:
        yield from itertools.permutations(latest)  # type: ignore[misc]


def _heads(sources: Sequence[Source], target: Array, width: int) -> list[int]:
    """The number of heads where an array tells it, else every divisor of the width."""
    told = [a.shape[2] for a in (target, *(s.array for s in sources[:3])) if a.ndim == 4]
    return list(dict.fromkeys([*told, *_divisors(width)])) if not told else told[:1]


def _divisors(width: int) -> list[int]:
    found = [h for h in (4, 2, 8, 1, 12, 3, 6, 16, 5, 10) if width % h == 0 and width // h > 1]
    return found[:6]
