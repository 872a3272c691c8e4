"""Sums of earlier arrays: which, and how often each. Residuals, embeddings, scaled branches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.parity.causes.chains import scales
from multibackend.parity.causes.formulas import aligned, least_squares, noise_of
from multibackend.parity.causes.recorded_layers import Source

__all__ = ["Terms", "columns", "summed", "sums", "unified"]

Terms = tuple[tuple[str, str], ...]
"""(name of an array, name of its factor) of each term."""

_MOST_COLUMNS = 9
_MOST_TERMS = 4
_MOST_ROWS = 4096  # that factors are fitted to; all of them decide
_TINY = 1e-300


def columns(sources: Sequence[Source], shape: tuple[int, ...]) -> dict[str, Array]:
    """Arrays that could be terms of a sum of a shape: sources, and parameters that broadcast."""
    terms: dict[str, Array] = {}
    for source in sources:
        if source.array.dtype.kind != "f":
            continue
        array = np.asarray(source.array, np.float64)
        if source.kind == "parameter":
            terms.update(_broadcast(source.name, array, shape))
        elif array.size == np.prod(shape):
            terms[source.name] = array.reshape(shape)
        elif array.shape == shape[1:]:  # the same for every example
            terms[source.name] = np.broadcast_to(array, shape)
    return terms


def _broadcast(name: str, array: Array, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """A parameter added to every example: a bias, or the rows of a table of positions."""
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.shape == shape[-1:]:
        yield name, np.broadcast_to(array, shape)
    if array.ndim == 2 and len(shape) == 3 and array.shape[1] == shape[2]:
        # some models keep the first rows of the table for padding or for a token that is not there
        names = (name, f"{name} from row 1", f"{name} from row 2")
        for start, table in enumerate(names):
            if len(array) >= shape[1] + start:
                rows = array[start : start + shape[1]]
                yield table, np.broadcast_to(rows, shape)


def sums(terms: Arrays, target: Array) -> Iterator[tuple[Terms, str]]:
    """Yield the terms and an activation of their sum that give the target: as few as do.

    Factors are fitted by least squares. A relu, leaky or not, keeps the positive elements of a sum, which
    tell its terms; the others tell the slope.
    """
    flat = np.asarray(target, np.float64).ravel()
    positive = flat > 0
    names = list(terms)[:_MOST_COLUMNS]
    for count in range(1, _MOST_TERMS + 1):
        for chosen in itertools.combinations(names, count):
            matrix = np.stack([terms[name].ravel() for name in chosen], axis=1)
            fitted = _fitted(matrix, flat, chosen, target.shape)
            if fitted is not None:
                yield fitted, "none"
                return
            # one array through an activation is tried elsewhere, through every activation
            if count == 1 or not count + 2 < positive.sum() < flat.size:
                continue
            fitted = _fitted(matrix[positive], flat[positive], chosen, target.shape)
            if fitted is None:
                continue
            activation = _relu(summed(fitted, terms, target.shape), flat, positive)
            if activation is not None:
                yield fitted, activation
                return


def summed(terms: Terms, arrays: Mapping[str, Array], sizes: tuple[int, ...]) -> Array | None:
    """The sum that terms stand for; None where an array is not there."""
    if any(name not in arrays for name, _ in terms):
        return None
    named = scales(*sizes)
    total = np.zeros(())
    for name, text in terms:
        factor = named[text] if text in named else float(text)
        total = total + factor * arrays[name]
    return total


def _relu(total: Array | None, flat: Array, positive: Array) -> str | None:
    """The relu of a sum, leaky or not, where one number multiplies what is not positive."""
    if total is None:
        return None
    total = total.ravel()
    x = total[~positive]
    slope = float((x * flat[~positive]).sum() / max(float((x * x).sum()), _TINY))
    if not _near(np.where(positive, flat, slope * total), flat):
        return None
    slope = float(f"{slope:.6g}")
    return "relu" if slope == 0 else f"leaky relu {slope:g}"


def _fitted(matrix: Array, flat: Array, chosen: Sequence[str], shape: tuple[int, ...]) -> Terms | None:
    """The terms with the factors that give a sum to rounding; None where none do."""
    if len(flat) <= len(chosen) + 2:
        return None
    step = max(1, len(flat) // _MOST_ROWS)
    solution = least_squares(matrix[::step], flat[::step])
    if solution is None:
        return None
    factors, rank = solution
    if rank < len(chosen) or not _near(matrix[::step] @ factors, flat[::step]):
        return None
    if not _near(matrix @ factors, flat) or (np.abs(factors) < 1e-9).any():
        return None
    texts = [_text(float(factor), shape) for factor in factors]
    return tuple(sorted(zip(chosen, texts, strict=True)))


def _text(factor: float, sizes: tuple[int, ...]) -> str:
    """The name of a usual factor, else its digits."""
    for name, value in scales(*sizes).items():
        if abs(factor - value) <= 1e-9 * abs(value):
            return name
    return f"{factor:.12g}"


def _near(first: Array, second: Array) -> bool:
    """Whether every element is the same to rounding, NaN being near to nothing."""
    scale = max(float(np.abs(second).max(initial=0.0)), _TINY)
    return bool(float(np.abs(first - second).max(initial=0.0)) <= noise_of(second) * scale)


def unified(first: Sequence[Source], second: Sequence[Source]) -> list[Source]:
    """The second side's sources by the reference's names and in its layouts, where they are one."""
    renamed = []
    names = {source.name for source in first}
    unpaired = list(first)
    for source in second:
        partner = _in_reference_terms(source, unpaired)
        if partner is not None:
            unpaired = [candidate for candidate in unpaired if candidate.name != partner.name]
            renamed.append(partner)
        elif source.name in names:
            renamed.append(replace(source, name=f"{source.name} (of the other model)"))
        else:
            renamed.append(source)
    return renamed


def _in_reference_terms(source: Source, candidates: Sequence[Source]) -> Source | None:
    """A source as the candidate that is the same array, loosely: both models computed it."""
    array = source.array
    for candidate in candidates:
        if candidate.array.dtype.kind != array.dtype.kind:
            continue
        if (candidate.kind == "parameter") != (source.kind == "parameter"):
            continue
        moved = aligned(candidate.array, array)
        if moved is None:
            continue
        scale = max(float(np.abs(candidate.array).max(initial=0)), _TINY)
        difference = np.abs(np.asarray(candidate.array, np.float64) - moved)
        if difference.max(initial=0.0) <= 1e-5 * scale:
            return replace(candidate, array=moved)
    return None
