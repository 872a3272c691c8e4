"""The port between the core and a backend: everything that a stranger's backend imports stands here or below."""

from multibackend.protocol.backend import (
    Backend,
    BackendPlugin,
    Idiomatic,
    Interruptible,
    MemoryAware,
    NativeModel,
    Predicts,
    Program,
    ProgramInfo,
    RecomputesStatistics,
    Traceable,
    WeightsReader,
)
from multibackend.protocol.index_ranges import IndexRange, check_indices
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
    "IndexRange",
    "Interruptible",
    "MemoryAware",
    "NativeArrays",
    "NativeModel",
    "PartialWindow",
    "Position",
    "Predicts",
    "Program",
    "ProgramInfo",
    "Rates",
    "RecomputesStatistics",
    "Snapshot",
    "Traceable",
    "WeightsReader",
    "WindowResults",
    "WindowStack",
    "check_indices",
]
