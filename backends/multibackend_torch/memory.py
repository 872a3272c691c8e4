"""How much memory an experiment takes on a device, measured on a program of its own."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multibackend.core.arrays import Arrays
from multibackend.errors import OutOfMemoryError, UserCodeError
from multibackend.experiment import Experiment
from multibackend.protocol import Position, Rates, WindowStack
from multibackend_torch.program import PlacedWindows, TorchProgram
from multibackend_torch.step.window import TrainState

__all__ = ["LiveBytes", "device_bytes", "is_out_of_memory", "program_bytes"]

# what a RuntimeError says in place of torch.OutOfMemoryError: of accelerators, of hosts (Linux and
# macOS, Windows), of the libraries that allocate beside torch
_REFUSALS = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch, or a library that it calls, gave up for lack of memory.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, UserCodeError):  # of the model's or the loss's own code
        return error.__cause__ is not None and is_out_of_memory(error.__cause__)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)


def device_bytes(device: torch.device) -> int | None:
    """Return what is free on a CUDA device; None for a CPU, whose memory others use too."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors made inside that are alive, and their most so far.

    A tensor counts from the operation that makes it until nobody holds its storage, autograd
    included. What a kernel uses for itself and gives back before it returns is not counted.
    More than `limit` bytes is an `OutOfMemoryError`, so that a trial ends before the machine is
    short of memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._limit = limit
        self._alive = set[int]()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor that was made outside."""
        storage = tensor.untyped_storage()
        key = storage._cdata  # its address: a view has that of its base, so both count once
        size = storage.nbytes()
        if key in self._alive or tensor.device.type == "meta":
            return
        self._alive.add(key)
        # Python's object for a storage lives as long as the storage, which autograd may hold
        weakref.finalize(storage, self._remove, key, size)
        self.now += size
        self.most = max(self.most, self.now)
        if self._limit is not None and self.now > self._limit:
            problem = f"more than {self._limit} bytes are needed"
            raise OutOfMemoryError(problem, micro_batch_size=0, precision=str(tensor.dtype))

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return outputs


def program_bytes(program: TorchProgram, experiment: Experiment, example: Arrays, limit: int | None) -> int:
    """Measure the most that two updates hold at once, each of two micro-batches like `example`.

    Two updates, because the first makes the optimizer's tensors; two micro-batches, because
    gradients are there already when the second needs its activations. Parameters and buffers count
    twice: a program keeps those that it started from.
    """
    stack = _window(experiment, example)
    initial = [*program.module.parameters(), *program.module.buffers()]
    if program.device.type == "cuda":
        return _bytes_on_cuda(program, stack, initial)
    with LiveBytes(limit) as live:
        for tensor in initial:
            live.add(tensor)
        state = program.init()
        placed = program.place(stack)
        for tensor in placed.fields.values():  # torch.from_numpy is no operation on tensors
            live.add(tensor)
        _make_two_updates(program, state, placed)
    return live.most


def _bytes_on_cuda(program: TorchProgram, stack: WindowStack, initial: Iterable[torch.Tensor]) -> int:
    """Ask the allocator, which keeps count there, also of what kernels use for themselves."""
    torch.cuda.reset_peak_memory_stats(program.device)
    initial_bytes = sum(tensor.untyped_storage().nbytes() for tensor in initial)
    before = torch.cuda.memory_allocated(program.device) - initial_bytes
    _make_two_updates(program, program.init(), program.place(stack))
    torch.cuda.synchronize(program.device)
    return torch.cuda.max_memory_allocated(program.device) - before


def _make_two_updates(program: TorchProgram, state: TrainState, placed: PlacedWindows) -> None:
    rates = Rates(0, np.zeros(2))
    for _ in range(2):
        state, _ = program.run(state, placed, rates)


def _window(experiment: Experiment, example: Arrays) -> WindowStack:
    """Return a window whose fields have all its micro-batches, of which two are run."""
    # all of them, because the program puts the whole window on the device before it runs the first
    steps = max(2, experiment.held_steps)
    terms = list(experiment.loss_terms.values())
    weights = np.ones(len(terms))
    weighed_by_model = False
    for index, loss in enumerate(terms):
        weight = loss.weight_sums(example, 0)
        if weight is None:
            weighed_by_model = True
        else:  # 0 where an example has ignored labels only; a window without weight makes no update
            weights[index] = max(2.0 * float(weight), 1.0)
    return WindowStack(
        fields={name: np.repeat(array[None, None], steps, axis=1) for name, array in example.items()},
        counts=np.array([2], np.int32),
        divisors=np.tile(weights, (1, steps, 1)),
        ragged=None,
        ragged_divisors=np.ones(len(terms)),
        weights=np.where(weighed_by_model, np.nan, weights)[None],
        examples=np.array([2 * len(next(iter(example.values())))]),
        weighed_by_model=weighed_by_model,
        start=Position(),
        stop=Position(),
    )
