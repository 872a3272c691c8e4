"""The next windows of a run: position in the data, accumulation schedule, checks on the host, reading ahead."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from multibackend.data.streams import is_stream
from multibackend.experiment import Experiment
from multibackend.experiment.accumulation import Accumulation
from multibackend.losses import check_batch
from multibackend.protocol import Position, WindowStack
from multibackend.training.input.epoch_reader import EpochReader
from multibackend.training.input.read_ahead import ReadAhead

__all__ = ["Feed"]

Shape = tuple[int, ...] | None


class Feed:
    """Reads windows from the training data, epoch after epoch, and checks them.

    Args:
        experiment: whose training data are read.
        read_ahead: read the next windows in another thread while these run. None does where it can pay: for data that
            are no arrays in memory and that give the same examples when they are read twice. Data that draw random
            numbers may share the generator with the model's dropout, whose numbers would then depend on timing.
    """

    def __init__(self, experiment: Experiment, *, read_ahead: bool | None = None) -> None:
        self._source, self._losses = experiment.train_data, tuple(experiment.loss_terms.values())
        self._is_stream = is_stream(self._source)
        self._reader = EpochReader(
            self._source,
            self._losses,
            micro_batch_size=int(experiment.micro_batch_size),
            seed=int(experiment.seed),
            shuffle=experiment.shuffle,
            drop_last=experiment.drop_last,
            normalize=experiment.normalize,
        )
        self._capacity = 0
        self._ahead = ReadAhead()
        self._example: dict[str, np.ndarray] | None = None
        self.accumulation: Accumulation = experiment.accumulation
        self.position = Position()
        # sizes that depend on results not yet read leave nothing to read ahead
        self.read_ahead = self.accumulation.constant and (self._pays() if read_ahead is None else read_ahead)

    @property
    def examples(self) -> int | None:
        """Examples in an epoch; of a stream those of the last epoch, None before its end."""
        return self._reader.order.length

    def example(self) -> dict[str, np.ndarray]:
        """A micro-batch, for its shapes."""
        if self._example is None:
            self._example = self._first_examples()
        return self._example

    def settled(self, update: int) -> Position:
        """The position of the window that makes the update with index `update`."""
        return self.settle(self.position, update)

    def settle(self, position: Position, update: int) -> Position:
        """Where reading goes on after `position`: there, or at the beginning of the next epoch."""
        return self._reader.settle(position, self.accumulation.steps(update))

    def windows_per_epoch(self) -> int | None:
        """Windows of an epoch at the first update's number of micro-batches; None while its length is unknown."""
        size = self.accumulation.steps(0) * self._reader.micro_batch_size
        return None if self.examples is None else max(1, -(-self.examples // size))

    def next(self, update: int, room: int, output_shape: Shape, *, left: int | None, epochs: int | None) -> WindowStack:
        """Up to `room` windows of one size, the first of which makes the update with index `update`.

        At most `left` windows; None for no such limit. Neither are windows read ahead beyond that, nor from epoch
        number `epochs` on.
        """
        start = self.settled(update)
        stack = self._ahead.claim(start)
        if stack is None or (left is not None and len(stack) > left):
            stack = self._read(start, update, room if left is None else min(room, left), room, output_shape)
        self.position = stack.stop
        if self.read_ahead:
            after = None if left is None else left - len(stack)
            self._begin_next(update + len(stack), room, output_shape, left=after, epochs=epochs)
        return stack

    def rest(self) -> None:
        """End the thread that reads ahead; what it has read is kept for the next call of `next`."""
        self._ahead.rest()

    def check(self, batch: Mapping[str, Any], output_shape: Shape, source: Any = None) -> None:
        """Let the loss check a host batch; of padded sequences the outputs are as long as the batch's target."""
        for loss in self._losses:
            target, shape = getattr(loss, "target", ""), output_shape
            if shape and target in getattr(source or self._source, "padded", ()):
                length = np.shape(self.example()[target])[1:2]
                if shape[1:2] == length:
                    shape = (shape[0], np.shape(batch[target])[1], *shape[2:])
            check_batch(loss, batch, shape)

    def _begin_next(self, update: int, room: int, output_shape: Shape, *, left: int | None, epochs: int | None) -> None:
        """Begin to read what the next call of `next` will ask for, if there will be one."""
        start, windows = self.settled(update), room if left is None else min(room, left)
        if windows <= 0 or (epochs is not None and start.epoch >= epochs):
            return
        try:  # an iterator may draw random numbers or fork as it begins: not beside the device's work
            self._reader.order.open(start.epoch)
        except Exception:
            return  # raised again when it is that epoch's turn
        self._ahead.submit(start, lambda: self._read(start, update, windows, room, output_shape))

    def _read(self, start: Position, update: int, windows: int, room: int, output_shape: Shape) -> WindowStack:
        """Windows from `start` on.

        Where the accumulation schedule changes, the rest must wait: should one of these windows be skipped, the next
        one still makes an update of the old size.
        """
        size = self.accumulation.steps(update)
        if not self.accumulation.constant:
            sizes = (self.accumulation.steps(update + index) for index in range(windows))
            windows = sum(1 for _ in itertools.takewhile(lambda other: other == size, sizes))
        steps = [size] * windows
        # a schedule given as a function may surprise with a larger window, which then costs one compilation
        self._capacity = max(self._capacity, self.accumulation.largest or max(steps))
        stack = self._reader.read(start, steps, capacity=self._capacity, room=room)
        self.check({n: a.reshape(-1, *a.shape[3:]) for n, a in stack.fields.items()}, output_shape)
        if stack.ragged is not None:
            self.check(stack.ragged, output_shape)
        if self._is_stream:
            self.settle(stack.stop, update)  # look ahead here, so that nobody waits to know whether more follows
        return stack

    def _first_examples(self) -> dict[str, np.ndarray]:
        order, size = self._reader.order, self._reader.micro_batch_size
        if self._is_stream:
            return order.take(0, 0, order.available(0, 0, size))
        return self._source.take(np.arange(min(size, len(self._source))))

    def _pays(self) -> bool:
        """Whether reading ahead can pay and changes nothing."""
        if getattr(self._source, "in_memory", False) or not getattr(self._source, "read_ahead", True):
            return False
        return self._is_stream or _same(self.example(), self._first_examples())


def _same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, second[name], equal_nan=array.dtype.kind == "f") for name, array in first.items())
