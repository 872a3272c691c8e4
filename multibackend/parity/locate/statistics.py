"""Laws that numbers follow: how a model's initial values are drawn, and which variance a running statistic keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.differences import relative_differences

__all__ = ["differs_by_bias", "differs_by_definition", "initial_laws"]


_ENOUGH = 48  # elements from which a distribution can be told
_MOST_NOTES = 12


def differs_by_bias(first: np.ndarray, second: np.ndarray, before: np.ndarray) -> int | None:
    """The number n of values where two running variances differ by the factor n / (n - 1) alone; None where not.

    After one or several steps r = (1 - m) r + m v from the same r: with v n / (n - 1) on one side and v on the other,
    first - second = a * second - b * before with a = 1 / (n - 1). A larger second one is the same with sides swapped.

    >>> v, r = np.array([1.0, 2.0, 5.0]), np.ones(3)
    >>> differs_by_bias(0.9 * r + 0.1 * v * 8 / 7, 0.9 * r + 0.1 * v, r)
    8
    """
    a, b, r = (np.asarray(x, np.float64).reshape(-1) for x in (first, second, before))
    gap = a - b
    if (gap <= 0).all():
        a, b, gap = b, a, -gap
    if gap.size < 3 or not (gap >= 0).all() or not gap.any():
        return None
    columns = np.stack([b, -r], axis=1)
    (slope, kept), *_ = np.linalg.lstsq(columns, gap, rcond=None)
    residual = np.abs(columns @ np.array([slope, kept]) - gap).max()
    precision = np.finfo(first.dtype if first.dtype.kind == "f" else np.float64).eps
    exact = residual <= 1e-6 * gap.max() + 16 * float(precision) * np.abs(b).max()
    if not exact or not 0 < slope <= 1.01 or not -0.01 * slope <= kept <= 1.01 * slope:
        return None
    return round(1 / slope) + 1


def differs_by_definition(name: str, first: Arrays, second: Arrays, before: Arrays, relative: float) -> bool:
    """Whether a running variance differs as the biased one and the unbiased one do, and in nothing else.

    Where micro-batches differ in size there is no one factor. Then all its elements differ in one direction, and what
    else its layer keeps of that shape, the running mean, agrees.

    Args:
        name: of the array.
        first, second, before: model state of both sides, and of the time before.
        relative: up to which difference the mean agrees.
    """
    gap = np.asarray(first[name], np.float64) - np.asarray(second[name], np.float64)
    if differs_by_bias(first[name], second[name], before[name]) is not None:
        return True
    layer = name.rpartition(".")[0]
    beside = [n for n in first if n != name and n.rpartition(".")[0] == layer and np.shape(first[n]) == gap.shape]
    found = relative_differences({n: first[n] for n in beside}, {n: second[n] for n in beside if n in second})
    one_way = bool((gap >= 0).all() or (gap <= 0).all()) and gap.size > 1
    return one_way and bool(found) and max(found.values()) <= relative


def initial_laws(first: Arrays, second: Arrays) -> list[str]:
    """Sentences about parameters that two models draw by other laws: zero or not, another spread, uniform or normal.

    Args:
        first, second: the models' own initial values, by the same names.
    """
    groups: dict[str, list[str]] = {}
    for name, array in first.items():
        other = second.get(name)
        sentence = None if other is None else _compare(np.asarray(array, np.float64), np.asarray(other, np.float64))
        if sentence is not None:
            groups.setdefault(sentence, []).append(name)
    return [f"initial values: {_listed(names)}: {sentence}" for sentence, names in list(groups.items())[:_MOST_NOTES]]


def _compare(first: np.ndarray, second: np.ndarray) -> str | None:
    constant = [array.size == 0 or bool((array == array.flat[0]).all()) for array in (first, second)]
    if any(constant):
        described = [
            _constant(array) if flat else _spread(array) for array, flat in zip((first, second), constant, strict=True)
        ]
        return None if all(constant) and described[0] == described[1] else f"{described[0]} against {described[1]}"
    count = min(first.size, second.size)
    if count < _ENOUGH:
        return None
    ratio = abs(np.log(first.std() / second.std()))
    # five times the standard error of the logarithm of a ratio of deviations
    spread, shapes = ratio > 0.02 + 5 / np.sqrt(count), (_law(first), _law(second))
    law = None not in shapes and shapes[0] != shapes[1] and count >= 4 * _ENOUGH
    return f"{_spread(first)} against {_spread(second)}" if spread or law else None


def _constant(array: np.ndarray) -> str:
    return f"all {array.flat[0]:.3g}" if array.size else "empty"


def _spread(array: np.ndarray) -> str:
    law = _law(array)
    return f"{'' if law is None else law + ', '}standard deviation {array.std():.2g}"


def _law(array: np.ndarray) -> str | None:
    """By the kurtosis: 1.8 of a uniform, 3 of a normal distribution, 2.4 of one cut at two deviations."""
    if array.size < _ENOUGH:
        return None
    centred = array - array.mean()
    kurtosis = float((centred**4).mean() / max((centred**2).mean() ** 2, np.finfo(np.float64).tiny))
    return "uniform" if kurtosis < 2.1 else "normal"


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
