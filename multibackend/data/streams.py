"""Examples without random access, in an order of their own: generators, loaders, iterable datasets.

How many there are shows at the end of an epoch only. The trainer cuts them into micro-batches and
windows whatever batches they come in, and never holds more than two dispatches of them.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.validation import shown
from multibackend.data.fields import as_array, check_one_shape, concatenate, field_names, named
from multibackend.errors import DataError

__all__ = ["IterableSource", "Stream", "is_stream"]

_NOTHING = object()  # what no iterable gives
_FRESH = (
    "pass a function that returns a fresh iterator instead, for example train_data=lambda: read_examples(path), or an "
    "object whose __iter__ begins anew"
)


class Stream(Protocol):
    """Examples in an order of their own.

    Optional: `read_ahead = False` where reading in another thread is no gain.
    """

    fields: tuple[str, ...]

    def chunks(self, epoch: int, seed: int) -> Iterator[Fields]:
        """Iterate over the examples of an epoch, a few at a time: each field an array [n, ...] with any n.

        Must give the same examples whenever it is asked for the same epoch and seed.
        """
        ...

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Put chunks one below the other."""
        ...


class IterableSource:
    """Any iterable of examples or batches, or a function that returns one; an iteration is an epoch.

    Its own order is the order, `Experiment(shuffle=...)` has no say. To be repeatable, which
    `compare` and resuming need, it must give the same examples for the same epoch:

    - A function may take the epoch's number, `lambda epoch: read(shuffle_seed=epoch)`.
      `set_epoch(epoch)` of a dataset, or of a loader's sampler, is called.
    - A torch `DataLoader` that shuffles needs a generator, which is seeded for each epoch from the
      experiment's seed and the epoch's number.
    - A generator object can be read once: one epoch of one trainer.

    A run that goes on in the middle of an epoch reads what comes before and throws it away. An
    endless iterable has no epochs: end such a run with `fit(updates=...)`. At construction the
    iterable is opened once more, to see its fields.

    Args:
        data: the iterable or function: torch's `DataLoader` and `IterableDataset`, grain's
            `IterDataset` (worker processes by `mp_prefetch`) and `DataLoader`, HuggingFace's
            `IterableDataset`, a generator.
        fields: the names of the parts, where examples or batches are tuples.
        batched: whether it gives batches, arrays [n, ...] with any n, rather than single examples.
            None for what a torch `DataLoader` says, and single examples of everything else. Batches
            are cut anew into micro-batches.

    Raises:
        DataError: it is empty, or what it gives is no example; later where a batch has other fields
            than the first or of unequal lengths, and where an epoch cannot be read again.

    >>> source = IterableSource(lambda: ({"x": [float(i)]} for i in range(3)))
    >>> [chunk["x"].tolist() for chunk in source.chunks(0, 0)]
    [[[0.0]], [[1.0]], [[2.0]]]
    """

    def __init__(
        self,
        data: Iterable[Any] | Callable[..., Iterable[Any]],
        fields: Sequence[str] | None = None,
        *,
        batched: bool | None = None,
    ) -> None:
        if isinstance(data, type) or not (hasattr(data, "__iter__") or callable(data)):
            raise DataError(f"IterableSource takes an iterable or a function that returns one, got {shown(data)}")
        if batched is not None and not isinstance(batched, bool):
            raise DataError(f"batched must be True, False or None, got {batched!r}")
        loader = hasattr(data, "dataset") and hasattr(data, "batch_sampler")
        if batched is None:
            batched = loader and data.batch_sampler is not None  # type: ignore[union-attr]
        self._data = data
        self._batched = batched
        self._what = f"{'a batch' if batched else 'an example'} of the {type(data).__name__}"
        self._names = field_names(fields)
        self._check_shuffling()
        # A loader has worker processes for that; in this process it may share random numbers.
        self.read_ahead = not loader
        # A generator is its own iterator and can be read once: what was read of it is put back.
        self._once = data if isinstance(data, Iterator) else None
        first = next(self._once or self._open(0, 0), _NOTHING)
        if first is _NOTHING:
            raise DataError(f"the data are empty: iterating over {type(data).__name__} gives nothing")
        if self._once is not None:
            self._once = itertools.chain([first], self._once)
        self.fields = tuple(self._named(first))
        self._shapes = {name: array.shape[1:] for name, array in self._chunk(first).items()}

    def chunks(self, epoch: int, seed: int) -> Iterator[Fields]:
        """Iterate over the examples of an epoch, each field an array [n, ...]."""
        # Opened now, not at the first chunk: an iterable that cannot be read again fails here.
        if isinstance(self._data, Iterator):
            return map(self._chunk, self._take_once())
        return map(self._chunk, self._open(epoch, seed))

    def join(self, chunks: Sequence[Fields]) -> Fields:
        """Put chunks one below the other."""
        rows = concatenate(chunks)
        for name, array in rows.items():
            check_one_shape(name, {self._shapes[name], array.shape[1:]})
        return rows

    def _take_once(self) -> Iterator[Any]:
        if self._once is None:
            raise DataError(
                f"a {type(self._data).__name__} can be read once only, and a second pass (the next "
                "epoch, another trainer, or going back in the data) needs to begin anew; " + _FRESH
            )
        iterator = self._once
        self._once = None
        return iterator

    def _open(self, epoch: int, seed: int) -> Iterator[Any]:
        data: Any = self._data
        # In torch a loader's sampler, or the loader itself, has the order and the random numbers.
        owners: tuple[Any, ...] = (data, getattr(data, "sampler", None))
        for owner in owners:
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)
            if hasattr(getattr(owner, "generator", None), "manual_seed"):
                owner.generator.manual_seed(seed)
        if not hasattr(data, "__iter__"):
            data = data(epoch) if _takes_epoch(data) else data()
            if not hasattr(data, "__iter__"):
                kind = type(data).__name__
                raise DataError(f"the function given as data must return an iterator, got {kind}")
        return iter(data)

    def _check_shuffling(self) -> None:
        sampler = getattr(self._data, "sampler", None)
        if type(sampler).__name__ == "RandomSampler" and getattr(sampler, "generator", None) is None:
            raise DataError(
                "the DataLoader shuffles by the process's random numbers, so neither two backends nor a "
                "second run would see one order; pass it generator=torch.Generator(), which is seeded "
                "for each epoch from the experiment's seed, or give its dataset, which the trainer "
                "shuffles itself"
            )

    def _named(self, item: Any) -> Any:
        repair = "name the parts of tuples: mb.data.IterableSource(data, fields=('image', 'label'))"
        return named(item, self._names, what=self._what, repair=repair)

    def _chunk(self, item: Any) -> Fields:
        """Turn one item of the iterable into fields, each an array [n, ...]."""
        values = self._named(item)
        if values.keys() != set(self.fields):
            raise DataError(
                f"{self._what} has the fields {tuple(values)}, the first one had {self.fields}; every "
                "one needs the same"
            )
        # Copied, because an iterator may fill the same memory again for what comes next.
        arrays = {name: np.array(as_array(name, values[name])) for name in self.fields}
        if not self._batched:
            return {name: array[None] for name, array in arrays.items()}
        # As slices of the shapes: of a scalar, which has no length, it is ().
        lengths = {array.shape[:1] for array in arrays.values()}
        if len(lengths) > 1 or () in lengths:
            listed = ", ".join(f"{name!r}: {array.shape}" for name, array in arrays.items())
            raise DataError(
                f"the fields of a batch have unequal lengths (shapes {listed}); each needs one entry "
                "per example. If it is a single example, pass batched=False to mb.data.IterableSource"
            )
        return arrays


def is_stream(source: Any) -> bool:
    """Tell whether a source is read in its own order, with no known length."""
    return hasattr(source, "chunks") and hasattr(source, "join")


def _takes_epoch(function: Callable[..., Any]) -> bool:
    """Tell whether a function has a positional parameter without a default: the epoch's number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind in positional]
    if len(needed) > 1:
        raise DataError(
            f"the function given as data must take the epoch as its only argument, or none; it needs {needed}"
        )
    return bool(needed)
