"""Initial parameters that every framework draws alike: a pure function of (seed, name, shape, law).

A golden trace holds a run of one framework against a recording of another, so both must start from
the same parameters, and a recording should stay small enough to read. So it keeps no parameters. It
keeps the law of each tensor, its mean, standard deviation, least and largest element as the model's
own builder chose them, and the run starts from a draw by that law:

    p = clip(mean + deviation * z, least, largest)

z is the sum of the four 16-bit parts of a raw word of numpy's Philox, centred and scaled to unit
variance (Irwin and Hall 1927: close to a normal distribution, kurtosis -0.3). Integers, one product
and one sum: no logarithm and no cosine, whose last bit depends on processor and library, so the
bits are the same everywhere and in every version of numpy, which guarantees that stream. A tensor
that is constant, such as zeros or ones, stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from multibackend.core.rng import stream_seed
from multibackend.golden.summary import short

__all__ = ["Law", "draw", "draw_all", "law_of"]

_STREAM = 0x6D62_676F_6C64_656E  # the stream of golden parameters: "mbgolden"
# mean and standard deviation of the sum of four whole numbers that are uniform on 0 ... 65535
_CENTRE = 2.0 * 65535
_DEVIATION = math.sqrt(4 * (65536**2 - 1) / 12)


@dataclass(frozen=True)
class Law:
    """How the elements of one tensor are distributed: shape, mean, standard deviation, least and largest element."""

    shape: tuple[int, ...]
    mean: float
    deviation: float
    least: float
    largest: float


def law_of(array: np.ndarray) -> Law:
    """The law of a tensor's elements.

    >>> law_of(np.array([1.0, 3.0])).deviation
    1.0
    """
    values = np.asarray(array, np.float64)
    if values.size == 0:
        return Law(tuple(array.shape), 0.0, 0.0, 0.0, 0.0)
    least = short(float(values.min()))
    largest = short(float(values.max()))
    if least == largest:
        # the mean of equal numbers may round to another
        return Law(tuple(array.shape), least, 0.0, least, largest)
    return Law(tuple(array.shape), short(float(values.mean())), short(float(values.std())), least, largest)


def draw(law: Law, *, seed: int, name: str) -> np.ndarray:
    """A tensor by its law: float64 of `law.shape`, the same bits on every machine.

    >>> law = Law((2, 2), 0.0, 0.5, -1.0, 1.0)
    >>> draw(law, seed=0, name="fc.weight").tolist() == draw(law, seed=0, name="fc.weight").tolist()
    True
    """
    count = math.prod(law.shape)
    if law.deviation == 0 or count == 0:
        return np.full(law.shape, law.mean)
    key = [stream_seed(seed, _STREAM), xxhash.xxh3_64_intdigest(name.encode())]
    words = np.atleast_1d(np.random.Philox(key=key).random_raw(count))
    # a sum of whole numbers below 2^18, which float64 holds exactly
    total = sum((words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    z = (np.asarray(total, np.float64) - _CENTRE) / _DEVIATION
    return np.clip(law.mean + law.deviation * z, law.least, law.largest).reshape(law.shape)


def draw_all(laws: Mapping[str, Law], seed: int) -> dict[str, np.ndarray]:
    """Draw a tensor for each name."""
    return {name: draw(law, seed=seed, name=name) for name, law in laws.items()}
