"""A metric written by the user: a mean of values, or one number of the whole evaluation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from multibackend.core.validation import Problems, is_real
from multibackend.errors import DataError
from multibackend.losses import Batch, check_function
from multibackend.metrics.base import Collector, Metric

__all__ = ["Custom"]


@dataclass(frozen=True)
class Custom(Metric):
    """A metric written by the user: of each element, then averaged, or of the whole evaluation set at once.

    Args:
        function: with `over="elements"` a function `(xp, outputs, batch) -> values` or `(values, weights)`,
            written against the array API standard with `xp` the backend's namespace, or a mapping from
            backend names to native functions `(outputs, batch) -> ...`; the metric is their weighted mean.
            With `over="set"` a function `(outputs, batch) -> number`, called once for each evaluation with
            numpy arrays of all its examples: `outputs` [examples, ...], or a dict by path where the model
            returns several and `output` picks none; `batch` the fields that it may read, by name.
        over: "elements" or "set".
        reads: for `over="set"`: the fields that the function reads. Only those and the outputs are kept until
            the end of the evaluation. None keeps every field.
        mode: whether a smaller value ("min") or a larger one ("max") is the better one.
        name: the function's own name unless given.

    >>> Custom(lambda xp, outputs, batch: outputs - batch["y"], name="bias").name
    'bias'
    >>> def correlation(outputs, batch):
    ...     return np.corrcoef(outputs[:, 0], batch["y"][:, 0])[0, 1]
    >>> metric = Custom(correlation, over="set", reads=("y",), mode="max")
    >>> metric.name, metric.better
    ('correlation', 'max')
    """

    function: Callable[..., Any] | Mapping[str, Callable[..., Any]]
    _: KW_ONLY
    mode: str = "min"
    over: str = "elements"
    reads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        own_name = getattr(self.function, "__name__", "<lambda>")
        if not self.name and not own_name.startswith("<"):
            object.__setattr__(self, "name", own_name)
        if isinstance(self.reads, str):
            object.__setattr__(self, "reads", (self.reads,))
        super().__post_init__()

    @property
    def better(self) -> str:
        return self.mode

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.reads or ())

    @property
    def over_set(self) -> bool:
        return self.over == "set"

    def collector(self) -> Collector:
        return _WholeSet(self)

    def _check(self, problems: Problems) -> None:
        problems.choice("mode", self.mode, ("min", "max"))
        problems.choice("over", self.over, ("elements", "set"))
        if not self.name:
            problems.add("name must be given for a custom metric: it is the key of the result")
        arguments = "outputs, batch" if self.over == "set" else "xp, outputs, batch"
        check_function(problems, "function", self.function, arguments)
        if self.over == "set" and isinstance(self.function, Mapping):
            problems.add('over="set" takes one function for every backend: it is called with numpy arrays')
        if self.reads is not None:
            for field in self.reads:
                problems.field_name("reads", field)
            if self.over != "set":
                problems.add('reads= is for over="set" only: values per element may read every field')


class _WholeSet:
    """Keeps the outputs and the fields of every batch."""

    def __init__(self, metric: Custom) -> None:
        self._metric = metric
        self._outputs: list[Any] = []
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, outputs: Any, batch: Batch) -> None:
        names = batch if self._metric.reads is None else self._metric.reads
        self._outputs.append(outputs)
        self._batches.append({name: np.asarray(batch[name]) for name in names})

    def result(self) -> float:
        function: Any = self._metric.function
        fields = {name: self._joined(name, [batch[name] for batch in self._batches]) for name in self._batches[0]}
        value = function(self._joined_outputs(), fields)
        number = value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value
        if not is_real(number):
            raise DataError(
                f"{self._metric.title}: the function must return one number for the whole set, got "
                f"{type(value).__name__} {getattr(value, 'shape', '')}".rstrip()
            )
        return float(number)

    def _joined_outputs(self) -> Any:
        if not isinstance(self._outputs[0], Mapping):
            return self._joined("outputs", self._outputs)
        paths = self._outputs[0]
        return {path: self._joined(path, [outputs[path] for outputs in self._outputs]) for path in paths}

    def _joined(self, what: str, arrays: list[np.ndarray]) -> np.ndarray:
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1 or any(array.ndim == 0 for array in arrays):
            raise DataError(
                f"{self._metric.title}: {what!r} has other shapes from batch to batch, {sorted(map(str, shapes))}, so "
                "that the whole set is no array; pad to one length, or return values per element (over='elements')"
            )
        return np.concatenate(arrays)
