"""The same experiment on two backends, from the same parameters and on the same data: do the runs match?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from multibackend.core.history import UpdateRecord
from multibackend.core.validation import Problems
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.parity.causes import diagnose
from multibackend.parity.dropout import with_same_dropout
from multibackend.parity.locate.divergence import Location, locate_between, rounding_curve
from multibackend.parity.matching import match_models
from multibackend.parity.report import CompareReport
from multibackend.parity.verdict import verdict
from multibackend.protocol import Backend, Execution, Idiomatic, Snapshot, Traceable
from multibackend.protocol.registry import load_backend
from multibackend.training.auto_batch_size import resolve_together
from multibackend.training.trainer import Trainer

__all__ = ["compare", "start_alike"]

Progress = Callable[[Sequence[UpdateRecord], Sequence[UpdateRecord]], None]


def compare(
    experiment: Experiment | Mapping[str, Experiment],
    backends: Sequence[str] = ("torch", "jax"),
    *,
    updates: int = 20,
    precision: str | None = None,
    executions: Mapping[str, str] | None = None,
    devices: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    trace: bool | None = None,
) -> CompareReport:
    """Train on both backends and hold the runs against each other.

    Where both models have dropout layers, both draw portable masks, because native ones can never match; the layers
    pair up by name, `Model(rename=...)` applied, and what is left by order of definition. The report says so.

    Where the runs part, both are made again to name the first stage, update, layer or parameter at which they do, in
    float64 beside a lower precision, and every layer of the second model that is wrong by itself.

    Args:
        experiment: what to train; both runs see the same examples in the same order. Or one experiment for each
            backend, {"torch": ..., "jax": ...}, where the sides are described apart: the first is the reference.
        backends: two names; the first one's initial parameters are moved to the other through canonical names.
        updates: how many.
        precision: "float64" proves, "float32" is a smoke test; the experiment's own unless given.
        executions, devices: by backend.
        progress: called with the new records of both runs as they come.
        trace: look stage by stage even where the runs match (True), which also shows what no loss shows, such as
            statistics that differ; never (False); where they part (None).

    Raises:
        ParameterMatchError: the parameters of the two models do not pair up.
        ConfigurationError: an argument is wrong, or the dropout layers of the two models do not pair up.

    >>> report = compare(experiment, updates=20, precision="float64")   # doctest: +SKIP
    >>> report.matches, report.max_relative_difference < 1e-9           # doctest: +SKIP
    (True, True)
    """
    experiments, names = _check(experiment, backends, updates, precision)
    natives = [load_backend(name) for name in names]
    if experiments[0] is experiments[1]:
        chosen = {name: Execution((devices or {}).get(name), (executions or {}).get(name, "auto")) for name in names}
        together = resolve_together(experiments[0], natives, chosen)
        experiments = together, together

    def build(experiment: Experiment, name: str) -> Trainer:
        return Trainer(
            experiment,
            name,
            device=(devices or {}).get(name),
            execution=(executions or {}).get(name, "auto"),
            record_gradient_norms=True,
        )

    trainers, notes = with_same_dropout([build(*side) for side in zip(experiments, names, strict=True)], build)
    matching = start_alike(*trainers)
    start = trainers[0].snapshot()
    seconds = _train_side_by_side(trainers, int(updates), progress)
    report = verdict(trainers, matching, start, seconds, int(updates), notes)
    if trace is False or (trace is None and report.matches) or not all(map(_traceable, trainers)):
        return report
    where = locate_between(trainers, start, matching, updates=int(updates), broken=not report.matches, build=build)
    curve = rounding_curve(trainers[0], start, report.histories[0]["loss"].tolist())
    return _located(replace(report, rounding=curve), where)


def _located(report: CompareReport, where: Location) -> CompareReport:
    """The report with what was located; what no bound was broken by is told as a note, but for differing statistics."""
    notes, found = (*report.notes, *where.notes), where.divergence
    if found is not None:
        layers = where.layers
        if where.evidence is not None:
            found, layers = diagnose(found, layers, where.evidence, _idioms(report.backends))
        report = replace(report, first_divergence=found, layers=layers, evidence=where.evidence)
    return replace(report, notes=notes)


def _idioms(backends: tuple[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """How the frameworks write what may have to be changed, where a backend says so."""
    first, second = (load_backend(name) for name in backends)
    return _idioms_of(first), _idioms_of(second)


def _idioms_of(backend: Backend) -> Mapping[str, str]:
    return backend.idioms if isinstance(backend, Idiomatic) else {}


def _traceable(trainer: Trainer) -> bool:
    return isinstance(trainer.program, Traceable)


def start_alike(reference: Trainer, other: Trainer) -> Matching:
    """Give `other` the parameters and model state of `reference`; returns how those of the two models pair up."""
    matching = match_models(reference, other)
    source, target = reference.snapshot(), other.snapshot()
    arrays = matching.to_other({**source.model_state, **source.parameters})

    def filled(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: arrays[n].astype(array.dtype, copy=False) if n in arrays else array for n, array in own.items()}

    other.restore(Snapshot(filled(target.parameters), filled(target.model_state), update=target.update))
    return matching


def _check(
    experiment: Experiment | Mapping[str, Experiment], backends: Sequence[str], updates: int, precision: str | None
) -> tuple[tuple[Experiment, Experiment], tuple[str, str]]:
    """(the experiments, the backends); of one experiment twice the same object."""
    problems = Problems("compare")
    apart = isinstance(experiment, Mapping)
    backends = tuple(experiment) if isinstance(experiment, Mapping) else backends
    if isinstance(backends, str) or len(backends) != 2:
        named = "experiment must be one, or one for each of two backends" if apart else "backends must be two names"
        problems.add(f"{named}, such as ('torch', 'jax'), got {backends!r}")
    problems.integer("updates", updates, minimum=1)
    given = tuple(experiment.values()) if isinstance(experiment, Mapping) else (experiment, experiment)
    if apart and len(given) == 2:
        for name in ("precision", "seed"):
            values = [getattr(one, name) for one in given]
            if values[0] != values[1] and not (name == "precision" and precision is not None):
                problems.add(f"both experiments must have one {name}, got {values[0]!r} and {values[1]!r}")
    problems.raise_if_any()
    first = given[0] if precision is None else given[0].replace(precision=precision)
    same = given[0] is given[1]
    second = first if same else given[1] if precision is None else given[1].replace(precision=precision)
    return (first, second), (backends[0], backends[1])


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
