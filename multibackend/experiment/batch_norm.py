"""Batch statistics under gradient accumulation: BatchNorm with small micro-batches, and remedies.

A layer with batch statistics normalises each micro-batch by that micro-batch's own mean and
variance, so k micro-batches are not one large batch for it (Ioffe and Szegedy 2015). Remedies:

    "microbatch"  each micro-batch by its own statistics, after which running statistics move (default)
    "frozen"      layers normalise by their running statistics and leave them as they are
    "window"      like "microbatch", the momentum rescaled to the window: `window_momentum`

and `Trainer.recompute_statistics` after training (Wu & Johnson 2021, "Rethinking
'Batch' in BatchNorm").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["MODES", "SMALL_MICRO_BATCH", "small_micro_batch_message", "window_momentum"]

MODES = ("microbatch", "frozen", "window")

# Below this many examples the error of BatchNorm rises: figure 1 of Wu and He 2018,
# "Group normalization".
SMALL_MICRO_BATCH = 16


def window_momentum(momentum: float, steps: int) -> float:
    """Return m', with which `steps` micro-batches move statistics as far as one does with m.

        m' = 1 - (1 - m) ** (1 / steps)

    Args:
        momentum: m, the weight of the new value, in [0, 1].
        steps: micro-batches in the window.

    >>> round(1 - (1 - window_momentum(0.1, 4)) ** 4, 12)
    0.1
    """
    if momentum >= 1:  # log(0): the newest statistics alone, however many micro-batches there are
        return momentum
    # expm1 and log1p keep the digits that 1 - (1 - m)**(1/k) loses where m is small.
    return -math.expm1(math.log1p(-momentum) / steps)


def small_micro_batch_message(layers: Sequence[str], micro_batch_size: int) -> str:
    """Return what a run says once where a model has batch statistics and micro-batches are small."""
    shown = ", ".join(layers[:3])
    if len(layers) > 3:
        shown += ", ..."
    plural = "layer" if len(layers) == 1 else "layers"
    # The standard error of a mean over n independent values is their deviation over sqrt(n).
    error = round(100 / math.sqrt(micro_batch_size))
    return (
        f"{len(layers)} BatchNorm {plural} ({shown}) take their statistics from micro-batches of "
        f"{micro_batch_size} examples, fewer than {SMALL_MICRO_BATCH}: the mean over {micro_batch_size} "
        f"independent values is off by {error} % of their standard deviation, whatever "
        "gradient_accumulation_steps is. Use larger micro-batches, GroupNorm or LayerNorm, or "
        "Experiment(batch_statistics='frozen' or 'window'); Trainer.recompute_statistics() after "
        "training makes evaluation exact"
    )
