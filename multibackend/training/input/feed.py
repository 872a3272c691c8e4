"""The next windows of a run: position in the data, accumulation schedule, checks on the host, reading ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from multibackend.core.paths import Shapes
from multibackend.core.user_code import origin
from multibackend.data.streams import is_stream
from multibackend.errors import DataError
from multibackend.experiment import Experiment
from multibackend.experiment.accumulation import Accumulation
from multibackend.losses import Loss, check_batch
from multibackend.protocol import Position, ProgramInfo, WindowStack, check_indices
from multibackend.training.input.epoch_reader import EpochReader
from multibackend.training.input.read_ahead import ReadAhead

__all__ = ["Feed"]


_SOURCE = "train_data, as it was read"


class Feed:
    """Reads windows from the training data and checks them.

    Args:
        experiment: whose training data are read.
        read_ahead: read the next windows in another thread while these run. None does where it can
            pay: for data that are no arrays in memory and that give the same examples when they are
            read twice. Data that draw random numbers may share the generator with the model's
            dropout, whose numbers would then depend on timing.

    Attributes:
        accumulation: how many micro-batches each update has.
        read_ahead: whether it does.
    """

    def __init__(self, experiment: Experiment, *, read_ahead: bool | None = None) -> None:
        self._source = experiment.train_data
        self._losses = tuple(experiment.loss_terms.values())
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
        wanted = self._pays() if read_ahead is None else read_ahead
        # sizes that depend on results not yet read leave nothing to read ahead
        self.read_ahead = self.accumulation.constant and wanted

    @property
    def examples(self) -> int | None:
        """Examples in an epoch; of a stream those of the last epoch, None before its end."""
        return self._reader.order.length

    def example(self) -> dict[str, np.ndarray]:
        """A micro-batch, for its shapes."""
        if self._example is None:
            with origin(_SOURCE):
                self._example = self._first_examples()
        return self._example

    def settle(self, position: Position, update: int) -> Position:
        """Where the window begins that makes the update with index `update`: there, or in the next epoch."""
        return self._reader.settle(position, self.accumulation.steps(update))

    def windows_per_epoch(self) -> int | None:
        """Windows of an epoch at the first update's number of micro-batches; None while its length is unknown."""
        if self.examples is None:
            return None
        size = self.accumulation.steps(0) * self._reader.micro_batch_size
        return max(1, -(-self.examples // size))  # rounded up

    def next(
        self, position: Position, update: int, room: int, info: ProgramInfo, *, most: int | None, epochs: int | None
    ) -> WindowStack:
        """Read up to `room` windows of one size, the first of which makes the update with index `update`.

        Args:
            position: where the windows before ended.
            update: index of the first window's update.
            room: windows that the arrays have room for.
            info: of the program, which the data are held against.
            most: windows that are wanted in all, from this one on; None for no limit. None are read
                ahead beyond it.
            epochs: no windows are read ahead from this epoch on.
        """
        start = self.settle(position, update)
        stack = self._ahead.claim(start)
        if stack is None or (most is not None and len(stack) > most):
            windows = room if most is None else min(room, most)
            stack = self._read(start, update, windows, room, info)
        if self.read_ahead:
            after = None if most is None else most - len(stack)
            self._begin_next(stack.stop, update + len(stack), room, info, most=after, epochs=epochs)
        return stack

    def end_thread(self) -> None:
        """End the thread that reads ahead; what it has read is kept for the next call of `next`."""
        self._ahead.end_thread()

    def check(
        self,
        batch: Mapping[str, Any],
        info: ProgramInfo,
        source: Any = None,
        example_of: Callable[[int], str] | None = None,
    ) -> None:
        """Check a host batch: indices against the model's tables, and what the losses read.

        `example_of` names the example in a row of the batch.
        """
        check_indices(batch, info.index_ranges, example_of)
        padded = getattr(source or self._source, "padded", ())
        for loss in self._losses:
            shapes = info.output_shapes
            if loss.aligned_field in padded:
                shapes = _as_long_as(batch, self.example(), loss, shapes)
            check_batch(loss, batch, shapes)

    def _begin_next(
        self, position: Position, update: int, room: int, info: ProgramInfo, *, most: int | None, epochs: int | None
    ) -> None:
        """Begin to read what the next call of `next` will ask for, if there will be one."""
        start = self.settle(position, update)
        windows = room if most is None else min(room, most)
        if windows <= 0 or (epochs is not None and start.epoch >= epochs):
            return
        try:  # an iterator may draw random numbers or fork as it begins: not beside the device's work
            self._reader.order.open(start.epoch)
        except Exception:
            return  # raised again when it is that epoch's turn
        self._ahead.submit(start, lambda: self._read(start, update, windows, room, info))

    def _read(self, start: Position, update: int, windows: int, room: int, info: ProgramInfo) -> WindowStack:
        """Read windows from `start` on.

        Where the accumulation schedule changes, the rest must wait: should one of these windows be
        skipped, the next one still makes an update of the old size.
        """
        size = self.accumulation.steps(update)
        if not self.accumulation.constant:
            sizes = (self.accumulation.steps(update + index) for index in range(windows))
            windows = sum(1 for _ in itertools.takewhile(lambda other: other == size, sizes))
        # a schedule given as a function may surprise with a larger window, which then costs
        # one compilation
        self._capacity = max(self._capacity, self.accumulation.largest or size)
        order = self._reader.order
        with origin(_SOURCE):
            stack = self._reader.read(start, [size] * windows, capacity=self._capacity, room=room)
        _check_kinds(stack, self.example())
        flat = {name: _flat(array) for name, array in stack.fields.items()}
        self.check(flat, info, example_of=lambda row: order.name_of(start.epoch, _offset_of(stack, row)))
        if stack.ragged is not None:
            first = stack.stop.offset - len(next(iter(stack.ragged.values())))
            self.check(stack.ragged, info, example_of=lambda row: order.name_of(start.epoch, first + row))
        if self._is_stream:
            self.settle(stack.stop, update)  # look ahead here, so that nobody waits to know whether more follows
        return stack

    def _first_examples(self) -> dict[str, np.ndarray]:
        size = self._reader.micro_batch_size
        if self._is_stream:
            order = self._reader.order
            return order.take(0, 0, order.available(0, 0, size))
        return self._source.take(np.arange(min(size, len(self._source))))

    def _pays(self) -> bool:
        """Whether reading ahead can pay and changes nothing."""
        if getattr(self._source, "in_memory", False) or not getattr(self._source, "read_ahead", True):
            return False
        return self._is_stream or _same(self.example(), self._first_examples())


def _as_long_as(batch: Mapping[str, Any], example: Mapping[str, Any], loss: Loss, output_shapes: Shapes) -> Shapes:
    """The shapes of outputs that are as long as the batch's own padded target, which the example's may not be."""
    path = loss.output or ""
    target = loss.aligned_field
    shape = output_shapes.get(path)
    if target is None or not shape or shape[1:2] != np.shape(example[target])[1:2]:
        return output_shapes
    return {**output_shapes, path: (shape[0], np.shape(batch[target])[1], *shape[2:])}


def _flat(array: np.ndarray) -> np.ndarray:
    """[windows, steps, micro-batch, ...] as one batch."""
    return array.reshape(-1, *array.shape[3:])


def _offset_of(stack: WindowStack, row: int) -> int:
    """Where in the epoch's order the example in a row of `_flat` arrays stands."""
    shape = next(iter(stack.fields.values())).shape[:3]
    window, step, place = map(int, np.unravel_index(row, shape))
    return stack.start.offset + int(stack.examples[:window].sum()) + step * shape[2] + place


def _same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, second[name], equal_nan=array.dtype.kind == "f") for name, array in first.items())


def _check_kinds(stack: WindowStack, example: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` where a field holds other numbers than in the beginning, integers for floats for one."""
    for name, first in example.items():
        array = stack.fields.get(name)
        if array is not None and array.dtype.kind != first.dtype.kind:
            raise DataError(
                f"field {name!r} was {first.dtype} in the first examples and is {array.dtype} in epoch "
                f"{stack.start.epoch} from example {stack.start.offset} on; give it one type in the data"
            )
