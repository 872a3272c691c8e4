"""The next windows of a run: position in the data, accumulation schedule, checks on the host."""

from __future__ import annotations

import itertools

import numpy as np

from multibackend.accumulation import Accumulation
from multibackend.experiment import Experiment
from multibackend.losses import check_batch
from multibackend.windows import EpochReader, Position, WindowStack

__all__ = ["Feed"]


class Feed:
    """Reads windows from the training data, epoch after epoch, and checks them."""

    def __init__(self, experiment: Experiment) -> None:
        self._losses = tuple(experiment.loss_terms.values())
        self._reader = EpochReader(
            experiment.train_data,
            self._losses,
            micro_batch_size=int(experiment.micro_batch_size),
            seed=int(experiment.seed),
            shuffle=experiment.shuffle,
            drop_last=experiment.drop_last,
            normalize=experiment.normalize,
        )
        self._capacity = 0
        self.accumulation: Accumulation = experiment.accumulation
        self.position = Position()

    @property
    def examples(self) -> int:
        """Examples in an epoch."""
        return self._reader.length

    def example(self) -> dict[str, np.ndarray]:
        """A micro-batch, for its shapes."""
        return self._reader.source.take(np.arange(min(self._reader.micro_batch_size, self._reader.length)))

    def settled(self, update: int) -> Position:
        """The position of the window that makes the update with index `update`."""
        return self._reader.settle(self.position, self.accumulation.steps(update))

    def settle(self, position: Position, update: int) -> Position:
        """Where reading goes on after `position`: there, or at the beginning of the next epoch."""
        return self._reader.settle(position, self.accumulation.steps(update))

    def windows_per_epoch(self) -> int:
        """Windows of an epoch at the first update's number of micro-batches."""
        size = self.accumulation.steps(0) * self._reader.micro_batch_size
        return max(1, -(-self.examples // size))

    def next(self, update: int, windows: int, room: int, output_shape: tuple[int, ...] | None) -> WindowStack:
        """Up to `windows` windows of one size, the first of which makes the update with index `update`.

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
        stack = self._reader.read(self.settled(update), steps, capacity=self._capacity, room=room)
        for loss in self._losses:
            check_batch(loss, {n: a.reshape(-1, *a.shape[3:]) for n, a in stack.fields.items()}, output_shape)
            if stack.ragged is not None:
                check_batch(loss, stack.ragged, output_shape)
        self.position = stack.stop
        return stack
