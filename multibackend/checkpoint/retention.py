"""Which checkpoints of a run are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multibackend.checkpoint.contents import parse_name
from multibackend.core.validation import Problems

__all__ = ["Retention"]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The rules by which checkpoints stay; one stays if any of them keeps it.

    Args:
        keep_last: the newest so many; None keeps all.
        keep_best: the best so many by `best_metric`, if finite. Of equals, the older stays.
        best_metric: the metric's name, e.g. "loss".
        best_mode: "min" or "max": which end of it is best.
        keep_every: for good, those between windows whose update is a multiple of it.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    keep_last: int | None = 3
    keep_best: int = 0
    best_metric: str | None = None
    best_mode: str = "min"
    keep_every: int | None = None

    def __post_init__(self) -> None:
        problems = Problems("the retention of checkpoints")
        if self.keep_last is not None:
            problems.integer("keep_last", self.keep_last, minimum=1)
        problems.integer("keep_best", self.keep_best, minimum=0)
        problems.choice("best_mode", self.best_mode, ("min", "max"))
        if self.keep_every is not None:
            problems.integer("keep_every", self.keep_every, minimum=1)
        if self.best_metric is not None and not (isinstance(self.best_metric, str) and self.best_metric):
            problems.add(f"best_metric must be the name of a metric, got {self.best_metric!r}", wrong_type=True)
        if self.keep_best and self.best_metric is None:
            problems.add("keep_best needs best_metric, the name of the metric to go by")
        problems.raise_if_any()

    def surplus(self, paths: Sequence[Path], metrics: Mapping[str, float | None]) -> list[Path]:
        """List those of `paths` (oldest first) that no rule keeps; `metrics` by directory name."""
        if self.keep_last is None:
            return []
        keep = self._best(paths, metrics)
        keep.update(paths[-self.keep_last :])
        return [path for path in paths if path not in keep and not self._for_good(path)]

    def _best(self, paths: Sequence[Path], metrics: Mapping[str, float | None]) -> set[Path]:
        values: dict[Path, float] = {}
        for path in paths:
            value = metrics.get(path.name)
            if value is not None and math.isfinite(value):
                values[path] = value if self.best_mode == "min" else -value
        # sorting is stable and `paths` are oldest first: of equals the older comes first, and stays
        return set(sorted(values, key=values.__getitem__)[: self.keep_best])

    def _for_good(self, path: Path) -> bool:
        key = parse_name(path.name)
        if self.keep_every is None or key is None:
            return False
        return key.micro_batches == 0 and key.update % self.keep_every == 0
