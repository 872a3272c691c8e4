"""Examples → micro-batches → windows.

An epoch visits the examples in one order. Each run of `micro_batch_size` of them is a micro-batch; each run of k
micro-batches is a window, which makes one update. The epoch's last window may hold fewer micro-batches, and its last
micro-batch fewer examples.

Windows travel to a backend as a `WindowStack`: several consecutive windows of one epoch in arrays
[windows, steps, micro-batch, ...], so that a backend may execute them in one dispatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.data.memory import aligned_empty
from multibackend.data.sources import Source
from multibackend.data.streams import Stream
from multibackend.errors import DataError
from multibackend.losses import Loss
from multibackend.order import order_of

__all__ = ["EpochReader", "Position", "WindowStack"]

Fields = dict[str, np.ndarray]


@dataclass(frozen=True)
class Position:
    """The place in the data: the next example is number `offset` of the order of epoch `epoch`."""

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class WindowStack:
    """One or more consecutive windows of an epoch.

    Attributes:
        fields: arrays [room, steps, micro-batch, ...] with room for at least `windows` windows; what lies past
            `windows` and `counts` is unspecified.
        counts: int32 [windows], how many full micro-batches of `fields` each window has.
        factors: float64 [windows, steps, terms], what multiplies the sum of a micro-batch's weighted losses, for each
            term of the loss. By window: scale / the sum of the window's weights. By micro-batch: scale / (its own
            weights * micro-batches of the window). Where `dynamic`, the weights are left out of it, and the backend
            divides by what the loss gave.
        ragged: the last micro-batch of the last window, arrays [r, ...] with r less than a micro-batch; else None.
        ragged_factors: float64 [terms], its factors.
        weights: float64 [windows, terms], the sum of the weights of each window; NaN where `dynamic`.
        examples: int64 [windows].
        dynamic: whether the weights are known only once the model has run. Then there is one term.
        start, stop: the position before the first and after the last window.
    """

    fields: Fields
    counts: np.ndarray
    factors: np.ndarray
    ragged: Fields | None
    ragged_factors: np.ndarray
    weights: np.ndarray
    examples: np.ndarray
    dynamic: bool
    start: Position
    stop: Position

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [windows], how many micro-batches each window has, the ragged one included."""
        sizes = self.counts.astype(np.int64)
        sizes[-1] += self.ragged is not None
        return sizes

    def micro_batches(self, window: int) -> Iterator[tuple[Fields, np.ndarray]]:
        """The micro-batches of one window, each with its factors [terms], the ragged one last."""
        for step in range(self.counts[window]):
            yield {name: array[window, step] for name, array in self.fields.items()}, self.factors[window, step]
        if self.ragged is not None and window == len(self) - 1:
            yield self.ragged, self.ragged_factors


