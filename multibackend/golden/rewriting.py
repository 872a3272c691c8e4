"""Rewrite a golden file where its run has moved, and say what; leave it alone where it has not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multibackend.errors import GoldenFileError, ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.golden.file import Golden, load, save
from multibackend.golden.report import check
from multibackend.golden.run import record

__all__ = ["Change", "update"]


@dataclass(frozen=True)
class Change:
    """What `update` did.

    Attributes:
        path: of the golden file.
        written: whether the file was written.
        reasons: what moved, as sentences; empty where nothing did.
        golden: what the file now holds.
    """

    path: Path
    written: bool
    reasons: tuple[str, ...]
    golden: Golden

    def __str__(self) -> str:
        if not self.written:
            return f"{self.path}: nothing moved beyond rounding, left as it is"
        return "\n".join([f"{self.path}: written", *(f"  {reason}" for reason in self.reasons)])


def update(
    path: str | Path,
    experiment: Experiment,
    backend: str,
    *,
    updates: int = 20,
    device: str | None = None,
    execution: str = "auto",
) -> Change:
    """Bring a golden file up to date.

    The run is first held against what is there. Only where it moved beyond rounding, or was
    asked for otherwise, is the file written anew; so files do not change with every version
    of a framework.

    Args:
        path: of the file, which need not exist.
        experiment, backend, updates, device, execution: as for `record`.

    >>> print(golden.update("digits.json", experiment, "torch"))   # doctest: +SKIP
    digits.json: nothing moved beyond rounding, left as it is
    """
    path = Path(path)
    reasons: tuple[str, ...] = ("the first trace, for there was none",)
    if path.exists():
        try:
            report = check(load(path), experiment, backend, updates=updates, device=device, execution=execution)
            if report.matches:
                return Change(path, written=False, reasons=(), golden=report.golden)
            reasons = tuple(report.details())
        except (GoldenFileError, ParameterMatchError) as error:  # no file to hold against
            reasons = tuple(line.strip() for line in str(error).splitlines())
    golden = record(experiment, backend, updates=updates, device=device, execution=execution)
    save(golden, path)
    return Change(path, written=True, reasons=reasons, golden=golden)
