"""How much memory an experiment takes on a device, told by the compiler before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import CapabilityError, UserCodeError
from multibackend.protocol import Rates
from multibackend_jax.program import JaxProgram
from multibackend_jax.step.dispatch import Dispatch
from multibackend_jax.step.execution import DivisorShape, Steering
from multibackend_jax.step.scan import Scan

__all__ = ["compiled_programs", "device_bytes", "is_out_of_memory", "program_bytes"]

# what XLA says where the device has no room left, at compilation, at run time, and on hosts
_REFUSALS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether XLA gave up for lack of memory: RESOURCE_EXHAUSTED, by its name or in its words.

    >>> is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."))
    True
    """
    if isinstance(error, UserCodeError):  # of the model's or the loss's own code
        return error.__cause__ is not None and is_out_of_memory(error.__cause__)
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _REFUSALS)


def device_bytes(device: Any) -> int | None:
    """Return the memory that this process may use on an accelerator; None for a CPU."""
    if device.platform == "cpu":
        return None
    statistics = device.memory_stats() or {}  # None on platforms that keep none
    return statistics.get("bytes_limit")


def program_bytes(program: JaxProgram, example: Arrays, steps: int) -> int:
    """Return the most bytes in use at once while windows run: state, windows, temporaries.

    For each compiled program: arguments + outputs - what is shared by both + temporary memory, as
    XLA's `memory_analysis` has them, and what stays on the device meanwhile without being an
    argument, such as the values that the program started from.
    """
    initial = _bytes(program.model.parameters) + _bytes(program.model.state)
    totals = []
    for compiled, resident in compiled_programs(program, example, steps):
        analysis = compiled.memory_analysis()
        if analysis is None:
            raise CapabilityError(
                f"XLA tells nothing of memory on {program.device.platform}, which micro_batch_size='auto' asks; give "
                "a number, micro_batch_size=32"
            )
        # a donated argument and the output that takes its place are one piece of memory,
        # counted in both
        buffers = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        totals.append(buffers + analysis.temp_size_in_bytes + resident + initial)
    return max(totals)


def compiled_programs(program: JaxProgram, example: Arrays, steps: int) -> Iterator[tuple[jax.stages.Compiled, int]]:
    """Yield what runs in windows of `steps` micro-batches, each with the bytes around it."""
    precision = program.precision
    runner = program.runner
    room = program.windows_per_dispatch
    shape = DivisorShape(steps, program.functions.terms)
    with precision.scope(), jax.default_device(program.device):
        state = jax.eval_shape(program.functions.init)
        fields = {}
        for name, array in example.items():
            dtype = precision.cast_input(name, array).dtype
            fields[name] = jax.ShapeDtypeStruct((room, steps, *array.shape), dtype)
        steering = Steering.of_shape(room, shape, Rates.room(room), precision.dtype)
        if isinstance(runner, Scan):
            run = runner.one if room == 1 else runner.many
            yield run.lower(state, fields, steering).compile(), 0
        elif isinstance(runner, Dispatch):
            carry = jax.eval_shape(runner.start, state)
            place = jax.ShapeDtypeStruct((3,), np.dtype(np.int32))
            update = state.optimizer.gradient_step
            micro = runner.micro.lower(carry, state.parameters, fields, steering, place, update)
            # one program has the parameters and no other state as an argument, the other
            # one no data
            yield micro.compile(), _bytes(state) - _bytes(state.parameters)
            yield runner.finish.lower(state, carry, steering, shape=shape).compile(), _bytes(fields)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
