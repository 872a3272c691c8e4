"""What a comparison of two runs found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.core.history import History
from multibackend.matching import Matching
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.evidence import Evidence
from multibackend.parity.tolerances import Tolerance

__all__ = ["CompareReport"]


@dataclass(frozen=True)
class CompareReport:
    """What `compare` found. The first backend is the reference, whose initial parameters both runs start from.

    Attributes:
        experiment, backends, precision, updates: what was run.
        histories: a record per update, for each backend.
        loss_differences: relative, for each update.
        parameter_differences: relative, for each parameter of the reference, at the end.
        undetermined: the parameters whose gradient is nothing but rounding on both backends, such as the bias of a
            convolution before a BatchNorm. Its true gradient is 0; Adam divides the rounding by its own size.
        tolerance: what counts as a match, and why.
        first_divergence: the first place beyond the tolerance; None where the runs match.
        evaluations: loss and metrics on the evaluation data at the end, for each backend; empty without such data.
        seconds: of training, for each backend, compilation included.
        execution_modes: how each backend executed its windows.
        notes: sentences about what `compare` did so that the runs can match, or why a match is not promised.
        layers: every place in the second model that is wrong by itself, where the runs part in a forward pass.
        evidence: what was recorded at the first divergence.
        rounding: float64 [updates], the relative difference of each loss that rounding alone makes, measured on the
            reference; None where nothing had to be located.
        gradient_differences: float64 [updates, parameters], relative, of the norm of each parameter's gradient, in the
            order of `parameter_differences`.
        matching: which parameter is which, with the changes of layout; `report.matching.save(FILE)` keeps it for
            `Model(matching=FILE)`.
        settings: what was run, in words: optimizer, loss, sizes, seed and so on.
    """

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

    def write_html(self, path: str | Path, *, command: str | None = None) -> Path:
        """Write this report as one page of HTML that needs no network: `pip install 'multibackend[html]'`.

        At its top stands in words whether the runs match, where they first part and why; then what was run, both loss
        curves, the difference of each update, layers by updates, and every parameter with its change of layout.

        Args:
            path: of the file; its directory is made if need be.
            command: the command line that made the report, for the page's last section.

        Returns:
            the path.

        Raises:
            PackageNotInstalledError: plotly is not installed.
            ConfigurationError: no file can be written there.

        >>> mb.compare(experiment, updates=20).write_html("parity.html")   # doctest: +SKIP
        PosixPath('parity.html')
        """
        from multibackend.parity.html import write_html  # noqa: PLC0415 - above this module; only a page needs it

        return write_html(self, path, command=command)
