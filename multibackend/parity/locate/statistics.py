"""How a model's initial values are distributed, and which variance a running statistic keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.differences import relative_differences

__all__ = ["differs_by_bias", "differs_by_definition", "notes_on_initial_values"]


_ENOUGH = 48  # elements from which a distribution can be told
_MOST_NOTES = 12


def differs_by_bias(first: np.ndarray, second: np.ndarray, before: np.ndarray) -> int | None:
    """The number n of values if two running variances differ by the factor n / (n - 1) alone.

    After one or several steps r = (1 - m) r + m v from the same r: with v n / (n - 1) on one side
    and v on the other, first - second = a * second - b * before with a = 1 / (n - 1). A larger
    second one is the same with sides swapped.

    >>> v, r = np.array([1.0, 2.0, 5.0]), np.ones(3)
    >>> differs_by_bias(0.9 * r + 0.1 * v * 8 / 7, 0.9 * r + 0.1 * v, r)
    8
    """
    larger = np.asarray(first, np.float64).reshape(-1)
    smaller = np.asarray(second, np.float64).reshape(-1)
    gap = larger - smaller
    if (gap <= 0).all():
        smaller = larger
        gap = -gap
    # two unknowns: of fewer than three values any two variances would differ by some n
    if gap.size < 3 or not (gap >= 0).all() or not gap.any():
        return None
    columns = np.stack([smaller, -np.asarray(before, np.float64).reshape(-1)], axis=1)
    (a, b), *_ = np.linalg.lstsq(columns, gap, rcond=None)
    residual = np.abs(columns @ np.array([a, b]) - gap).max()
    precision = np.finfo(first.dtype if first.dtype.kind == "f" else np.float64).eps
    exact = residual <= 1e-6 * gap.max() + 16 * float(precision) * np.abs(smaller).max()
    # a is at most 1, for two values; b is a times what is left of `before`, a share between 0 and 1
    if not exact or not 0 < a <= 1.01 or not -0.01 * a <= b <= 1.01 * a:
        return None
    return round(1 / a) + 1


def differs_by_definition(name: str, first: Arrays, second: Arrays, before: Arrays, relative: float) -> bool:
    """Whether a running variance differs as the biased and the unbiased one do, and not otherwise.

    Where micro-batches differ in size there is no one factor. Then all its elements differ in one
    direction, and what else its layer keeps of that shape, the running mean, agrees.

    Args:
        name: of the array.
        first, second, before: model state of both sides, and of the time before.
        relative: up to which difference the mean agrees.
    """
    if differs_by_bias(first[name], second[name], before[name]) is not None:
        return True
    gap = np.asarray(first[name], np.float64) - np.asarray(second[name], np.float64)
    if gap.size <= 1 or not ((gap >= 0).all() or (gap <= 0).all()):
        return False
    layer = name.rpartition(".")[0]
    beside = {}
    for sibling in first.keys() & second.keys() - {name}:
        if sibling.rpartition(".")[0] == layer and np.shape(first[sibling]) == gap.shape:
            beside[sibling] = first[sibling]
    differences = relative_differences(beside, second)
    return bool(differences) and max(differences.values()) <= relative


def notes_on_initial_values(first: Arrays, second: Arrays) -> list[str]:
    """Say which parameters two models draw otherwise: zero or not, spread, uniform or normal.

    Args:
        first, second: the models' own initial values, by the same names.
    """
    names_by_sentence: dict[str, list[str]] = {}
    for name, array in first.items():
        if name not in second:
            continue
        sentence = _difference(np.asarray(array, np.float64), np.asarray(second[name], np.float64))
        if sentence is not None:
            names_by_sentence.setdefault(sentence, []).append(name)
    notes = [f"initial values: {_listed(names)}: {sentence}" for sentence, names in names_by_sentence.items()]
    return notes[:_MOST_NOTES]


def _difference(first: np.ndarray, second: np.ndarray) -> str | None:
    """Say how two draws differ in their distribution; None where chance can make the difference."""
    words = f"{_described(first)} against {_described(second)}"
    if _is_constant(first) or _is_constant(second):
        both = _is_constant(first) and _is_constant(second)
        if both and _described(first) == _described(second):
            return None
        return words
    count = min(first.size, second.size)
    if count < _ENOUGH:
        return None
    # five times the standard error of the logarithm of a ratio of deviations
    other_spread = abs(np.log(first.std() / second.std())) > 0.02 + 5 / np.sqrt(count)
    shapes = {_distribution(first), _distribution(second)}
    # the kurtosis of few values scatters more than their deviation does
    other_shape = None not in shapes and len(shapes) == 2 and count >= 4 * _ENOUGH
    if not other_spread and not other_shape:
        return None
    return words


def _is_constant(array: np.ndarray) -> bool:
    return array.size == 0 or bool((array == array.flat[0]).all())


def _described(array: np.ndarray) -> str:
    if array.size == 0:
        return "empty"
    if _is_constant(array):
        return f"all {array.flat[0]:.3g}"
    words = (_distribution(array), f"standard deviation {array.std():.2g}")
    return ", ".join(word for word in words if word is not None)


def _distribution(array: np.ndarray) -> str | None:
    """Tell by the kurtosis: 1.8 if uniform, 3 if normal, 2.4 if cut at two deviations."""
    if array.size < _ENOUGH:
        return None
    centred = array - array.mean()
    kurtosis = float((centred**4).mean() / max((centred**2).mean() ** 2, np.finfo(np.float64).tiny))
    return "uniform" if kurtosis < 2.1 else "normal"


def _listed(names: Sequence[str], most: int = 3) -> str:
    listed = ", ".join(names[:most])
    if len(names) > most:
        return f"{listed} and {len(names) - most} more"
    return listed
