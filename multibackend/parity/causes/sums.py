"""Sums of earlier arrays: which, and how often each. Residuals, embeddings, scaled branches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from multibackend.core.arrays import Array
from multibackend.parity.causes.chains import scales
from multibackend.parity.causes.laws import aligned, noise_of
from multibackend.parity.causes.sides import Source

__all__ = ["Terms", "columns", "summed", "sums", "unified"]

Terms = tuple[tuple[str, str], ...]

_MOST_COLUMNS = 9
_MOST_ROWS = 4096  # that factors are fitted to; all of them decide


def columns(sources: Sequence[Source], shape: tuple[int, ...]) -> dict[str, Array]:
    """Arrays that could be terms of a sum of a shape: sources of that size, and parameters that broadcast to it."""
    found: dict[str, Array] = {}
    for source in sources:
        array = np.asarray(source.array)
        if array.dtype.kind != "f":
            continue
        if source.kind == "parameter":
            found.update(_broadcast(source, shape))
        elif array.size == int(np.prod(shape)):
            found[source.name] = np.asarray(array, np.float64).reshape(shape)
        elif array.shape == shape[1:]:  # the same for every example
            found[source.name] = np.broadcast_to(np.asarray(array, np.float64), shape)
    return found


def _broadcast(source: Source, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """A parameter added to every example: a bias, or the rows of a table of positions, from the first or the second."""
    array: np.ndarray = np.asarray(source.array, np.float64)
    if array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    width = int(array.shape[-1]) if array.ndim else 0
    if array.shape == shape[-1:]:
        yield source.name, np.broadcast_to(array, shape)
    if array.ndim == 2 and len(shape) == 3 and width == shape[2]:
        for start in (0, 1, 2):
            if len(array) >= shape[1] + start:
                name = source.name if start == 0 else f"{source.name} from row {start}"
                yield name, np.broadcast_to(array[start : start + shape[1]], shape)


def sums(found: dict[str, Array], target: Array) -> Iterator[tuple[Terms, str]]:
    """Terms and an activation of their sum that give the target: as few terms as do, factors by least squares.

    A relu, leaky or not, keeps the positive elements of a sum, which tell its terms; the others tell the slope.
    """
    flat = np.asarray(target, np.float64).ravel()
    names, positive = list(found)[:_MOST_COLUMNS], flat > 0
    for count in (1, 2, 3, 4):
        for chosen in itertools.combinations(names, count):
            matrix = np.stack([found[name].ravel() for name in chosen], axis=1)
            terms = _fitted(matrix, flat, chosen, target.shape)
            if terms is not None:
                yield terms, "none"
                return
            if count > 1 and count + 2 < positive.sum() < flat.size:
                terms = _fitted(matrix[positive], flat[positive], chosen, target.shape)
                slope = None if terms is None else _slope(summed(terms, found, target.shape), flat, positive)
                if terms is not None and slope is not None:
                    yield terms, "relu" if slope == 0 else f"leaky relu {slope:g}"
                    return


def summed(terms: Terms, found: dict[str, Array], sizes: tuple[int, ...]) -> Array | None:
    """The sum that terms stand for."""
    if any(name not in found for name, _ in terms):
        return None
    named = scales(*sizes)
    return sum(  # type: ignore[return-value]
        (named[text] if text in named else float(text)) * found[name] for name, text in terms
    )


def _slope(total: Array | None, flat: Array, positive: Array) -> float | None:
    """What multiplies the elements of a sum that are not positive, where one number does."""
    if total is None:
        return None
    x = np.asarray(total).ravel()[~positive]
    slope = float((x * flat[~positive]).sum() / max(float((x * x).sum()), 1e-300))
    return float(f"{slope:.6g}") if _near(np.where(positive, flat, slope * np.asarray(total).ravel()), flat) else None


def _fitted(matrix: Array, flat: Array, chosen: Sequence[str], shape: tuple[int, ...]) -> Terms | None:
    if len(flat) <= len(chosen) + 2:
        return None
    step = max(1, len(flat) // _MOST_ROWS)
    factors, _, rank, _ = np.linalg.lstsq(matrix[::step], flat[::step], rcond=None)
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
    scale = max(float(np.abs(second).max(initial=0.0)), 1e-300)
    return bool(float(np.abs(first - second).max(initial=0.0)) <= noise_of(second) * scale)


def unified(first: Sequence[Source], second: Sequence[Source]) -> list[Source]:
    """The second side's sources under the reference's names and in its layouts, where a source holds equal numbers."""
    renamed, taken = [], set()
    for source in second:
        partner = next((s for s in first if s.name not in taken and _partners(s, source)), None)
        if partner is None:
            clash = any(source.name == s.name for s in first)
            name = f"{source.name} (of the other model)" if clash else source.name
            renamed.append(Source(name, source.array, source.kind, source.inputs, source.part))
            continue
        taken.add(partner.name)
        array = aligned(partner.array, source.array)
        renamed.append(Source(partner.name, source.array if array is None else array, partner.kind, source.inputs))
    return renamed


def _partners(first: Source, second: Source) -> bool:
    if first.array.size != second.array.size or first.array.dtype.kind != second.array.dtype.kind:
        return False
    if (first.kind == "parameter") != (second.kind == "parameter"):
        return False
    moved = aligned(first.array, second.array)
    if moved is None:
        return False
    scale = max(float(np.abs(first.array).max(initial=0)), 1e-300)
    return bool(np.abs(np.asarray(first.array, np.float64) - moved).max(initial=0.0) <= 1e-5 * scale)
