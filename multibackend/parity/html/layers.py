"""Differences by parameter and update, gathered by layer, in as many rows as can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Heat", "by_layer", "layer_of", "thinned"]

MOST_ROWS = 48  # of 20 pixels each: about the height of a screen
MOST_COLUMNS = 240  # of about 4 pixels each on a wide screen
WHOLE = "the model itself"  # the layer of parameters that lie in no layer


@dataclass(frozen=True)
class Heat:
    """What a heat map shows.

    Attributes:
        rows: names of layers, or of blocks where layers are too many, in the model's order.
        updates: [columns] numbers of updates; a column stands for those up to the next one.
        differences: [rows, columns] the largest relative difference of a parameter of the row.
        worst: for each row, the name of the parameter with the largest difference.
        layers: how many layers there are.
    """

    rows: tuple[str, ...]
    updates: np.ndarray
    differences: np.ndarray
    worst: tuple[str, ...]
    layers: int


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter belongs to: its name without the last part.

    >>> layer_of("blocks.0.norm.weight"), layer_of("weight")
    ('blocks.0.norm', 'the model itself')
    """
    return parameter.rpartition(".")[0] or WHOLE


def by_layer(parameters: Sequence[str], differences: np.ndarray, *, most_rows: int = MOST_ROWS) -> Heat:
    """Gather [updates, parameters] by layer, or by the first parts of names if layers are too many.

    >>> by_layer(["a.weight", "a.bias", "b.weight"], np.array([[0.0, 1e-3, 0.0]])).differences
    array([[0.001],
           [0.   ]])
    """
    layers = [layer_of(parameter) for parameter in parameters]
    columns: dict[str, list[int]] = {}
    for index, block in enumerate(_blocks(layers, most_rows)):
        columns.setdefault(block, []).append(index)
    peaks = differences.max(axis=0, initial=0.0)
    starts = _bin_starts(len(differences), MOST_COLUMNS)
    shown = np.zeros((len(columns), len(starts)))
    worst = []
    for row, members in enumerate(columns.values()):
        worst.append(parameters[max(members, key=lambda index: peaks[index])])
        if starts.size:  # numpy's reduceat refuses an empty array
            shown[row] = np.maximum.reduceat(differences[:, members].max(axis=1), starts)
    return Heat(tuple(columns), starts + 1, shown, tuple(worst), len(set(layers)))


def _blocks(layers: Sequence[str], most: int) -> Sequence[str]:
    """Shorten names of layers, all to the same number of parts, until at most `most` differ."""
    blocks = layers
    depth = max((layer.count(".") for layer in layers), default=0) + 1
    while len(set(blocks)) > most and depth > 1:
        depth -= 1
        blocks = [".".join(layer.split(".")[:depth]) for layer in layers]
    return blocks


def _bin_starts(length: int, most: int) -> np.ndarray:
    """Return where each of at most `most` bins of equal length begins."""
    stride = max(1, -(-length // most))  # rounded up, or there would be one bin more
    return np.arange(0, length, stride)


def thinned(differences: np.ndarray, most: int, *, keep: Sequence[int] = ()) -> np.ndarray:
    """Choose about `most` updates by index: the worst of each bin, the ends, and `keep`. No peak is lost.

    >>> thinned(np.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0]), 3).tolist()
    [0, 1, 3, 4, 5]
    """
    length = len(differences)
    if length <= most:
        return np.arange(length)
    indices = {0, length - 1}
    # `keep` may name an update that the runs never reached
    indices |= {index for index in keep if 0 <= index < length}
    starts = _bin_starts(length, most)
    for start, stop in pairwise([*starts.tolist(), length]):
        indices.add(start + int(np.argmax(differences[start:stop])))
    return np.array(sorted(indices))
