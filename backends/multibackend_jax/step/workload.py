"""What a micro-batch costs, read off its jaxpr: decides how windows are executed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

__all__ = ["Workload", "choose_mode", "choose_windows_per_dispatch", "measure_workload"]

# Arithmetic of about a second. A dispatch costs microseconds, and on CPU the pages of its temporary
# memory, which are new each time: 10 % for a small GPT whose window takes 100 ms.
_WORK_PER_DISPATCH = {"cpu": 1e11, "gpu": 1e12, "tpu": 1e12}
_MOST_WINDOWS = 1024
_MOST_BYTES = 8 * 2**20  # of data in one dispatch
_WINDOWS_OF_A_STREAM = 32  # whose epochs may end anywhere


@dataclass(frozen=True)
class Workload:
    """Floating-point operations of one micro-batch, and whether there is a convolution."""

    operations: float
    convolutions: bool


def measure_workload(function: Any, *arguments: Any) -> Workload:
    """Measure a function by tracing it; nothing is compiled or run."""
    operations = 0.0
    convolutions = False
    for equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        # one for each number that comes out, and below those that are summed for it
        size = sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size *= 2 * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            convolutions = True
            size *= 2 * math.prod(equation.invars[1].aval.shape[1:])
        operations += size
    return Workload(operations, convolutions)


def choose_mode(platform: str, workload: Workload) -> str:
    """Choose the execution mode; convolutions are slow in a loop on CPU (see `dispatch`)."""
    if platform == "cpu" and workload.convolutions:
        return "dispatch"
    return "scan"


def choose_windows_per_dispatch(
    platform: str, workload: Workload, *, steps: int, window_bytes: int, windows_per_epoch: int | None
) -> int:
    """Choose as many windows as keep the device busy for a while, within an epoch and a bound on memory.

    The epoch is cut into equal parts: dispatches that are not full cost the copy that
    fills them up.
    """
    budget = _WORK_PER_DISPATCH.get(platform, _WORK_PER_DISPATCH["gpu"])
    by_work = budget // max(workload.operations * steps, 1.0)
    by_memory = _MOST_BYTES // max(window_bytes, 1)
    if windows_per_epoch is None:
        return int(max(1, min(by_work, by_memory, _WINDOWS_OF_A_STREAM)))
    most = max(1, min(by_work, by_memory, windows_per_epoch, _MOST_WINDOWS))
    dispatches = math.ceil(windows_per_epoch / most)
    return math.ceil(windows_per_epoch / dispatches)


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of those inside it: loops, branches, checkpoints, nested jits."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, core.ClosedJaxpr):
                    yield from _equations(part.jaxpr)
                elif isinstance(part, core.Jaxpr):
                    yield from _equations(part)
