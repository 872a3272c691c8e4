"""The port between the core and a backend: everything that a stranger's backend imports stands here or below."""

from multibackend.protocol.backend import (
    Backend,
    BackendPlugin,
    Idiomatic,
    Interruptible,
    MemoryAware,
    Program,
    ProgramInfo,
    RecomputesStatistics,
    Traceable,
    WeightsReader,
)
from multibackend.protocol.values import (
    EvaluationSums,
    Execution,
    NativeArrays,
    PartialWindow,
    Position,
    Rates,
    Snapshot,
    WindowResults,
    WindowStack,
)

__all__ = [
    "Backend",
    "BackendPlugin",
    "EvaluationSums",
    "Execution",
    "Idiomatic",
    "Interruptible",
    "MemoryAware",
    "NativeArrays",
    "PartialWindow",
    "Position",
    "Program",
    "ProgramInfo",
    "Rates",
    "RecomputesStatistics",
    "Snapshot",
    "Traceable",
    "WeightsReader",
    "WindowResults",
    "WindowStack",
]
