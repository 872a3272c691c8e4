"""Portable dropout: masks that are a pure function of integers and a layer's name.

    key    = fold_in(fold_in(fold_in(fold_in(root(seed), update), micro_batch), word(layer)), call)
    bits_i = hi ^ lo  with  (hi, lo) = threefry(key, (i >> 32, i & (2**32 - 1)))
    u_i    = (bits_i >> 9) * 2**-23                       uniform on [0, 1); i counts in row-major order
    keep_i = u_i < 1 - rate

`threefry` is Threefry-2x32 with 20 rounds, `fold_in` and `bits` are what `jax.random` computes for
its partitionable threefry keys: one backend draws with its native generator, any other with 32-bit
additions, rotations and xor. This is the definition, in numpy; backends are tested
against its bits.

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3" (SC11).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.names import normalised, renamed
from multibackend.core.rng import stream_seed
from multibackend.errors import ConfigurationError

__all__ = [
    "Key",
    "fold_in",
    "keep_mask",
    "keep_threshold",
    "layer_name",
    "layer_word",
    "mask_key",
    "name_layers",
    "pair_layers",
    "random_bits",
    "root_key",
    "threefry",
]

Key = tuple[int, int]

_WORD = 0xFFFFFFFF
_DROPOUT = 0x6D62_6472_6F70_6F75  # the stream of dropout masks: "mbdropou"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Key, high: Any, low: Any) -> tuple[Any, Any]:
    """Compute Threefry-2x32, 20 rounds, of a counter (high, low): integers or uint32 arrays.

    >>> [hex(word) for word in threefry((0x13198A2E, 0x03707344), 0x243F6A88, 0x85A308D3)]
    ['0xc4923a9c', '0x483df7a0']
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)  # the parity constant of the paper
    # Masked although uint32 arrays wrap by themselves: Python's integers do not.
    x = (high + words[0]) & _WORD
    y = (low + words[1]) & _WORD
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x = (x + y) & _WORD
            y = ((y << distance) & _WORD | (y >> (32 - distance))) ^ x
        x = (x + words[(group + 1) % 3]) & _WORD
        y = (y + ((words[(group + 2) % 3] + group + 1) & _WORD)) & _WORD
    return x, y


def fold_in(key: Key, data: int) -> Key:
    """Derive a new key from a key and a 32-bit integer, as `jax.random.fold_in` does."""
    return threefry(key, 0, data & _WORD)


def root_key(seed: int) -> Key:
    """Return the key of a run."""
    # Mixed from the seed, so that it is no key from which initial values were drawn.
    mixed = stream_seed(seed, _DROPOUT)
    return mixed >> 32, mixed & _WORD


def layer_name(path: str, rename: Mapping[str, str] | None = None) -> str:
    """Return the name by which a layer draws: its path, renamed as its parameters, without style.

    >>> layer_name("Blocks_0.drop"), layer_name("blocks.0.drop")
    ('blocks.0.drop', 'blocks.0.drop')
    """
    return normalised(renamed(path, rename or {}))


def layer_word(name: str) -> int:
    """Return a layer's name as 32 bits: the first four bytes of its SHA-256, big-endian."""
    # Not Python's hash, which differs from process to process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def mask_key(seed: int, update: int, micro_batch: int, layer: str, call: int = 0) -> Key:
    """Return the key of one mask; `call` counts a layer's earlier calls in the forward pass."""
    key = root_key(seed)
    for data in (update, micro_batch, layer_word(layer), call):
        key = fold_in(key, data)
    return key


def random_bits(key: Key, count: int) -> np.ndarray:
    """Draw uint32 [count], the words of `jax.random.bits` for a partitionable threefry key."""
    index = np.arange(count, dtype=np.uint64)
    high, low = threefry(key, (index >> np.uint64(32)).astype(np.uint32), index.astype(np.uint32))
    return high ^ low


def keep_threshold(rate: float) -> int:
    """Return the integer t with u < 1 - rate exactly where bits >> 9 < t.

    >>> keep_threshold(0.5) == 2**22, keep_threshold(0.0) == 2**23
    (True, True)
    """
    # Compared as integers, u is never rounded to a format, in which backends could differ. 23 bits
    # are the digits of float32: it holds every u exactly, as `jax.random.uniform` has them.
    return math.ceil((1.0 - rate) * 2**23)


def keep_mask(
    seed: int, update: int, micro_batch: int, layer: str, shape: Sequence[int], rate: float, call: int = 0
) -> np.ndarray:
    """Decide which elements are kept, bool of a shape, to be multiplied by 1 / (1 - rate).

    Args:
        seed: the experiment's.
        update: updates made before this one.
        micro_batch: index within the window.
        layer: its name, from `layer_name`.
        shape: of the mask; 1 where an axis shares its decision.
        rate: the probability of dropping, in [0, 1].
        call: how often the layer was called before in the same forward pass.

    >>> keep_mask(0, 10, 3, "drop", (2, 4), rate=0.5).astype(int).tolist() == \\
    ...     keep_mask(0, 10, 3, "drop", (8,), rate=0.5).astype(int).reshape(2, 4).tolist()
    True
    """
    bits = random_bits(mask_key(seed, update, micro_batch, layer, call), math.prod(shape))
    return (bits >> np.uint32(9) < keep_threshold(rate)).reshape(tuple(shape))


def name_layers(names: Sequence[str], rename: Mapping[str, str]) -> dict[str, int]:
    """{layer's name or path: the word by which it draws}, for the layers of one model.

    Raises:
        ConfigurationError: two layers would draw the same masks.
    """
    words: dict[str, int] = {}
    problems = []
    for name in names:
        word = layer_word(layer_name(name, rename))
        # The same word comes of two paths that differ in style only, or (2^-32) of a collision.
        twins = [layer for layer in words if words[layer] == word]
        if twins:
            problems.append(f"the dropout layers {twins[0]!r} and {name!r} would draw the same masks; rename one")
        words[name] = word
    if problems:
        raise ConfigurationError("dropout", problems)
    return words


def pair_layers(reference: Sequence[str], other: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Pair the dropout layers of two models: {name in the other: `layer_name` of its partner}.

    By name, `rename` and style aside; then by order of definition, if both sides have as many left.

    Raises:
        ConfigurationError: the numbers of layers differ.

    >>> pair_layers(["0.drop", "4"], ["layers_0.drop", "Dropout_0"], {"layers_0": "0"})
    {'layers_0.drop': '0.drop', 'Dropout_0': '4'}
    """
    partners = [layer_name(name, rename) for name in reference]
    names = {name: layer_name(name, rename) for name in other}
    pairs = {name: drawn for name, drawn in names.items() if drawn in partners}
    free = [name for name in partners if name not in pairs.values()]
    unpaired = [name for name in other if name not in pairs]
    if len(free) != len(unpaired):
        problem = (
            f"the dropout layers of the two models do not pair up: {_listed(free)} of the reference and "
            f"{_listed(unpaired)} of the other are left over; give both models as many dropout layers, "
            "or pass rename={name: name in the reference} to Model"
        )
        raise ConfigurationError("dropout", [problem])
    # A dropout layer has no array to be known by, so its place is all that is left to pair it.
    return pairs | dict(zip(unpaired, free, strict=True))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
