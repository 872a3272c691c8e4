"""Weights of one framework's model as another's: matched, converted, checked by running both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.checkpoint.weights_file import read_arrays
from multibackend.core.arrays import Arrays
from multibackend.errors import CapabilityError, ConfigurationError, DataError, ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.metrics import Metric
from multibackend.parity.comparison import start_alike
from multibackend.protocol import NativeArrays, WeightsReader
from multibackend.protocol.registry import load_backend
from multibackend.training.input.feed import Feed
from multibackend.training.trainer import Trainer
from multibackend.weights.files import write_arrays

__all__ = ["Conversion", "convert_weights"]

TOLERANCE = 1e-4  # of the largest output: float32 rounds at 6e-8, and a deep network amplifies it
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_OUTPUT = "output "  # what the names of these metrics begin with
_SMALLEST_OUTPUT = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Conversion:
    """What `convert_weights` did.

    Attributes:
        matching: from the source's arrays to the target's.
        difference: the largest |a - b| of the two models' outputs on a micro-batch, each with its
            own weights, over the largest output; of their losses where the outputs are not one
            array.
        outputs: how many numbers were compared.
        arrays: how many were written.
    """

    matching: Matching
    difference: float
    outputs: int
    arrays: int

    @property
    def agrees(self) -> bool:
        """Whether both models compute the same within float32's rounding."""
        return self.difference <= TOLERANCE


def convert_weights(
    experiment: Experiment, weights: str | Path, output: str | Path, *, source: str = "torch", target: str = "jax"
) -> Conversion:
    """Write the weights of one backend's model as another's, in the target's own names and layouts.

    The file that is written is what the target framework's users expect: for torch a `state_dict`
    in safetensors (`load_state_dict(safetensors.torch.load_file(FILE))`), for Flax the arrays by
    their dotted path, kernels [in, out]
    (`flax.traverse_util.unflatten_dict(safetensors.flax.load_file(FILE), sep=".")`).

    Args:
        experiment: has a builder for both backends; its data serve to match and to check the
            models.
        weights: a safetensors file in the source's own names and layouts; or a torch pickle, read
            with torch's weights-only loader.
        output: where to write.
        source, target: backends.

    Raises:
        DataError: the file cannot be read.
        ParameterMatchError: it does not fit the source's model, or the two models do not pair up.
        CapabilityError: a backend does not tell its native names.

    >>> convert_weights(experiment, "torch.safetensors", "flax.safetensors").difference   # doctest: +SKIP
    2.1e-07
    """
    if source == target:
        raise ConfigurationError("convert", [f"source and target must be two backends, both are {source!r}"])
    # the models are only evaluated: no dropout to pair, no metrics, no average, no start but the file's
    experiment = experiment.replace(
        dropout="native", metrics=(), eval_data=None, ema_decay=None, ema_warmup=False, initial="native"
    )
    experiment = experiment.replace(metrics=_output_metrics(experiment, source, target))
    source_trainer = Trainer(experiment, source)
    target_trainer = Trainer(experiment, target)
    _check_same_shape(source_trainer, target_trainer)
    _load(source_trainer, _read(Path(weights), source))
    matching = start_alike(source_trainer, target_trainer)
    example = Feed(experiment).example()
    reference = _outputs(source_trainer, example)
    difference = _difference(reference, _outputs(target_trainer, example))
    snapshot = target_trainer.snapshot()
    arrays = _native(target_trainer).to_native({**snapshot.model_state, **snapshot.parameters})
    # written whatever the difference is: the caller decides, and may look into the file
    write_arrays(Path(output), arrays, {"format": "pt"})
    return Conversion(matching, difference, reference.size, len(arrays))


@dataclass(frozen=True, kw_only=True)
class _Outputs(Metric):
    """The model's outputs themselves."""

    size: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def sums(self, xp: Any, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return outputs, xp.sum(outputs) * 0 + 1  # the weight 1, on the device of the outputs

    def result(self, total: Any, weight: float) -> Any:
        return total


def _output_metrics(experiment: Experiment, source: str, target: str) -> list[_Outputs]:
    """A metric for each array that both models return at one path; none where they have no path in common."""
    # a trainer for the shapes alone: the metrics need them, and they are known once the model is built
    shapes = Trainer(experiment, source).program.info.output_shapes
    if "" not in shapes:
        others = Trainer(experiment, target).program.info.output_shapes
        shapes = {path: shape for path, shape in shapes.items() if others.get(path) == shape}
    return [
        _Outputs(name=f"{_OUTPUT}{path}", output=path or None, size=shape) for path, shape in shapes.items() if shape
    ]


def _check_same_shape(source: Trainer, target: Trainer) -> None:
    """Raise `ParameterMatchError` where outputs are not alike, which as a metric would be broadcast to one shape."""
    shape = source.program.info.output_shape
    other = target.program.info.output_shape
    if shape != other:
        raise ParameterMatchError(
            f"the two models are not one: on a micro-batch the outputs of {source.backend} have the shape {shape}, "
            f"those of {target.backend} {other} (None: no single array); let both builders return the same"
        )


def _outputs(trainer: Trainer, example: Mapping[str, np.ndarray]) -> np.ndarray:
    examples = len(next(iter(example.values())))
    metrics = trainer.evaluate(dict(example), batch_size=examples)  # all in one batch
    arrays = [np.ravel(value) for name, value in metrics.items() if name.startswith(_OUTPUT)]
    return np.concatenate(arrays or [np.ravel(metrics["loss"])]).astype(np.float64)


def _difference(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Return max|a - b| / max|a|, infinite where that is no number."""
    gap = np.abs(reference - outputs).max(initial=0.0)
    if not np.isfinite(gap):
        return float("inf")
    return float(gap / max(np.abs(reference).max(initial=0.0), _SMALLEST_OUTPUT))


def _native(trainer: Trainer) -> NativeArrays:
    native = trainer.program.info.native_arrays
    if native is None:
        raise CapabilityError(f"the backend {trainer.backend!r} does not tell its native names, which convert needs")
    return native


def _load(trainer: Trainer, arrays: Arrays) -> None:
    """Give a trainer the weights of a file in its backend's own names; all mismatches are told."""
    snapshot = trainer.snapshot()
    needed = {**snapshot.model_state, **snapshot.parameters}
    weights = _native(trainer).to_canonical(arrays)
    # model state may be missing, since some files keep parameters only
    problems = [f"missing: {name}" for name in snapshot.parameters if name not in weights]
    problems += [f"unknown: {name}" for name in weights if name not in needed]
    for name, array in needed.items():
        if name in weights and weights[name].shape != array.shape:
            problems.append(f"{name}: shape {weights[name].shape} given, {array.shape} needed")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise ParameterMatchError(f"the weights do not fit the {trainer.backend} model:{listed}")
    parameters = {name: weights[name].astype(array.dtype) for name, array in snapshot.parameters.items()}
    state = {name: weights.get(name, array).astype(array.dtype) for name, array in snapshot.model_state.items()}
    trainer.restore(replace(snapshot, parameters=parameters, model_state=state))


def _read(path: Path, source: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"there are no weights at {str(path)!r}")
    if path.suffix in _PICKLES:
        backend = load_backend(source)
        if not isinstance(backend, WeightsReader):
            raise CapabilityError(f"the backend {source!r} reads no {path.suffix} files; convert them to safetensors")
        return backend.read_weights(path)  # numpy cannot read these, only their framework
    return read_arrays(path)[0]
