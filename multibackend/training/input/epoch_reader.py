"""Examples → micro-batches → windows.

An epoch visits the examples in one order. Each run of `micro_batch_size` of them is a micro-batch;
each run of k micro-batches is a window, which makes one update. The epoch's last window may hold
fewer micro-batches, and its last micro-batch fewer examples.

Windows travel to a backend as a `WindowStack`: several consecutive windows of one epoch in arrays
[windows, steps, micro-batch, ...], so that a backend may execute them in one dispatch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multibackend.data.memory import aligned_empty
from multibackend.data.sources import Source
from multibackend.data.streams import Stream, is_stream
from multibackend.errors import DataError
from multibackend.losses import Loss
from multibackend.protocol import Position, WindowStack
from multibackend.training.input.divisors import window_divisors
from multibackend.training.input.order import order_of

__all__ = ["EpochReader"]

_LARGEST = 2**63  # below which int64 counts


class EpochReader:
    """Reads windows from a source, epoch after epoch, from any position.

    Args:
        source: the examples, with random access or as a stream.
        losses: the terms of the loss, which weigh the elements.
        micro_batch_size: examples per micro-batch.
        seed, shuffle: decide the order of each epoch.
        drop_last: drop an epoch's last window where it is not full.
        normalize: "window" for the weighted mean over the window, "microbatch" for the mean
            of micro-batch means.
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
        self.order = order_of(source, seed=seed, shuffle=shuffle)
        self._length = None if is_stream(source) else self.order.length
        # all of a short epoch is one micro-batch, for which no more memory is taken than it has
        longest = micro_batch_size if self._length is None or drop_last else max(1, self._length)
        self.micro_batch_size = min(micro_batch_size, longest)
        self._most_held = 1  # full micro-batches of a stream's largest window so far
        self._losses = tuple(losses)
        self._drop_last = drop_last
        self._normalize = normalize

    def read(self, position: Position, steps: Sequence[int], *, capacity: int, room: int = 1) -> WindowStack:
        """The windows after `position`, of `steps[0]`, `steps[1]`, ... micro-batches, as far as the epoch goes.

        The arrays make room for `room` windows, at least `len(steps)`, of `capacity` micro-batches,
        the most that any window of the run may have; or fewer, see `_held`. At least one window
        must be left in the epoch: see `settle`.
        """
        bounds = self._bounds(position, steps)
        start = int(bounds[0])
        stop = int(bounds[-1])
        # one read for all windows: a source may be slow to ask
        rows = self.order.take(position.epoch, start, stop - start)
        sizes = np.diff(bounds)
        counts = (sizes // self.micro_batch_size).astype(np.int32)
        ragged_size = int(sizes[-1] % self.micro_batch_size)
        ragged = None
        if ragged_size:
            ragged = {name: array[-ragged_size:] for name, array in rows.items()}
        capacity = self._held(capacity, int(counts.max()))
        fields = {name: self._arrange(array, counts, capacity, room) for name, array in rows.items()}
        divisors = window_divisors(self._losses, fields, counts, ragged, normalize=self._normalize)
        return WindowStack(
            fields=fields,
            counts=counts,
            divisors=divisors.full,
            ragged=ragged,
            ragged_divisors=divisors.ragged,
            weights=divisors.weights,
            examples=sizes,
            weighed_by_model=bool(np.isnan(divisors.weights).any()),
            start=position,
            stop=Position(position.epoch, stop),
        )

    def settle(self, position: Position, steps: int) -> Position:
        """`position`, or the beginning of the next epoch where no window of `steps` micro-batches is left."""
        # a window that is not full counts where it is not dropped: one example is enough
        needed = steps * self.micro_batch_size if self._drop_last else 1
        enough = self.order.available(position.epoch, position.offset, needed) >= needed
        return position if enough else Position(position.epoch + 1, 0)

    def _held(self, capacity: int, count: int) -> int:
        """Return for how many micro-batches a window's arrays make room: at most for those it can hold.

        `capacity` are asked for and `count` are there. A window costs the memory of its arrays, and
        another size of them costs a compilation: an epoch that is shorter than a window decides
        once for all; where its length is unknown a power of two does, so that epochs which turn
        out longer seldom ask for another.
        """
        if self._length is not None:
            return max(1, min(capacity, self._length // self.micro_batch_size))
        self._most_held = max(self._most_held, count)
        return max(1, min(capacity, 1 << (self._most_held - 1).bit_length()))

    def _bounds(self, position: Position, steps: Sequence[int]) -> np.ndarray:
        """Where windows begin and end in the epoch's order, as far as the epoch goes: int64 [windows + 1]."""
        offset = position.offset
        # numbers of Python where 64 bits are too few: a window may be larger than any epoch, by any factor
        is_small = int(max(steps)) * len(steps) * self.micro_batch_size < _LARGEST
        ends = np.cumsum(np.array(steps, np.int64 if is_small else object)) * self.micro_batch_size
        available = self.order.available(position.epoch, offset, int(ends[-1]))
        full = ends[(ends <= available).astype(bool)].astype(np.int64)
        bounds = offset + np.append(0, full)
        # what is left behind the last full window makes a shorter one, unless it is dropped
        has_partial = len(bounds) <= len(steps) and bounds[-1] < offset + available and not self._drop_last
        if len(bounds) == 1 and not has_partial:
            raise DataError(
                f"drop_last=True leaves no window in epoch {position.epoch}: one window has {ends[0]} examples, the "
                f"epoch {offset + available}; use fewer accumulation steps or drop_last=False"
            )
        return np.append(bounds, offset + available) if has_partial else bounds

    def _arrange(self, array: np.ndarray, counts: np.ndarray, capacity: int, room: int) -> np.ndarray:
        """Arrange the rows of consecutive windows as [room, capacity, micro-batch, ...]."""
        room = max(room, len(counts))
        size = self.micro_batch_size
        shape = array.shape[1:]
        if len(array) == room * capacity * size:  # nothing to fill up: a view will do
            return array.reshape(room, capacity, size, *shape)
        result = aligned_empty((room, capacity, size, *shape), array.dtype)
        if (counts[:-1] == capacity).all():  # all but the last window are full: their rows are contiguous
            rows = int(counts.sum()) * size
            flat = result.reshape(-1, *shape)
            flat[:rows] = array[:rows]
            flat[rows:] = 0
            return result
        result[...] = 0
        row = 0
        for window, count in enumerate(counts):
            used = count * size
            result[window, :count] = array[row : row + used].reshape(count, size, *shape)
            row += used
        return result