class EpochReader:
    """Reads windows from a source, epoch after epoch, from any position.

    Args:
        source: the examples, with random access or as a stream.
        losses: the terms of the loss, which weigh the elements.
        micro_batch_size: examples per micro-batch.
        seed, shuffle: decide the order of each epoch.
        drop_last: drop an epoch's last window where it is not full.
        normalize: "window" for the weighted mean over the window, "microbatch" for the mean of micro-batch means.
    """

    def __init__(
        self,
        source: Source | Stream,
        losses: Sequence[Loss],
        *,
        micro_batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        normalize: str = "window",
    ) -> None:
        self.micro_batch_size = micro_batch_size
        self.order = order_of(source, seed=seed, shuffle=shuffle)
        self._losses = tuple(losses)
        self._drop_last, self._normalize = drop_last, normalize

    def read(self, position: Position, steps: Sequence[int], *, capacity: int, room: int = 1) -> WindowStack:
        """The windows after `position`, of `steps[0]`, `steps[1]`, ... micro-batches, as far as the epoch goes.

        The arrays make room for `capacity` micro-batches, at least `max(steps)`, and `room` windows, at least
        `len(steps)`. At least one window must be left in the epoch: see `settle`.
        """
        bounds = self._bounds(position, steps)
        start, stop = int(bounds[0]), int(bounds[-1])
        rows = self.order.take(position.epoch, start, stop - start)
        sizes = np.diff(bounds)
        counts = (sizes // self.micro_batch_size).astype(np.int32)
        ragged_size = int(sizes[-1] % self.micro_batch_size)
        ragged = {name: array[-ragged_size:] for name, array in rows.items()} if ragged_size else None
        fields = {name: self._arrange(array, counts, capacity, room) for name, array in rows.items()}
        factors, ragged_factors, weights = self._normalise(fields, counts, ragged)
        return WindowStack(
            fields=fields,
            counts=counts,
            factors=factors,
            ragged=ragged,
            ragged_factors=ragged_factors,
            weights=weights,
            examples=sizes,
            dynamic=bool(np.isnan(weights).any()),
            start=position,
            stop=Position(position.epoch, stop),
        )

    def settle(self, position: Position, steps: int) -> Position:
        """`position`, or the beginning of the next epoch where no window of `steps` micro-batches is left."""
        needed = steps * self.micro_batch_size if self._drop_last else 1
        enough = self.order.available(position.epoch, position.offset, needed) >= needed
        return position if enough else Position(position.epoch + 1, 0)

    def _bounds(self, position: Position, steps: Sequence[int]) -> np.ndarray:
        """Where windows begin and end in the epoch's order, as far as the epoch goes: int64 [windows + 1]."""
        offset, ends = position.offset, np.cumsum(steps) * self.micro_batch_size
        found = self.order.available(position.epoch, offset, int(ends[-1]))
        bounds = offset + np.append(0, ends[ends <= found])
        short = len(bounds) <= len(steps) and bounds[-1] < offset + found and not self._drop_last
        if len(bounds) == 1 and not short:
            raise DataError(
                f"drop_last=True leaves no window in epoch {position.epoch}: one window has {ends[0]} examples, the "
                f"epoch {offset + found}; use fewer accumulation steps or drop_last=False"
            )
        return np.append(bounds, offset + found) if short else bounds

    def _arrange(self, array: np.ndarray, counts: np.ndarray, capacity: int, room: int) -> np.ndarray:
        """Rows of consecutive windows → [room, capacity, micro-batch, ...]."""
        room, size, shape = max(room, len(counts)), self.micro_batch_size, array.shape[1:]
        if len(array) == room * capacity * size:
            return array.reshape(room, capacity, size, *shape)
        result = aligned_empty((room, capacity, size, *shape), array.dtype)
        if (counts[:-1] == capacity).all():  # all but the last window are full: their rows are contiguous
            rows = int(counts.sum()) * size
            flat = result.reshape(-1, *shape)
            flat[:rows], flat[rows:] = array[:rows], 0
            return result
        result[...] = 0
        row = 0
        for window, count in enumerate(counts):
            used = count * size
            result[window, :count] = array[row : row + used].reshape(count, size, *shape)
            row += used
        return result

    def _normalise(
        self, fields: Fields, counts: np.ndarray, ragged: Fields | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(factors, factors of the ragged micro-batch, weights of each window), as `WindowStack` has them."""
        whole = {name: array[: len(counts)] for name, array in fields.items()}
        terms = [self._normalise_term(loss, whole, counts, ragged) for loss in self._losses]
        factors, ragged_factors, weights = zip(*terms, strict=True)
        return np.stack(factors, axis=-1), np.array(ragged_factors), np.stack(weights, axis=-1)

    def _normalise_term(
        self, loss: Loss, fields: Fields, counts: np.ndarray, ragged: Fields | None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """([windows, steps], number, [windows]) of one term."""
        by_window, scale = self._normalize == "window", float(loss.scale)
        steps = counts + (np.arange(len(counts)) == len(counts) - 1) * (ragged is not None)
        sums = loss.weight_sums(fields, 2)
        if sums is None:
            share = scale * np.ones(len(counts)) if by_window else scale / steps
            return _per_step(share, fields), float(share[-1]), np.full(len(counts), np.nan)
        sums = np.where(np.arange(sums.shape[1]) < counts[:, None], sums, 0.0)
        last = np.zeros(1) if ragged is None else np.reshape(np.asarray(loss.weight_sums(ragged, 0)), 1)
        weights = sums.sum(axis=1)
        weights[-1] += last[0]
        if by_window:
            share = scale * _inverse(weights)
            return _per_step(share, fields), float(share[-1]), weights
        return scale * _inverse(sums) / steps[:, None], float(scale * _inverse(last)[0] / steps[-1]), weights


def _per_step(share: np.ndarray, fields: Fields) -> np.ndarray:
    """[windows] → [windows, steps], the same for every step of a window."""
    capacity = next(iter(fields.values())).shape[1]
    return np.repeat(share[:, None], capacity, axis=1)


def _inverse(weights: np.ndarray) -> np.ndarray:
    """1 / weights, and 0 where a weight is 0."""
    return np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)
