"""How much memory an experiment takes on a device, measured on a program of its own."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multibackend.errors import OutOfMemoryError
from multibackend.experiment import Experiment
from multibackend.protocol import Position, Rates, WindowStack
from multibackend_torch.program import TorchProgram

__all__ = ["LiveBytes", "device_bytes", "is_out_of_memory", "program_bytes"]

# what torch says where a device has no room left: its allocators for CUDA and other accelerators, for hosts (Linux,
# macOS, Windows), and the libraries that allocate beside them
_REFUSALS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or a library that it calls, gave up for lack of memory.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)


def device_bytes(device: torch.device) -> int | None:
    """What is free on a CUDA device; None for a CPU, which shares its memory with everybody."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, and their most so far.

    A tensor counts from the operation that makes it until nobody holds its storage, autograd included. What a kernel
    uses for itself and gives back before it returns is not seen. More than `limit` bytes is an `OutOfMemoryError`, so
    that a trial ends before the machine is short of memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self._limit, self._seen = limit, set[int]()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was made outside."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or tensor.device.type == "meta":
            return
        self._seen.add(key)
        weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.most = max(self.most, self.now)
        if self._limit is not None and self.now > self._limit:
            raise OutOfMemoryError(
                f"more than {self._limit} bytes are needed", micro_batch_size=0, precision=str(tensor.dtype)
            )

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, torch.Tensor):
                    self.add(tensor)
        return made


def program_bytes(
    program: TorchProgram, experiment: Experiment, example: Mapping[str, np.ndarray], limit: int | None
) -> int:
    """The most that is held at once in two windows of two micro-batches like `example`, which make two updates.

    Two windows, because the optimizer's tensors are made by the first update; two micro-batches, because gradients
    are there already when the second needs its activations. Parameters and buffers count twice: a program keeps
    those it started from.
    """
    stack, rates = _window(experiment, example), Rates(0, np.zeros(2))
    if program._device.type == "cuda":
        return _measured_on_cuda(program, stack, rates)
    with LiveBytes(limit) as live:
        for tensor in (*program._module.parameters(), *program._module.buffers()):
            live.add(tensor)
        state, placed = program.init(), program.place(stack)
        for tensor in placed.fields.values():
            live.add(tensor)
        for _ in range(2):
            state, _ = program.run(state, placed, rates)
    return live.most


def _measured_on_cuda(program: TorchProgram, stack: WindowStack, rates: Rates) -> int:
    """The allocator keeps count there, of what kernels use for themselves too."""
    torch.cuda.reset_peak_memory_stats(program._device)
    held = sum(t.untyped_storage().nbytes() for t in (*program._module.parameters(), *program._module.buffers()))
    before = torch.cuda.memory_allocated(program._device) - held
    state, placed = program.init(), program.place(stack)
    for _ in range(2):
        state, _ = program.run(state, placed, rates)
    torch.cuda.synchronize(program._device)
    return torch.cuda.max_memory_allocated(program._device) - before


def _window(experiment: Experiment, example: Mapping[str, np.ndarray]) -> WindowStack:
    """A full window's fields, of which two micro-batches are run."""
    steps = max(2, experiment.accumulation.steps(0))
    sums = [loss.weight_sums(example, 0) for loss in experiment.loss_terms.values()]
    weighed_by_model = any(known is None for known in sums)
    weights = np.array([1.0 if known is None else max(2.0 * float(known), 1.0) for known in sums])
    return WindowStack(
        fields={name: np.repeat(array[None, None], steps, axis=1) for name, array in example.items()},
        counts=np.array([2], np.int32),
        divisors=np.tile(weights, (1, steps, 1)),
        ragged=None,
        ragged_divisors=np.ones(len(sums)),
        weights=np.where(weighed_by_model, np.nan, weights)[None],
        examples=np.array([2 * len(next(iter(example.values())))]),
        weighed_by_model=weighed_by_model,
        start=Position(),
        stop=Position(),
    )
