"""In which order an epoch visits the examples, and how many there are as far as that is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.rng import epoch_order, stream_seed
from multibackend.core.user_code import add_origin
from multibackend.data.sources import Source
from multibackend.data.streams import Stream, is_stream
from multibackend.errors import DataError

__all__ = ["IndexedOrder", "Order", "StreamOrder", "batches", "order_of"]

# more than have windows whose results are not read, of which it is asked where their epoch ends
_EPOCHS_KNOWN = 4096
_STREAMS = 0x6D62_7374_7265_616D  # the stream of seeds for iterables: "mbstream"


class Order(Protocol):
    """The examples of every epoch, one after the other. `length`: of an epoch, None while unknown."""

    length: int | None

    def open(self, epoch: int) -> None:
        """Get ready to read an epoch."""
        ...

    def available(self, epoch: int, offset: int, wanted: int) -> int:
        """How many of the `wanted` examples that follow example `offset` of an epoch exist."""
        ...

    def name_of(self, epoch: int, offset: int) -> str:
        """What a message calls example `offset` of an epoch's order."""
        ...

    def take(self, epoch: int, offset: int, count: int) -> Fields:
        """`count` examples from number `offset` on, which must be available: each field an array [count, ...]."""
        ...


def order_of(source: Source | Stream, *, seed: int, shuffle: bool) -> Order:
    """The order in which a source is read."""
    return StreamOrder(source, seed) if is_stream(source) else IndexedOrder(source, seed, shuffle)  # type: ignore[arg-type]


def batches(source: Source | Stream, size: int) -> Iterator[Fields]:
    """A whole source once, not shuffled, `size` examples at a time."""
    order = order_of(source, seed=0, shuffle=False)
    offset = 0
    while count := order.available(0, offset, size):
        yield order.take(0, offset, count)
        offset += count


class IndexedOrder:
    """Random access: `multibackend.core.rng.epoch_order` decides."""

    def __init__(self, source: Source, seed: int, shuffle: bool) -> None:
        self.length: int = len(source)
        self._source = source
        self._seed = seed
        self._shuffle = shuffle
        self._order: tuple[int, np.ndarray] | None = None  # (epoch, order): one epoch is kept

    def open(self, epoch: int) -> None:
        """Nothing to do."""

    def available(self, epoch: int, offset: int, wanted: int) -> int:
        return max(0, min(wanted, self.length - offset))

    def name_of(self, epoch: int, offset: int) -> str:
        return f"example {self._indices(epoch, offset, offset + 1)[0]}"

    def take(self, epoch: int, offset: int, count: int) -> Fields:
        return self._source.take(self._indices(epoch, offset, offset + count))

    def _indices(self, epoch: int, start: int, stop: int) -> np.ndarray:
        if not self._shuffle:  # without the whole order, which of 10^12 examples would fill any memory
            return np.arange(start, stop)
        if self._order is None or self._order[0] != epoch:
            try:
                order = epoch_order(self._seed, epoch, self.length, shuffle=True)
            except MemoryError as error:
                raise DataError(
                    f"the order of {self.length} examples does not fit in memory; pass shuffle=False, or data that are "
                    "read in an order of their own (an iterable, see mb.data.IterableSource)"
                ) from error
            self._order = (epoch, order)
        return self._order[1][start:stop]


class StreamOrder:
    """A stream's own order. Holds the examples that were read and not yet passed; reads on as far as it is asked to.

    Going back behind them, and forward to where a run stopped, reads the epoch from its beginning.
    """

    def __init__(self, stream: Stream, seed: int) -> None:
        self._stream = stream
        self._seed = seed
        self._lengths: dict[int, int] = {}  # of the last epochs that were read to their end
        # (epoch being read, how many of its examples are known to exist). One attribute, because
        # the trainer looks at it while another thread reads
        self._known = (-1, 0)
        self._first = 0  # the number of the first example in the buffer
        self._buffer: deque[Fields] = deque()
        self._chunks: Iterator[Fields] = iter(())

    @property
    def length(self) -> int | None:
        """Examples of the last epoch that was read to its end; None before."""
        return next(reversed(self._lengths.values()), None)

    def open(self, epoch: int) -> None:
        if self._known[0] != epoch:
            self._open(epoch)

    def available(self, epoch: int, offset: int, wanted: int) -> int:
        if epoch not in self._lengths and (self._known[0] != epoch or self._known[1] < offset + wanted):
            self._fill(epoch, offset, offset + wanted)
        known = self._lengths.get(epoch, self._known[1])
        return max(0, min(wanted, known - offset))

    def name_of(self, epoch: int, offset: int) -> str:
        return f"example {offset} of epoch {epoch}"

    def take(self, epoch: int, offset: int, count: int) -> Fields:
        self._fill(epoch, offset, offset + count)
        if self._known[1] < offset + count:
            raise DataError(
                f"epoch {epoch} had at least {offset + count} examples at first and now has {self._known[1]}; the "
                "iterable must give the same examples whenever it is asked for the same epoch"
            )
        parts = []
        start = self._first
        stop = offset + count
        for chunk in self._buffer:
            rows = _rows(chunk)
            if start + rows > offset and start < stop:
                parts.append(_cut(chunk, max(0, offset - start), min(rows, stop - start)))
            start += rows
        return self._stream.join(parts)

    def _open(self, epoch: int) -> None:
        self._buffer.clear()
        self._first = 0
        self._known = (-1, 0)  # not open, should the next line raise
        self._chunks = iter(self._stream.chunks(epoch, stream_seed(self._seed, _STREAMS, epoch)))
        self._known = (epoch, 0)

    def _fill(self, epoch: int, offset: int, stop: int) -> None:
        """Read until example `stop` - 1 or the end of the epoch; forget what lies before `offset`."""
        if self._known[0] != epoch or offset < self._first:
            self._open(epoch)
        while self._known[1] < stop:
            self._forget(offset)
            try:
                chunk = next(self._chunks, None)
            except BaseException as error:
                add_origin(error, f"the iterable given as train_data or eval_data, in epoch {epoch}")
                self._known = (-1, 0)  # a generator that raised has ended, its epoch has not: begin anew next time
                raise
            if chunk is None:
                self._end(epoch)
                return
            self._buffer.append(chunk)
            self._known = (epoch, self._known[1] + _rows(chunk))
        self._forget(offset)

    def _forget(self, offset: int) -> None:
        while self._buffer and self._first + _rows(self._buffer[0]) <= offset:
            self._first += _rows(self._buffer.popleft())

    def _end(self, epoch: int) -> None:
        if self._known[1] == 0:
            self._known = (-1, 0)
            raise DataError(
                f"epoch {epoch} is empty: the iterable gave examples before and gives none now, so it can be read "
                "once only; pass a function that returns a fresh iterator, for example "
                "train_data=lambda: read_examples(path)"
            )
        self._lengths[epoch] = self._known[1]
        if len(self._lengths) > _EPOCHS_KNOWN:
            del self._lengths[min(self._lengths)]


def _rows(chunk: Fields) -> int:
    return len(next(iter(chunk.values())))


def _cut(chunk: Fields, start: int, stop: int) -> Fields:
    if start == 0 and stop == _rows(chunk):
        return chunk
    return {name: array[start:stop] for name, array in chunk.items()}
