"""One seed, many streams: every random choice is a pure function of named integers.

Only `numpy.random.Philox` raw words are used. numpy guarantees the stream of a bit generator for
ever, which it does not do for the methods of `Generator`.
"""

from __future__ import annotations

import numpy as np

__all__ = ["epoch_order", "stream_seed"]

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # splitmix64's increment: 2^64 over the golden ratio, made odd
_DATA_ORDER = 0x6D62_6F72_6465_7200  # the stream of data orders: "mborder"


def _mix(word: int) -> int:
    """Scramble a word by splitmix64's finaliser (Steele et al. 2014), a bijection of 64-bit words."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def stream_seed(*words: int) -> int:
    """Make a 63-bit seed from integers, for example (seed, update, micro-batch).

    >>> stream_seed(0, 1) == stream_seed(0, 1), stream_seed(0, 1) == stream_seed(1, 0)
    (True, False)
    """
    state = _GOLDEN_GAMMA
    for word in words:
        # _mix(0) is 0: without the increment, a state that a word cancels would stay 0.
        state = _mix((state ^ (word & _MASK)) + _GOLDEN_GAMMA & _MASK)
    # 63 bits: a positive int64, which every generator takes as a seed.
    return state >> 1


def epoch_order(seed: int, epoch: int, length: int, *, shuffle: bool) -> np.ndarray:
    """Return the order in which an epoch visits `length` examples: int64 indices [length].

    A pure function of its arguments, the same on every backend and in every process.

    >>> sorted(epoch_order(0, 3, 5, shuffle=True).tolist())
    [0, 1, 2, 3, 4]
    """
    if not shuffle:
        return np.arange(length)
    keys = np.random.Philox(key=[stream_seed(seed, _DATA_ORDER), epoch]).random_raw(length)
    # The index in the low bits makes every key unique: any sorting algorithm gives the same order.
    low_bits = np.uint64((1 << max(length - 1, 1).bit_length()) - 1)
    keys &= ~low_bits
    keys |= np.arange(length, dtype=np.uint64)
    keys.sort()
    keys &= low_bits
    return keys.view(np.int64)
