"""How much memory an experiment takes on a device, told by the compiler before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from multibackend.errors import CapabilityError
from multibackend_jax.program import JaxProgram
from multibackend_jax.step.dispatch import Dispatch
from multibackend_jax.step.execution import DivisorShape, Steering
from multibackend_jax.step.scan import Scan

__all__ = ["compiled_programs", "device_bytes", "is_out_of_memory", "program_bytes"]

_RATES = 256  # about as many learning rates as a trainer hands over with the windows; a few bytes each

# what XLA says where the device has no room left, at compilation, at run time, and on hosts
_REFUSALS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "Failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA gave up for lack of memory: RESOURCE_EXHAUSTED, by its name or in its words.

    >>> is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes."))
    True
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _REFUSALS)


def device_bytes(device: Any) -> int | None:
    """The memory that this process may use on an accelerator; None for a CPU, which shares its own with everybody."""
    return (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None


def program_bytes(program: JaxProgram, example: Mapping[str, np.ndarray], steps: int) -> int:
    """The most that is held at once while windows run: state, windows on the device, and temporaries.

    For each compiled program: arguments + outputs - what is shared by both + temporary memory, as XLA's
    `memory_analysis` has them, and what stays on the device meanwhile without being an argument, such as the values
    that the program started from.
    """
    initial = _bytes(program._model.parameters) + _bytes(program._model.state)
    totals = []
    for compiled, resident in compiled_programs(program, example, steps):
        analysis = compiled.memory_analysis()
        if analysis is None:
            raise CapabilityError(
                f"XLA tells nothing of memory on {program._device.platform}, which micro_batch_size='auto' asks; give "
                "a number, micro_batch_size=32"
            )
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        totals.append(held + analysis.temp_size_in_bytes + resident + initial)
    return max(totals)


def compiled_programs(
    program: JaxProgram, example: Mapping[str, np.ndarray], steps: int
) -> Iterator[tuple[jax.stages.Compiled, int]]:
    """What runs in windows of `steps` micro-batches like `example`, each with the bytes that stay around it."""
    precision, runner = program._precision, program._runner
    with precision.scope(), jax.default_device(program._device):
        state = jax.eval_shape(program._functions.init)
        room, shape = program.windows_per_dispatch, DivisorShape(steps, program._functions.terms)
        fields = {
            name: jax.ShapeDtypeStruct((room, steps, *array.shape), precision.cast_input(name, array).dtype)
            for name, array in example.items()
        }
        steering: Any = Steering(
            jax.ShapeDtypeStruct((2 + room,), np.dtype(np.int32)),
            jax.ShapeDtypeStruct(((room * steps + 1) * shape.terms + 2 * room + _RATES,), precision.dtype),
        )
        if isinstance(runner, Scan):
            yield (runner.one if room == 1 else runner.many).lower(state, fields, steering).compile(), 0
        elif isinstance(runner, Dispatch):
            carry = jax.eval_shape(runner.start, state)
            place = jax.ShapeDtypeStruct((3,), np.dtype(np.int32))
            update = state.optimizer.gradient_step
            micro = runner.micro.lower(carry, state.parameters, fields, steering, place, update)
            yield micro.compile(), _bytes(state) - _bytes(state.parameters)
            yield runner.finish.lower(state, carry, steering, shape=shape).compile(), _bytes(fields)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
