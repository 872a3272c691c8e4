"""The PyTorch backend: from an experiment to a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from multibackend.errors import ConfigurationError, DataError, OutOfMemoryError
from multibackend.experiment import Experiment
from multibackend.protocol import Arrays
from multibackend.validation import Problems
from multibackend_torch.dropout import prepare_dropout
from multibackend_torch.memory import device_bytes, is_out_of_memory, program_bytes
from multibackend_torch.models import build_model, caller
from multibackend_torch.norm import prepare_statistics
from multibackend_torch.precision import Precision
from multibackend_torch.program import TorchProgram
from multibackend_torch.rematerialize import rematerialize
from multibackend_torch.spelling import SPELLINGS

__all__ = ["TorchBackend"]

STRATEGIES = ("eager", "compiled")


class TorchBackend:
    """See `multibackend.protocol.Backend` and `MemoryAware`."""

    name = "torch"
    spellings = SPELLINGS

    def devices(self) -> Sequence[str]:
        """CUDA devices first, then the CPU: "cuda:0", "cpu"."""
        return (*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu")

    def compile(
        self,
        experiment: Experiment,
        *,
        example: Arrays,
        device: str | None = None,
        strategy: str = "auto",
        windows_per_dispatch: int | None = None,
    ) -> TorchProgram:
        problems = Problems("Trainer")
        problems.choice("strategy", strategy, ("auto", *STRATEGIES))
        problems.raise_if_any()
        precision, chosen = Precision(experiment.precision), self._device(device)
        if chosen.type == "cpu":
            _keep_freed_memory()
        module = build_model(experiment.model, precision, int(experiment.seed), chosen)
        strategy = "eager" if strategy == "auto" else strategy
        dropout = prepare_dropout(
            module,
            int(experiment.seed),
            portable=experiment.dropout == "portable",
            rename=experiment.model.rename,
            compiled=strategy == "compiled",
        )
        statistics = prepare_statistics(module, experiment.batch_statistics)
        module = rematerialize(module, experiment.rematerialize)
        call = precision.mixed(caller(experiment.model, module), chosen)
        batch = {name: precision.to_device(array, chosen) for name, array in example.items()}
        module.eval()
        with torch.no_grad():
            outputs = call(module, batch, False)
        return TorchProgram(
            experiment,
            module,
            call,
            strategy=strategy,
            precision=precision,
            device=chosen,
            windows_per_dispatch=windows_per_dispatch,
            dropout=dropout,
            statistics=statistics,
            output_shape=tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else None,
        )

    def memory_of(
        self,
        experiment: Experiment,
        *,
        example: Arrays,
        device: str | None = None,
        strategy: str = "auto",
        windows_per_dispatch: int | None = None,
        limit: int | None = None,
    ) -> int:
        experiment = experiment.replace(on_nonfinite="skip")  # an example that is not finite must not end the trial
        try:
            # compiled or not, about the same is kept for the backward pass, and eager needs no minute to compile
            program = self.compile(experiment, example=example, device=device, windows_per_dispatch=1)
            return program_bytes(program, experiment, example, limit)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                raise
            words, size = str(error), int(experiment.micro_batch_size)
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        raise OutOfMemoryError(words, micro_batch_size=size, precision=experiment.precision)

    def read_weights(self, path: Path) -> dict[str, np.ndarray]:
        """A pickled `state_dict`, read with torch's weights-only loader; raises `DataError` for anything else."""
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DataError(f"{str(path)!r} is no state_dict that is safe to load: {error}") from error
        if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise DataError(f"{str(path)!r} holds no state_dict, but {type(found).__name__}")
        wide = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in found.items()}  # numpy has no bfloat16
        return {name: tensor.numpy() for name, tensor in wide.items()}

    def device_memory(self, device: str | None = None) -> int | None:
        return device_bytes(self._device(device))

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def _device(self, name: str | None) -> torch.device:
        try:
            device = torch.device(self.devices()[0] if name is None else name)
        except RuntimeError:
            device = None
        known = self.devices()
        if device is None or (
            str(device) not in known and device.type not in {known.partition(":")[0] for known in known}
        ):
            listed = ", ".join(map(repr, known))
            raise ConfigurationError("Trainer", [f"device {name!r} is not here; torch sees {listed}"])
        return device


def _keep_freed_memory() -> None:
    """Let the allocator keep what a micro-batch frees for the next one.

    glibc hands large blocks back to the kernel as they are freed, and the next micro-batch faults every page in again:
    a tenth of the time of a small convolutional network. It stops doing so up to the size of the largest block that
    was ever freed, 32 MiB at most (mallopt(3), dynamic mmap threshold). This block is never touched: it costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
