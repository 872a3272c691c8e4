"""How alike two names are: their words, however spelled or abbreviated, and the numbers in them.

A name is read as words and numbers: `h.3.attn.c_attn.weight` and
`layers_3/self_attention/qkv/kernel` both have a number, something about attention, and a weight.
With its numbers taken out a name is a role; the numbers, counted from the first that occurs, are
its place in the structure.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

__all__ = ["LEAVES", "Name", "Role", "by_place", "by_role", "leaf_of", "module_of", "pairwise", "read_names"]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

# what people write for the same thing, whatever the model
_SPELLINGS = {
    "weight": "weight kernel w scale gamma g",
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
    "downsample": "downsample shortcut",
}
_SYNONYMS = {word: meaning for meaning, words in _SPELLINGS.items() for word in words.split()}
LEAVES = frozenset({"weight", "bias", "mean", "var"})
_NUMBER = "#"  # stands in a role for each number
# words that say nothing: GPT-2's `c_attn`, BatchNorm's `running_mean`, a library's `base_model`
_UNTELLING = {"running", "c", "base", "model", "module"}

Role = tuple[str, ...]
Places = tuple[tuple[int, int], ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Name:
    """A name as it is read.

    Attributes:
        text: as it stands.
        role: its words in the usual spelling, with "#" for each number.
        numbers: (the role up to the number, the number), for each.
        places: for each number that varies: (how many values it takes, which of them this is).
    """

    text: str
    role: Role
    numbers: tuple[tuple[Role, int], ...]
    places: Places = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The role without its numbers."""
        return tuple(word for word in self.role if word != _NUMBER)

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
        # Flax calls the weight of an embedding "embedding", which elsewhere in a name is a module
        if known[-1] == "embed":
            return "weight"
        return known[-1]
    return words[-1] if words else ""


def _usual(word: str) -> str:
    return _SYNONYMS.get(word.lower(), word.lower())


def read_names(texts: Sequence[str]) -> list[Name]:
    """Names with the places of their numbers, which are known from all of them together."""
    names = [_read(text) for text in texts]
    values: dict[Role, set[int]] = defaultdict(set)
    for name in names:
        for prefix, number in name.numbers:
            values[prefix].add(number)
    ordered = {prefix: sorted(numbers) for prefix, numbers in values.items()}
    return [replace(name, places=_places(name, ordered)) for name in names]


def _places(name: Name, ordered: Mapping[Role, list[int]]) -> Places:
    places = []
    for prefix, number in name.numbers:
        # Ranks: layers 1, 2, 3 or 0, 2, 4 stand where 0, 1, 2 do. A number that never varies
        # says nothing.
        if len(ordered[prefix]) > 1:
            places.append((len(ordered[prefix]), ordered[prefix].index(number)))
    return tuple(places)


def _read(text: str) -> Name:
    role: list[str] = []
    numbers = []
    for word in _WORD.findall(text):
        if word.isdigit():
            numbers.append((tuple(role), int(word)))
            role.append(_NUMBER)
        else:
            role.append(_usual(word))
    return Name(text, tuple(role), tuple(numbers))


def pairwise(score: Callable[[T, T], float], rows: Sequence[T], columns: Sequence[T]) -> np.ndarray:
    """Score each row with each column: float64 [len(rows), len(columns)].

    >>> pairwise(min, [1.0, 2.0], [0.0, 3.0]).tolist()
    [[0.0, 1.0], [0.0, 2.0]]
    """
    table = np.zeros((len(rows), len(columns)))
    for index, row in enumerate(rows):
        table[index] = [score(row, column) for column in columns]
    return table


def by_place(names: Sequence[Name], others: Sequence[Name]) -> np.ndarray:
    """[len(names), len(others)] in [0, 1]: how well their places in the structure agree."""
    return pairwise(lambda name, other: _place_similarity(name.places, other.places), names, others)


def by_role(names: Sequence[Name], others: Sequence[Name]) -> np.ndarray:
    """[len(names), len(others)] in [0, 1]: the words that two roles share, rare words counting more.

    A word that every role of a model has, such as a common prefix, says nothing and costs nothing.
    """
    roles = [name.role for name in names]
    other_roles = [name.role for name in others]
    vocabulary = sorted(set().union(*roles, *other_roles) - {_NUMBER})
    # The cosine of two bags of words, where a word also counts in part as those that it resembles.
    # Roots, so that the weight of a shared word counts once and not squared.
    alike = pairwise(_word_similarity, vocabulary, vocabulary)
    bags = np.sqrt(_bags(roles, vocabulary))
    other_bags = np.sqrt(_bags(other_roles, vocabulary))
    shared = bags @ alike @ other_bags.T
    norms = _squared_norms(bags, alike)[:, None] * _squared_norms(other_bags, alike)[None, :]
    equal = pairwise(operator.eq, roles, other_roles)  # which also asks for the order of words
    return 0.9 * np.clip(shared / np.sqrt(norms), 0, 1) + 0.1 * equal


def _bags(roles: Sequence[Role], vocabulary: Sequence[str]) -> np.ndarray:
    """Return the weight of each word in each role: [roles, words]."""
    counts = Counter(word for role in roles for word in set(role))
    bags = np.zeros((len(roles), len(vocabulary)))
    for row, role in enumerate(roles):
        for column, word in enumerate(vocabulary):
            if word in role:
                # never quite 0: where every role has all words, they are all there is to go by
                bags[row, column] = (0.02 if word in _UNTELLING else 0.05) + math.log(len(roles) / counts[word])
    return bags


def _squared_norms(bags: np.ndarray, alike: np.ndarray) -> np.ndarray:
    return np.maximum(np.einsum("rv,vw,rw->r", bags, alike, bags), 1e-12)


@functools.lru_cache(maxsize=65536)
def _word_similarity(first: str, second: str) -> float:
    """1 for the same word, part of it for an abbreviation or another ending, else 0."""
    if first == second:
        return 1.0
    short, long = sorted((first, second), key=len)
    if len(short) >= 3 and long.startswith(short):
        return 0.8
    if len(short) < 4:
        return 0.0  # short words resemble each other by chance
    ratio = difflib.SequenceMatcher(None, first, second).ratio()
    return 0.7 * ratio if ratio >= 0.75 else 0.0


@functools.lru_cache(maxsize=65536)
def _place_similarity(places: Places, others: Places) -> float:
    """In [0, 1]: how well places agree, numbers that take many values counting more."""
    if not places and not others:
        return 1.0
    total = sum(math.log(count) for count, _ in places)
    total += sum(math.log(count) for count, _ in others)
    return 2 * _aligned(places, others) / total


def _aligned(places: Places, others: Places) -> float:
    """Score the best alignment of two lists of places, either of which may leave some out."""
    if not places or not others:
        return 0.0
    (count, index), (other_count, other_index) = places[0], others[0]
    gap = abs(index / (count - 1) - other_index / (other_count - 1))
    agreement = 0.5 * max(0.0, 1 - 4 * gap)  # the middle layer of 6 is that of 12
    if places[0] == others[0]:
        agreement = 1.0
    both = math.sqrt(math.log(count) * math.log(other_count)) * agreement + _aligned(places[1:], others[1:])
    return max(both, _aligned(places[1:], others), _aligned(places, others[1:]))
