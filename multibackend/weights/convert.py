"""Weights of one framework's model as weights of another's: matched, converted, and checked by running both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from multibackend.core.validation import Problems
from multibackend.errors import CapabilityError, DataError, ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.metrics import Metric
from multibackend.parity.comparison import start_alike
from multibackend.protocol import NativeArrays, WeightsReader
from multibackend.protocol.registry import load_backend
from multibackend.training.input.feed import Feed
from multibackend.training.trainer import Trainer

__all__ = ["Conversion", "convert_weights"]

TOLERANCE = 1e-4  # of the largest output: float32 rounds at 6e-8, and a deep network amplifies it
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Conversion:
    """What `convert_weights` did.

    Attributes:
        matching: from the source's arrays to the target's.
        difference: the largest |a - b| of the two models' outputs on a micro-batch, each with its own weights, over the
            largest output; of their losses where the outputs are not one array.
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

    The file that is written is what the target framework's users expect: for torch a `state_dict` in safetensors
    (`load_state_dict(safetensors.torch.load_file(FILE))`), for Flax the arrays by their dotted path, kernels [in, out]
    (`flax.traverse_util.unflatten_dict(safetensors.flax.load_file(FILE), sep=".")`).

    Args:
        experiment: has a builder for both backends; its data serve to match and to check the models.
        weights: a safetensors file in the source's own names and layouts; or a torch pickle, read with torch's
            weights-only loader.
        output: where to write.
        source, target: backends.

    Raises:
        DataError: the file cannot be read.
        ParameterMatchError: it does not fit the source's model, or the two models do not pair up.
        CapabilityError: a backend does not tell its native names.

    >>> convert_weights(experiment, "torch.safetensors", "flax.safetensors").difference   # doctest: +SKIP
    2.1e-07
    """
    problems = Problems("convert")
    if source == target:
        problems.add(f"source and target must be two backends, both are {source!r}")
    problems.raise_if_any()
    experiment = experiment.replace(dropout="native", metrics=(), eval_data=None, ema_decay=None, ema_warmup=False)
    shape = Trainer(experiment, source).program.info.output_shape
    if shape is not None:
        experiment = experiment.replace(metrics=(_Outputs(name="outputs", size=shape),))
    trainers = Trainer(experiment, source), Trainer(experiment, target)
    _load(trainers[0], _read(Path(weights), source))
    matching = start_alike(*trainers)
    example = Feed(experiment).example()
    answers = [_outputs(trainer, example) for trainer in trainers]
    gap, size = np.abs(answers[0] - answers[1]).max(initial=0.0), np.abs(answers[0]).max(initial=0.0)
    snapshot = trainers[1].snapshot()
    written = _native(trainers[1]).to_native({**snapshot.model_state, **snapshot.parameters})
    _write(Path(output), written)
    difference = float(gap / max(size, np.finfo(np.float32).tiny)) if np.isfinite(gap) else float("inf")
    return Conversion(matching, difference, answers[0].size, len(written))


@dataclass(frozen=True, kw_only=True)
class _Outputs(Metric):
    """The model's outputs themselves."""

    size: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def sums(self, xp: Any, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return outputs, xp.sum(outputs) * 0 + 1

    def result(self, total: Any, weight: float) -> Any:
        return total


def _outputs(trainer: Trainer, example: Mapping[str, np.ndarray]) -> np.ndarray:
    size = len(next(iter(example.values())))
    found = trainer.evaluate(dict(example), batch_size=size)
    return np.atleast_1d(np.asarray(found.get("outputs", found["loss"]), np.float64))


def _native(trainer: Trainer) -> NativeArrays:
    native = trainer.program.info.native_arrays
    if native is None:
        raise CapabilityError(f"the backend {trainer.backend!r} does not tell its native names, which convert needs")
    return native


def _load(trainer: Trainer, arrays: Mapping[str, np.ndarray]) -> None:
    own = trainer.snapshot()
    given = _native(trainer).to_canonical(arrays)
    unknown = [name for name in given if name not in own.parameters and name not in own.model_state]
    missing = [name for name in own.parameters if name not in given]
    wrong = [
        f"{name}: shape {given[name].shape} given, {array.shape} needed"
        for name, array in {**own.model_state, **own.parameters}.items()
        if name in given and given[name].shape != array.shape
    ]
    lines = [*(f"missing: {name}" for name in missing), *(f"unknown: {name}" for name in unknown), *wrong]
    if lines:
        raise ParameterMatchError(
            f"the weights do not fit the {trainer.backend} model:" + "".join(f"\n  - {line}" for line in lines)
        )
    trainer.restore(
        replace(
            own,
            parameters={name: given[name].astype(array.dtype) for name, array in own.parameters.items()},
            model_state={n: given[n].astype(a.dtype) if n in given else a for n, a in own.model_state.items()},
        )
    )


def _read(path: Path, source: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"there are no weights at {str(path)!r}")
    if path.suffix in _PICKLES:
        backend = load_backend(source)
        if not isinstance(backend, WeightsReader):
            raise CapabilityError(f"the backend {source!r} reads no {path.suffix} files; convert them to safetensors")
        return backend.read_weights(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    except (SafetensorError, ValueError, TypeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as safetensors: {error}") from error


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({n: np.array(a, order="C") for n, a in arrays.items()}, temporary, metadata={"format": "pt"})
    temporary.replace(path)
