"""The divisor: the one number that makes k micro-batches train like one large batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.losses import Loss

__all__ = ["Divisors", "window_divisors"]


class Divisors(NamedTuple):
    """The divisors of consecutive windows, and the weights that they come from.

    Attributes:
        full: float64 [windows, steps, terms], of each full micro-batch.
        ragged: float64 [terms], of the ragged last micro-batch of the last window.
        weights: float64 [windows, terms], the sum of the weights of each window; NaN where only the
            model's run tells.
    """

    full: np.ndarray
    ragged: np.ndarray
    weights: np.ndarray


def window_divisors(
    losses: Sequence[Loss], fields: Arrays, counts: np.ndarray, ragged: Arrays | None, *, normalize: str
) -> Divisors:
    """What the weighted sum of a micro-batch's losses is divided by, for each term of the loss.

    The loss of a window is, summed over its terms, the weighted mean over all elements e of all its
    micro-batches m, times the term's scale:

        L = scale * sum_m sum_e w_e l_e / sum_m sum_e w_e  =  sum_m (sum_e w_e l_e) / divisor_m

        divisor_m = sum_m sum_e w_e / scale        with normalize="window", the same for every micro-batch
        divisor_m = k * sum_{e in m} w_e / scale   with normalize="microbatch", the mean of the means of k micro-batches

    Where only the model's run tells the weights, their sum is left out (1 / scale and k / scale),
    and the backend divides by what the loss gave besides. A divisor is 0 where nothing weighs:
    nothing is added there.

    Args:
        losses: the terms.
        fields: arrays [room, steps, micro-batch, ...].
        counts: [windows], full micro-batches of each window.
        ragged: the last micro-batch of the last window, arrays [r, ...].
        normalize: "window" or "microbatch".
    """
    windows = {name: array[: len(counts)] for name, array in fields.items()}
    terms = [_term_divisors(loss, windows, counts, ragged, by_window=normalize == "window") for loss in losses]
    return Divisors(
        full=np.stack([term.full for term in terms], axis=-1),
        ragged=np.array([float(term.ragged) for term in terms]),
        weights=np.stack([term.weights for term in terms], axis=-1),
    )


def _term_divisors(
    loss: Loss, fields: Arrays, counts: np.ndarray, ragged: Arrays | None, *, by_window: bool
) -> Divisors:
    """Divisors of one term: [windows, steps], a number and [windows]."""
    scale = float(loss.scale)
    # of each window, the ragged one included
    micro_batches = counts.astype(np.int64)
    if ragged is not None:
        micro_batches[-1] += 1
    weights = loss.weight_sums(fields, 2)
    if weights is None:  # only the model's run tells them
        unknown = np.full(len(counts), np.nan)
        divisors = _over(np.ones(len(counts)) if by_window else micro_batches, scale)
        return Divisors(_at_each_step(divisors, fields), divisors[-1], unknown)
    # beyond a window's count the arrays hold room only, whose weights mean nothing
    steps = np.arange(weights.shape[1])
    weights = np.where(steps < counts[:, None], weights, 0.0)  # what lies past the count is unspecified
    ragged_weight = 0.0 if ragged is None else np.asarray(loss.weight_sums(ragged, 0)).item()
    totals = weights.sum(axis=1)
    totals[-1] += ragged_weight
    if by_window:
        divisors = _over(totals, scale)
        return Divisors(_at_each_step(divisors, fields), divisors[-1], totals)
    means = _over(weights * micro_batches[:, None], scale)
    return Divisors(means, _over(ragged_weight * micro_batches[-1:], scale)[0], totals)


def _over(weights: np.ndarray, scale: float) -> np.ndarray:
    """Weights over a term's scale; without end where the scale is 0, so that the term adds nothing."""
    return weights / scale if scale else np.full(np.shape(weights), np.inf)


def _at_each_step(divisors: np.ndarray, fields: Arrays) -> np.ndarray:
    """Repeat [windows] as [windows, steps]."""
    steps = next(iter(fields.values())).shape[1]
    return np.repeat(divisors[:, None], steps, axis=1)
