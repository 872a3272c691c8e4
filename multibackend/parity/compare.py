"""The same experiment on two backends, from the same parameters and on the same data: do the runs match?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multibackend.autobatch import resolve_together
from multibackend.experiment import Experiment
from multibackend.history import History, UpdateRecord
from multibackend.matching import Matching
from multibackend.optimizers import Native
from multibackend.parity.dropout import with_same_dropout
from multibackend.parity.findings import Divergence
from multibackend.parity.matching import match_models
from multibackend.parity.settings import settings_of
from multibackend.parity.tolerances import Tolerance, relative_differences, tolerance_for
from multibackend.protocol import Snapshot
from multibackend.registry import load_backend
from multibackend.trainer import FitResult, Trainer
from multibackend.validation import Problems

__all__ = ["CompareReport", "compare", "start_alike"]

_NATIVE = "the optimizer is native to each backend: nobody promises that both sides follow the same law"

Progress = Callable[[Sequence[UpdateRecord], Sequence[UpdateRecord]], None]


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
        strategies: how each backend executed its windows.
        notes: sentences about what `compare` did so that the runs can match, or why a match is not promised.
        settings: what was run, in words: optimizer, loss, sizes, seed and so on.
        matching: which parameter is which, with the changes of layout; `report.matching.save(FILE)` keeps it for
            `Model(matching=FILE)`.
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
    strategies: tuple[str, str]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    matching: Matching = field(default_factory=lambda: Matching(()))

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
        from multibackend.reporting.html import write_html  # noqa: PLC0415 - above this module; only a page needs it

        return write_html(self, path, command=command)


def compare(
    experiment: Experiment,
    backends: Sequence[str] = ("torch", "jax"),
    *,
    updates: int = 20,
    precision: str | None = None,
    strategies: Mapping[str, str] | None = None,
    devices: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CompareReport:
    """Train on both backends and hold the runs against each other.

    Where both models have dropout layers, both draw portable masks, because native ones can never match; the layers
    pair up by name, `Model(rename=...)` applied, and what is left by order of definition. The report says so.

    Args:
        experiment: what to train; both runs see the same examples in the same order.
        backends: two names; the first one's initial parameters are moved to the other through canonical names.
        updates: how many.
        precision: "float64" proves, "float32" is a smoke test; the experiment's own unless given.
        strategies, devices: by backend.
        progress: called with the new records of both runs as they come.

    Raises:
        ParameterMatchError: the parameters of the two models do not pair up.
        ConfigurationError: an argument is wrong, or the dropout layers of the two models do not pair up.

    >>> report = compare(experiment, updates=20, precision="float64")   # doctest: +SKIP
    >>> report.matches, report.max_relative_difference < 1e-9           # doctest: +SKIP
    (True, True)
    """
    first_name, second_name = _check(backends, updates)
    experiment = experiment if precision is None else experiment.replace(precision=precision)
    natives = [load_backend(name) for name in (first_name, second_name)]
    experiment = resolve_together(experiment, natives, devices or {}, strategies or {})

    def build(experiment: Experiment, name: str) -> Trainer:
        return Trainer(
            experiment, name, device=(devices or {}).get(name), strategy=(strategies or {}).get(name, "auto")
        )

    trainers, notes = with_same_dropout([build(experiment, name) for name in (first_name, second_name)], build)
    matching = start_alike(*trainers)
    seconds = _train_side_by_side(trainers, int(updates), progress)
    first, second = trainers
    results = [trainer.fit(updates=updates) for trainer in trainers]
    histories = (results[0].history, results[1].history)
    evaluations = [trainer.evaluate() if experiment.eval_data is not None else {} for trainer in trainers]
    tolerance = tolerance_for(experiment.precision)
    *ends, undetermined = _ends(trainers, matching, tolerance.noise)
    differences = relative_differences(*ends)
    bounds = {n: tolerance.undetermined if n in undetermined else tolerance.parameters for n in differences}
    excess = {name: difference / bounds[name] for name, difference in differences.items()}
    divergence = (
        _skip_divergence(results, int(updates))
        or _loss_divergence(histories, tolerance)
        or _parameter_divergence((ends[0], ends[1]), excess, differences, int(updates))
    )
    return CompareReport(
        experiment=experiment.name,
        backends=(first_name, second_name),
        precision=experiment.precision,
        updates=int(updates),
        histories=histories,
        loss_differences=_relative(histories[0]["loss"], histories[1]["loss"]),
        parameter_differences=differences,
        undetermined=undetermined,
        tolerance=tolerance,
        first_divergence=divergence,
        evaluations=(evaluations[0], evaluations[1]),
        seconds=seconds,
        strategies=(first.program.strategy, second.program.strategy),
        notes=(*notes, *((_NATIVE,) if isinstance(experiment.optimizer, Native) else ())),
        settings=settings_of(experiment, (first_name, second_name)),
        matching=matching,
    )


def start_alike(reference: Trainer, other: Trainer) -> Matching:
    """Give `other` the parameters and model state of `reference`; returns how those of the two models pair up."""
    matching = match_models(reference, other)
    source, target = reference.snapshot(), other.snapshot()
    arrays = matching.to_other({**source.model_state, **source.parameters})

    def filled(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: arrays[n].astype(array.dtype, copy=False) if n in arrays else array for n, array in own.items()}

    other.restore(Snapshot(filled(target.parameters), filled(target.model_state), update=target.update))
    return matching


def _ends(
    trainers: Sequence[Trainer], matching: Matching, noise: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]:
    """The parameters of both at the end, by the reference's names, and those whose gradient is nothing but rounding.

    Where a part of an array of the reference is an array of its own in the other model whose gradient is nothing but
    rounding (the bias of an attention's keys), that part is left out of the comparison.
    """
    reference, other = (trainer.gradient_shares() for trainer in trainers)
    first, second = trainers
    ours, snapshot = first.parameters(), second.snapshot()
    theirs = matching.to_reference({**snapshot.model_state, **snapshot.parameters})
    largest = {name: reference[name] for name in ours if name in theirs}
    for link in matching.links:
        if link.reference not in largest:
            continue
        share, part = other.get(link.other, 0.0), link.reference_part
        if part is not None and share <= noise:
            gap = np.zeros_like(ours[link.reference])
            part.put(gap, part.take(ours[link.reference]) - part.take(theirs[link.reference]))
            theirs[link.reference] = theirs[link.reference] + gap
        elif link.other_part is None:
            largest[link.reference] = max(largest[link.reference], share)
    undetermined = tuple(name for name, share in largest.items() if share <= noise)
    return {name: ours[name] for name in largest}, theirs, undetermined


def _check(backends: Sequence[str], updates: int) -> tuple[str, str]:
    problems = Problems("compare")
    if isinstance(backends, str) or len(backends) != 2:
        problems.add(f"backends must be two names, such as ('torch', 'jax'), got {backends!r}")
    problems.integer("updates", updates, minimum=1)
    problems.raise_if_any()
    return backends[0], backends[1]


def _train_side_by_side(trainers: Sequence[Trainer], updates: int, progress: Progress | None) -> tuple[float, float]:
    """Both to `updates`, a few at a time where somebody watches; returns the seconds of each."""
    seconds, done = [0.0, 0.0], 0
    stride = updates if progress is None else max(1, updates // 20)
    while done < updates:
        target, records = min(done + stride, updates), []
        for index, trainer in enumerate(trainers):
            result = trainer.fit(updates=target)
            seconds[index] += result.seconds
            records.append(list(result.history.since(done)))
        if progress is not None:
            progress(records[0], records[1])
        done = target
    return seconds[0], seconds[1]


def _relative(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    scale = np.maximum(np.maximum(np.abs(first), np.abs(second)), np.finfo(np.float64).tiny)
    return np.nan_to_num(np.abs(first - second) / scale, nan=np.inf)


def _skip_divergence(results: Sequence[FitResult], updates: int) -> Divergence | None:
    """Windows that one backend skipped and the other did not."""
    first, second = (result.skipped for result in results)
    if first == second:
        return None
    return Divergence("update", updates, "number of skipped windows", (float(len(first)), float(len(second))), 1.0)


def _loss_divergence(histories: tuple[History, History], tolerance: Tolerance) -> Divergence | None:
    first, second = histories
    differences = _relative(first["loss"], second["loss"])
    if differences.max(initial=0.0) <= tolerance.loss:
        return None
    index = int(np.argmax(differences > tolerance.loss))
    return Divergence("loss", index + 1, "loss", (first[index].loss, second[index].loss), float(differences[index]))


def _parameter_divergence(
    ends: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    excess: Mapping[str, float],
    differences: Mapping[str, float],
    updates: int,
) -> Divergence | None:
    """The parameter that exceeds its bound by the largest factor, if any does."""
    worst = max(excess, key=lambda name: excess[name])
    if excess[worst] <= 1:
        return None
    values = tuple(float(np.abs(end[worst]).max()) for end in ends)
    return Divergence("update", updates, worst, (values[0], values[1]), differences[worst])
