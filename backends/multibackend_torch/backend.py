"""The PyTorch backend: from an experiment to a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from multibackend.core.arrays import Arrays
from multibackend.core.paths import shapes_by_path
from multibackend.core.user_code import check_outputs
from multibackend.core.validation import Problems
from multibackend.errors import ConfigurationError, DataError, OutOfMemoryError
from multibackend.experiment import Experiment
from multibackend.losses import check_batch, check_gradient
from multibackend.protocol import Execution
from multibackend_torch.idioms import IDIOMS
from multibackend_torch.memory import device_bytes, is_out_of_memory, program_bytes
from multibackend_torch.model.build import build_model, caller
from multibackend_torch.model.dropout import prepare_dropout
from multibackend_torch.model.indices import IndexedFields
from multibackend_torch.model.names import named_parameters, named_state
from multibackend_torch.model.norm import prepare_statistics
from multibackend_torch.model.observe import host
from multibackend_torch.model.outputs import nonlinear_outputs
from multibackend_torch.model.precision import Precision
from multibackend_torch.model.rematerialize import rematerialize
from multibackend_torch.program import TorchProgram
from multibackend_torch.step.losses import loss_sum

__all__ = ["TorchBackend"]

EXECUTION_MODES = ("eager", "compiled")


class TorchBackend:
    """See `multibackend.protocol.Backend`, `MemoryAware`, `WeightsReader` and `Idiomatic`."""

    name = "torch"
    idioms = IDIOMS

    def devices(self) -> Sequence[str]:
        """CUDA devices first, then the CPU: "cuda:0", "cpu"."""
        return (*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu")

    def compile(self, experiment: Experiment, *, example: Arrays, execution: Execution) -> TorchProgram:
        problems = Problems("Trainer")
        problems.choice("execution", execution.mode, ("auto", *EXECUTION_MODES))
        problems.raise_if_any()
        precision = Precision(experiment.precision)
        device = self._device(execution.device)
        if device.type == "cpu":
            _keep_freed_memory()
        module = build_model(experiment.model, precision, int(experiment.seed), device)
        mode = "eager" if execution.mode == "auto" else execution.mode
        dropout = prepare_dropout(
            module,
            int(experiment.seed),
            portable=experiment.dropout == "portable",
            rename=experiment.model.rename,
            compiled=mode == "compiled",
        )
        statistics = prepare_statistics(module, experiment.batch_statistics)
        module = rematerialize(module, experiment.rematerialize)
        call = precision.mixed(caller(experiment.model, module), device)
        batch = {name: precision.to_device(array, device) for name, array in example.items()}
        module.eval()
        indexed = IndexedFields(example, batch, {**named_state(module), **named_parameters(module)})
        # with its graph, which tells what an output ends in, and whether the loss has a gradient
        with indexed:
            outputs = call(module, batch, False)
        check_outputs(outputs, torch.Tensor)
        output_shapes = shapes_by_path(outputs, experiment.picked_outputs)
        for loss in experiment.loss_terms.values():
            check_batch(loss, example, output_shapes)  # before the loss meets outputs that do not fit
        totals = [loss_sum(loss, outputs, batch)[0] for loss in experiment.loss_terms.values()]
        check_gradient(dict(module.named_parameters()), any(total.requires_grad for total in totals))
        return TorchProgram(
            experiment,
            module,
            call,
            precision=precision,
            device=device,
            execution=replace(execution, device=str(device), mode=mode),
            dropout=dropout,
            statistics=statistics,
            outputs=(output_shapes, nonlinear_outputs(outputs, experiment)),
            index_ranges=indexed.ranges,
        )

    def memory_of(
        self, experiment: Experiment, *, example: Arrays, execution: Execution, limit: int | None = None
    ) -> int:
        experiment = experiment.replace(on_nonfinite="skip")  # an example that is not finite must not end the trial
        try:
            # compiled or not, about the same is kept for the backward pass, and eager needs no
            # minute to compile
            eager = Execution(device=execution.device, windows_per_dispatch=1)
            program = self.compile(experiment, example=example, execution=eager)
            return program_bytes(program, experiment, example, limit)
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                raise
            message = str(error)
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        # raised out here, where the error's traceback no longer holds the trial's tensors
        size = int(experiment.micro_batch_size)
        raise OutOfMemoryError(message, micro_batch_size=size, precision=experiment.precision)

    def read_weights(self, path: Path) -> dict[str, np.ndarray]:
        """A pickled `state_dict`, read with torch's weights-only loader; raises `DataError` for anything else."""
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DataError(f"{str(path)!r} is no state_dict that is safe to load: {error}") from error
        if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise DataError(f"{str(path)!r} holds no state_dict, but {type(tensors).__name__}")
        return {name: host(tensor) for name, tensor in tensors.items()}

    def device_memory(self, device: str | None = None) -> int | None:
        return device_bytes(self._device(device))

    def is_out_of_memory(self, error: BaseException) -> bool:
        return is_out_of_memory(error)

    def _device(self, name: str | None) -> torch.device:
        known = self.devices()
        try:
            device = torch.device(known[0] if name is None else name)
        except RuntimeError:
            device = None
        types = {name.partition(":")[0] for name in known}  # "cuda" names the current one of them
        if device is None or (str(device) not in known and device.type not in types):
            listed = ", ".join(map(repr, known))
            raise ConfigurationError("Trainer", [f"device {name!r} is not here; torch sees {listed}"])
        return device


def _keep_freed_memory() -> None:
    """Let the allocator keep what a micro-batch frees for the next one.

    glibc hands large blocks back to the kernel as they are freed, and the next micro-batch faults
    every page in again: a tenth of the time of a small convolutional network. It stops doing so up
    to the size of the largest block that was ever freed, 32 MiB at most (mallopt(3), dynamic mmap
    threshold). This block is never touched: it costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
