"""Differences by parameter and update, gathered by layer, in as many rows as can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Heat", "by_layer", "layer_of", "thinned"]

MOST_ROWS = 48
MOST_COLUMNS = 240
WHOLE = "the model itself"


@dataclass(frozen=True)
class Heat:
    """What a heat map shows.

    Attributes:
        rows: names of layers, or of blocks of layers where there would be too many rows, in the model's order.
        updates: [columns] numbers of updates; a column stands for those up to the next one.
        differences: [rows, columns] the largest relative difference of any parameter of the row in the column.
        worst: for each row, the name of the parameter with the largest difference.
        layers: how many layers there are.
    """

    rows: tuple[str, ...]
    updates: np.ndarray
    differences: np.ndarray
    worst: tuple[str, ...]
    layers: int


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: its name without the last part.

    >>> layer_of("blocks.0.norm.weight"), layer_of("weight")
    ('blocks.0.norm', 'the model itself')
    """
    return parameter.rpartition(".")[0] or WHOLE


def by_layer(parameters: Sequence[str], differences: np.ndarray, *, most_rows: int = MOST_ROWS) -> Heat:
    """Gather [updates, parameters] by layer. More than `most_rows` layers are gathered by their first parts.

    >>> by_layer(["a.weight", "a.bias", "b.weight"], np.array([[0.0, 1e-3, 0.0]])).differences
    array([[0.001],
           [0.   ]])
    """
    layers = [layer_of(parameter) for parameter in parameters]
    depth = max((layer.count(".") for layer in layers), default=0) + 1
    groups = layers
    while len(set(groups)) > most_rows and depth > 1:
        depth -= 1
        groups = [".".join(layer.split(".")[:depth]) for layer in layers]
    rows = tuple(dict.fromkeys(groups))
    places = {row: [index for index, group in enumerate(groups) if group == row] for row in rows}
    per_row = np.array([differences[:, places[row]].max(axis=1) for row in rows]).reshape(len(rows), len(differences))
    totals = differences.max(axis=0, initial=0.0)
    worst = tuple(parameters[max(places[row], key=lambda index: totals[index])] for row in rows)
    starts = bins(len(differences), MOST_COLUMNS)
    shown = np.maximum.reduceat(per_row, starts, axis=1) if per_row.size else per_row
    return Heat(rows, starts + 1, shown, worst, len(set(layers)))


def bins(length: int, most: int) -> np.ndarray:
    """Where each of at most `most` bins of equal length begins."""
    stride = -(-length // most) if length else 1
    return np.arange(0, length, stride)


def thinned(differences: np.ndarray, most: int, *, keep: Sequence[int] = ()) -> np.ndarray:
    """Indices of at most about `most` updates: the worst of each bin, so that no peak is lost, the ends, and `keep`.

    >>> thinned(np.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0]), 3).tolist()
    [0, 1, 3, 4, 5]
    """
    length = len(differences)
    if length <= most:
        return np.arange(length)
    starts = bins(length, most)
    stops = np.append(starts[1:], length)
    peaks = {int(start + np.argmax(differences[start:stop])) for start, stop in zip(starts, stops, strict=True)}
    wanted = peaks | {0, length - 1} | {index for index in keep if 0 <= index < length}
    return np.array(sorted(wanted))
