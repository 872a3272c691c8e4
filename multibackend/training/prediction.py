"""Using what was trained: the model's outputs over data, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import Fields
from multibackend.core.paths import arrays_by_path, is_array, pick
from multibackend.core.validation import Problems
from multibackend.data import Source, Stream, as_source
from multibackend.errors import CapabilityError, ConfigurationError, DataError
from multibackend.experiment import Experiment
from multibackend.protocol import NativeModel, Predicts, Program, check_indices
from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend.training.input.order import batches

__all__ = ["as_native_model", "as_predicting", "predict", "prediction_size", "prediction_source"]


def as_predicting(program: Program, backend: str) -> Predicts:
    """Return the program as one that predicts; raise `CapabilityError`."""
    if not isinstance(program, Predicts):
        raise CapabilityError(f"the backend {backend!r} does not hand out what its model returns, which predict needs")
    return program


def as_native_model(program: Program, backend: str) -> NativeModel:
    """Return the program as one that hands out its model; raise `CapabilityError`."""
    if not isinstance(program, NativeModel):
        problem = f"the backend {backend!r} does not hand out its model"
        raise CapabilityError(
            f"{problem}; trainer.predict(data) gives its outputs, trainer.parameters() its parameters"
        )
    return program


def prediction_source(data: Any, experiment: Experiment) -> Source | Stream:
    """`data` as a source with every field that the model reads, or the experiment's own.

    Raises:
        ConfigurationError: there are no data.
        DataError: they lack a field.
    """
    if data is None:
        if experiment.eval_data is None:
            problem = "there are no data; give them, trainer.predict(data), or eval_data= to the Experiment"
            raise ConfigurationError("predict", [problem])
        return experiment.eval_data
    model = experiment.model
    # one array for the one input needs no name
    if is_array(data) and len(model.inputs) == 1 and not isinstance(data, Mapping):
        data = {model.inputs[0]: data}
    source = as_source(data)
    problems = Problems("predict")
    experiment.check_fields("the data", source, problems, evaluated=False, computes_loss=False)
    if problems.found:
        raise DataError(problems.sentences[0])
    return source


def prediction_size(batch_size: int | None, output: object, experiment: Experiment) -> int:
    """Examples per batch; raises `ConfigurationError` for that and for what is no path."""
    problems = Problems("predict")
    if batch_size is not None:
        problems.integer("batch_size", batch_size, minimum=1)
    if output is not None and (not isinstance(output, str) or not output):
        problem = f"output must be a path into what the model returns, such as 'logits' or '0', got {output!r}"
        problems.add(problem, wrong_type=not isinstance(output, str))
    problems.raise_if_any()
    return int(batch_size or experiment.eval_batch_size or experiment.micro_batch_size)


def predict(
    program: Predicts,
    state: Any,
    experiment: Experiment,
    source: Source | Stream,
    size: int,
    *,
    backend: str,
    output: str | None,
    ema: bool,
) -> Any:
    """The model's outputs, or the part at a path, over a source in batches of `size`, one below the other.

    Raises:
        ConfigurationError: there is nothing at that path.
        DataError: an array of the outputs is not one row per example, or cannot be put below that of another batch.
    """
    options = {"ema": True} if ema else {}  # a backend without moving averages need not know the word
    parts = []
    for number, batch in enumerate(batches(source, size)):
        first = number * size
        check_indices(batch, program.info.index_ranges, lambda row, first=first: f"example {first + row}")
        outputs = program.predict(state, _read_by_model(batch, experiment, backend), **options)
        part = pick(outputs, output)
        _check_rows(part, len(next(iter(batch.values()))), output)
        parts.append(part)
    return _concatenated(parts)


def _read_by_model(batch: Fields, experiment: Experiment, backend: str) -> Fields:
    """Return the fields that the model reads: all of them, where the user's function calls it."""
    model = experiment.model
    if model.call(backend) is not None:
        return batch
    prefixes = tuple(f"{name}." for name in model.inputs)  # an input may name a part, whose fields lie below it
    return {name: array for name, array in batch.items() if name in model.inputs or name.startswith(prefixes)}


def _check_rows(outputs: Any, rows: int, output: str | None) -> None:
    """Raise `DataError` unless every array of the outputs has one row per example."""
    arrays = arrays_by_path(outputs)
    if not arrays:
        raise DataError(f"the model returned no array that could be predicted, but {type(outputs).__name__}")
    whole = {path: array for path, array in arrays.items() if array.shape[:1] == (rows,)}
    for path, array in arrays.items():
        if path in whole:
            continue
        place = ".".join(part for part in (output, path) if part)
        named = f"the output {place!r}" if place else "the model's output"
        repair = "the first axis must be the batch, so that batches can be put one below the other"
        if whole:
            fitting = ".".join(part for part in (output, next(iter(whole))) if part)
            repair = f"name one that has a row for each, output={fitting!r}"
        raise DataError(f"{named} has the shape {list(array.shape)} for a batch of {rows} examples; {repair}")


def _concatenated(parts: Sequence[Any]) -> Any:
    """Put outputs of one structure one below the other, array by array; what is no array is that of the first batch."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(arrays_in(part, _is_numpy) for part in parts), strict=True)
    return with_arrays(parts[0], [_stacked(arrays) for arrays in columns], _is_numpy)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        listed = " and ".join(str([*array.shape]) for array in _two_unlike(arrays))
        raise DataError(
            f"two batches gave outputs of the shapes {listed}, which cannot be put one below the other; predict data "
            "of one length at a time"
        )
    return np.concatenate(arrays)


def _two_unlike(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    first = arrays[0]
    return first, next(array for array in arrays if array.shape[1:] != first.shape[1:])


def _is_numpy(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray)
