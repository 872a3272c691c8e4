"""The figures of a comparison of two runs, for whoever writes them down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend.core.history import History
from multibackend.matching import Matching
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.evidence import Evidence
from multibackend.parity.native_layouts import NativeLayout
from multibackend.parity.tolerances import Tolerance

__all__ = ["ComparisonResult"]


# Below `CompareReport`, so that the page can read these fields and the report can write a page:
# neither imports a file that imports it.
@dataclass(frozen=True)
class ComparisonResult:
    """The fields of a `CompareReport`, which documents them."""

    experiment: str
    backends: tuple[str, str]
    precision: str
    updates: int
    histories: tuple[History, History]
    loss_differences: np.ndarray
    parameter_differences: Mapping[str, float]
    undetermined: tuple[str, ...]
    tolerance: Tolerance
    first_divergence: Divergence | None
    evaluations: tuple[Mapping[str, Any], Mapping[str, Any]]
    seconds: tuple[float, float]
    execution_modes: tuple[str, str]
    notes: tuple[str, ...] = ()
    layers: tuple[LayerFinding, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False, compare=False)
    rounding: np.ndarray | None = None
    gradient_differences: np.ndarray | None = None
    matching: Matching = field(default_factory=lambda: Matching(()))
    settings: Mapping[str, str] = field(default_factory=dict)
    native: tuple[Mapping[str, NativeLayout], Mapping[str, NativeLayout]] = field(default=({}, {}), repr=False)

    @property
    def matches(self) -> bool:
        """Whether every loss and every parameter is within the tolerance."""
        return self.first_divergence is None

    @property
    def max_relative_difference(self) -> float:
        """The largest relative difference of a parameter at the end, `undetermined` ones aside."""
        determined = self.parameter_differences.keys() - set(self.undetermined)
        return max((self.parameter_differences[name] for name in determined), default=0.0)

    @property
    def max_loss_difference(self) -> float:
        """The largest relative difference of the losses of an update."""
        return float(self.loss_differences.max(initial=0.0))
