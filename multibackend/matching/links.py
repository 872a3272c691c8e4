"""A matching: links between the parameters of two models, each with the change of layout between them.

Every change is linear and loses nothing (axes reshaped and permuted, arrays joined or cut), so one matching serves
parameters, gradients, moments and averages alike, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Link", "Matching", "Rearrangement"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Rearrangement:
    """How one array becomes another with the same elements: reshape to `merged`, permute by `axes`, reshape to `shape`.

    >>> Rearrangement(merged=(2, 3), axes=(1, 0), shape=(3, 2))(np.zeros((2, 3))).shape
    (3, 2)
    """

    merged: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def identity(cls, shape: tuple[int, ...]) -> Rearrangement:
        """The arrays are laid out alike."""
        return cls(shape, tuple(range(len(shape))), shape)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(self.merged).transpose(self.axes).reshape(self.shape))

    def inverse(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Back to an array of `shape`."""
        permuted = array.reshape(tuple(self.merged[axis] for axis in self.axes))
        return np.ascontiguousarray(permuted.transpose(np.argsort(self.axes)).reshape(shape))


@dataclass(frozen=True)
class Link:
    """A parameter of the reference and its partner in the other model."""

    reference: str
    other: str
    rearrangement: Rearrangement
    reference_shape: tuple[int, ...]


@dataclass(frozen=True)
class Matching:
    """All links between two models.

    >>> Matching.of_pairs({"b": "a"}, {"a": (2, 3)}).to_other({"a": np.zeros((2, 3))}).keys()
    dict_keys(['b'])
    """

    links: tuple[Link, ...]

    @classmethod
    def of_pairs(cls, pairs: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Matching:
        """From {name of other: name of reference}, laid out alike, and the shapes of the reference."""
        return cls(
            tuple(
                Link(name, other, Rearrangement.identity(shapes[name]), shapes[name]) for other, name in pairs.items()
            )
        )

    def to_other(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Arrays by the reference's names as arrays by the other's."""
        return {link.other: link.rearrangement(arrays[link.reference]) for link in self.links}

    def to_reference(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Arrays by the other's names as arrays by the reference's."""
        return {
            link.reference: link.rearrangement.inverse(arrays[link.other], link.reference_shape) for link in self.links
        }
