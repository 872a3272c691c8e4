"""How alike two names are: their words, however spelled or abbreviated, and the numbers in them.

A name is read as words and numbers: `h.3.attn.c_attn.weight` and `layers_3/self_attention/qkv/kernel` both have a
number, something about attention, and a weight. With its numbers taken out a name is a role; the numbers, counted from
the first that occurs, are its place in the structure.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LEAVES", "Name", "index_similarity", "leaf_of", "module_of", "read_names", "role_similarity"]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# what people write for the same thing, whatever the model
_SYNONYMS = {
    word: meaning
    for meaning, words in {
        "weight": "weight kernel w scale gamma embedding g",
        "bias": "bias b beta offset shift",
        "mean": "mean mu",
        "var": "var variance sigma",
        "query": "query q",
        "key": "key k",
        "value": "value v val",
        "output": "output out o",
        "input": "input in",
        "attention": "attention attn att mha",
        "embed": "embed embedder embeddings emb embedding embeddings wte wpe",
        "norm": "norm ln layernorm bn batchnorm rmsnorm groupnorm layernorms normalization normalisation normalizer",
        "linear": "linear dense fc lin proj projection",
        "conv": "conv convolution convs convolutions",
        "mlp": "mlp ffn ff feedforward",
        "layer": "layer layers block blocks h blk cell cells",
        "encoder": "encoder enc",
        "decoder": "decoder dec",
        "position": "position positions positional pos",
        "token": "token tokens tok word words vocab",
        "head": "head classifier logits",
        "hidden": "hidden",
        "up": "up",
        "down": "down",
        "gate": "gate",
        "downsample": "downsample shortcut",
    }.items()
    for word in words.split()
}
LEAVES = frozenset({"weight", "bias", "mean", "var"})
_NO_NEWS = {"running", "c", "base", "model", "module"}


@dataclass(frozen=True)
class Name:
    """A name as it is read.

    Attributes:
        text: as it stands.
        words: without numbers, in the usual spelling.
        role: words with "#" for each number.
        numbers: (the role up to the number, the number), for each.
        places: for each number that varies: (how many values it takes, which of them this is).
    """

    text: str
    words: tuple[str, ...]
    role: tuple[str, ...]
    numbers: tuple[tuple[tuple[str, ...], int], ...]
    places: tuple[tuple[int, int], ...] = ()

    @property
    def leaf(self) -> str:
        """What it is of its module: "weight", "bias", "mean", "var", or the last word itself."""
        return leaf_of(self.text)


def module_of(name: str) -> str:
    """The module that an array belongs to.

    >>> module_of("layers.0.weight")
    'layers.0'
    """
    return name.rpartition(".")[0]


@functools.lru_cache(maxsize=65536)
def leaf_of(name: str) -> str:
    """The role of an array in its module, in the usual spelling.

    >>> leaf_of("norm.gamma"), leaf_of("bn.running_var"), leaf_of("attn.in_proj_bias")
    ('weight', 'var', 'bias')
    """
    words = [_usual(word) for word in _WORD.findall(name.rpartition(".")[2]) if not word.isdigit()]
    known = [word for word in words if word in LEAVES or word == "embed"]
    if known:
        return "weight" if known[-1] == "embed" else known[-1]
    return words[-1] if words else ""


def _usual(word: str) -> str:
    return _SYNONYMS.get(word.lower(), word.lower())


def read_names(texts: Sequence[str]) -> list[Name]:
    """Names with the places of their numbers, which are known from all of them together."""
    names = [_read(text) for text in texts]
    values: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for name in names:
        for prefix, number in name.numbers:
            values[prefix].add(number)
    ranks = {prefix: {n: i for i, n in enumerate(sorted(found))} for prefix, found in values.items()}
    return [
        Name(
            name.text,
            name.words,
            name.role,
            name.numbers,
            tuple((len(ranks[p]), ranks[p][n]) for p, n in name.numbers if len(ranks[p]) > 1),
        )
        for name in names
    ]


def _read(text: str) -> Name:
    words: list[str] = []
    role: list[str] = []
    numbers: list[tuple[tuple[str, ...], int]] = []
    module, _, last = text.rpartition(".")
    for word in _WORD.findall(module):
        if word.isdigit():
            numbers.append((tuple(role), int(word)))
            role.append("#")
        else:
            role.append(_usual(word))
            words.append(_usual(word))
    for word in _WORD.findall(last):  # here "embedding" is a weight
        usual = _usual(word)
        if word.isdigit():
            numbers.append((tuple(role), int(word)))
        role.append("#" if word.isdigit() else usual)
        if not word.isdigit():
            words.append(usual)
    return Name(text, tuple(words), tuple(role), tuple(numbers))


def role_similarity(reference: Sequence[tuple[str, ...]], other: Sequence[tuple[str, ...]]) -> np.ndarray:
    """[len(reference), len(other)] in [0, 1]: the words that two roles share, rare words counting more.

    A word that every role of a model has, such as a common prefix, says nothing and costs nothing.
    """
    vocabulary = sorted({word for role in [*reference, *other] for word in role if word != "#"})
    place = {word: index for index, word in enumerate(vocabulary)}
    bags = [np.zeros((len(roles), len(vocabulary))) for roles in (reference, other)]
    for bag, roles in zip(bags, (reference, other), strict=True):
        weights = _weights(roles)
        for row, role in enumerate(roles):
            for word in role:
                if word != "#":
                    bag[row, place[word]] = weights[word]
    alike = np.array([[_alike(a, b) for b in vocabulary] for a in vocabulary]).reshape(len(vocabulary), -1)
    roots = [np.sqrt(bag) for bag in bags]
    shared = roots[0] @ alike @ roots[1].T
    own = [np.maximum(np.einsum("rv,vw,rw->r", root, alike, root), 1e-12) for root in roots]
    exact = np.array([[a == b for b in other] for a in reference], dtype=float)
    return 0.9 * np.clip(shared / np.sqrt(own[0][:, None] * own[1][None, :]), 0, 1) + 0.1 * exact


def _weights(roles: Sequence[tuple[str, ...]]) -> dict[str, float]:
    counts = Counter(word for role in roles for word in set(role))
    return {word: (0.02 if word in _NO_NEWS else 0.05) + math.log(len(roles) / count) for word, count in counts.items()}


@functools.lru_cache(maxsize=65536)
def _alike(first: str, second: str) -> float:
    """1 for the same word, part of it for an abbreviation or another ending, else 0."""
    if first == second:
        return 1.0
    short, long = sorted((first, second), key=len)
    if len(short) >= 3 and long.startswith(short):
        return 0.8
    if len(short) < 4:
        return 0.0
    ratio = difflib.SequenceMatcher(None, first, second).ratio()
    return 0.7 * ratio if ratio >= 0.75 else 0.0


@functools.lru_cache(maxsize=65536)
def index_similarity(first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]) -> float:
    """In [0, 1]: how well the places in the structure agree, numbers that take many values counting more."""
    if not first and not second:
        return 1.0
    total = sum(math.log(n) for n, _ in first) + sum(math.log(n) for n, _ in second)
    return 2 * _aligned(first, second) / total


def _aligned(first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]) -> float:
    if not first or not second:
        return 0.0
    (n, i), (m, j) = first[0], second[0]
    gap = abs(i / (n - 1) - j / (m - 1))
    here = math.sqrt(math.log(n) * math.log(m)) * (1.0 if n == m and i == j else 0.5 * max(0.0, 1 - 4 * gap))
    return max(here + _aligned(first[1:], second[1:]), _aligned(first[1:], second), _aligned(first, second[1:]))
