"""What `compare` returns: the figures of two runs, and the page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multibackend.core.text import Block, Readable
from multibackend.parity.html import write_html
from multibackend.parity.result import ComparisonResult
from multibackend.parity.text import comparison_blocks

__all__ = ["CompareReport"]


@dataclass(frozen=True, repr=False)
class CompareReport(Readable, ComparisonResult):
    """What `compare` found. The first backend is the reference, whose initial parameters both runs start from.

    `print(report)` says what `multibackend compare` prints: both runs in a table, the tolerance, the
    verdict, and where and why they part.

    Attributes:
        experiment, backends, precision, updates: what was run.
        histories: a record per update, for each backend.
        loss_differences: relative, for each update.
        parameter_differences: relative, for each parameter of the reference, at the end.
        undetermined: the parameters whose gradient is nothing but rounding on both backends, such
            as the bias of a convolution before a BatchNorm. Its true gradient is 0; Adam divides
            the rounding by its own size.
        tolerance: what counts as a match, and why.
        first_divergence: the first place beyond the tolerance; None where the runs match.
        evaluations: loss and metrics on the evaluation data at the end, for each backend; empty
            without such data.
        seconds: of training, for each backend, compilation included.
        execution_modes: how each backend executed its windows.
        notes: sentences about what `compare` did so that the runs can match, or why a match is not
            promised.
        layers: every place in the second model that is wrong by itself, where the runs part in a
            forward pass.
        evidence: what was recorded at the first divergence.
        rounding: float64 [updates], the relative difference of each loss that rounding alone makes,
            measured on the reference; None where nothing had to be located.
        gradient_differences: float64 [updates, parameters], relative, of the norm of each
            parameter's gradient, in the order of `parameter_differences`.
        matching: which parameter is which, with the changes of layout; `report.matching.save(FILE)`
            keeps it for `Model(matching=FILE)`.
        settings: what was run, in words: optimizer, loss, sizes, seed and so on.
        native: for each backend by canonical name: under which name and in which layout the framework
            itself keeps an array; empty where a backend does not tell.
    """

    def blocks(self) -> Sequence[Block]:
        """What is printed."""
        return comparison_blocks(self)

    def __repr__(self) -> str:
        first, second = self.backends
        verdict = "match" if self.matches else "do NOT match"
        return (
            f"<CompareReport: {self.experiment}, {self.updates} updates in {self.precision}: {first} and {second} "
            f"{verdict}>"
        )

    def write_html(self, path: str | Path, *, command: str | None = None) -> Path:
        """Write this report as one page of HTML that needs no network: `pip install 'multibackend[html]'`.

        At its top stands in words whether the runs match, where they first part and why; then what
        was run, both loss curves, the difference of each update, layers by updates, and every
        parameter with its change of layout.

        Args:
            path: of the file; its directory is made if need be.
            command: the command line that made the report, for the page's last section.

        Returns:
            the path.

        Raises:
            PackageNotInstalledError: plotly or Jinja2 is not installed.
            ConfigurationError: no file can be written there.

        >>> mb.compare(experiment, updates=20).write_html("parity.html")   # doctest: +SKIP
        PosixPath('parity.html')
        """
        return write_html(self, path, command=command)
