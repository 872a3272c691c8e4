"""Train one experiment on two backends, from the same parameters and on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from multibackend.core.history import UpdateRecord
from multibackend.core.validation import Problems, shown
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.parity.causes import diagnose
from multibackend.parity.dropout import with_same_dropout
from multibackend.parity.locate.divergence import Location, locate_between, rounding_curve
from multibackend.parity.report import CompareReport
from multibackend.parity.verdict import report_of
from multibackend.protocol import Backend, Execution, Idiomatic, Traceable
from multibackend.protocol.registry import load_backend
from multibackend.training.auto_batch_size import resolve_together
from multibackend.training.model_matching import alike, match_models
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

    Both start from the same values: the reference's, which are its own builder's or, with
    `Experiment(initial=...)`, those that it names.

    Where both models have dropout layers, both draw portable masks, because native ones can never
    match; the layers pair up by name, `Model(rename=...)` applied, and what is left by order of
    definition. The report says so.

    Where the runs part, both are made again to name the first stage, update, layer or parameter at
    which they do, in float64 beside a lower precision, and every layer of the second model that is
    wrong by itself.

    Args:
        experiment: what to train; both runs see the same examples in the same order. Or one
            experiment for each backend, {"torch": ..., "jax": ...}, where the sides are described
            apart: the first is the reference.
        backends: two names; the first one is the reference, and its start is moved to the other.
        updates: how many.
        precision: "float64" proves, "float32" is a smoke test; the experiment's own unless given.
        executions, devices: by backend.
        progress: called with the new records of both runs as they come.
        trace: look stage by stage even where the runs match (True), which also shows what no loss
            shows, such as statistics that differ; never (False); where they part (None).

    Raises:
        ParameterMatchError: the parameters of the two models do not pair up.
        ConfigurationError: an argument is wrong, or dropout layers of the two models do
            not pair up.

    >>> report = compare(experiment, updates=20, precision="float64")   # doctest: +SKIP
    >>> report.matches, report.max_relative_difference < 1e-9           # doctest: +SKIP
    (True, True)
    """
    experiments, names = _check(experiment, backends, updates, precision)
    _check_options(names, executions=executions, devices=devices, progress=progress, trace=trace)
    natives = [load_backend(name) for name in names]
    executions = executions or {}
    devices = devices or {}
    choices = {name: Execution(devices.get(name), executions.get(name, "auto")) for name in names}
    if experiments[0] is experiments[1]:
        # a micro-batch size that is left open must become the same on both sides
        resolved = resolve_together(experiments[0], natives, choices)
        experiments = (resolved, resolved)

    def build(experiment: Experiment, backend: str) -> Trainer:
        chosen = choices[backend]
        if backend != names[0]:  # which is given the reference's start, wherever that came from
            experiment = experiment.replace(initial="native")
        return Trainer(experiment, backend, device=chosen.device, execution=chosen.mode, record_gradient_norms=True)

    trainers = [build(*side) for side in zip(experiments, names, strict=True)]
    trainers, notes = with_same_dropout(trainers, build)
    matching = start_alike(*trainers)
    start = trainers[0].snapshot()
    seconds = _train_side_by_side(trainers, int(updates), progress)
    report = report_of(trainers, matching, start, seconds, int(updates), notes)
    broken = not report.matches
    if trace is None:
        trace = broken
    if not trace or not all(isinstance(trainer.program, Traceable) for trainer in trainers):
        return report
    # both runs are made again, because nobody records every array of a run that may well match
    location = locate_between(trainers, start, matching, updates=int(updates), broken=broken, build=build)
    rounding = rounding_curve(trainers[0], start, report.histories[0]["loss"].tolist())
    return _with_location(replace(report, rounding=rounding), location)


def _with_location(report: CompareReport, location: Location) -> CompareReport:
    """Add what was located to a report, and its causes."""
    report = replace(report, notes=(*report.notes, *location.notes))
    divergence = location.divergence
    if divergence is None:
        return report
    layers = location.layers
    if location.evidence is not None:
        divergence, layers = diagnose(divergence, layers, location.evidence, _idioms(report.backends))
    return replace(report, first_divergence=divergence, layers=layers, evidence=location.evidence)


def _idioms(backends: tuple[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return how the frameworks write what may have to be changed, where a backend says so."""
    first, second = (load_backend(name) for name in backends)
    return _idioms_of(first), _idioms_of(second)


def _idioms_of(backend: Backend) -> Mapping[str, str]:
    return backend.idioms if isinstance(backend, Idiomatic) else {}


def start_alike(reference: Trainer, other: Trainer) -> Matching:
    """Give `other` the parameters and model state of `reference`; returns how the two pair up."""
    matching = match_models(reference, other)
    other.restore(alike(matching, reference.snapshot(), other.snapshot()))
    return matching


def _check(
    experiment: Experiment | Mapping[str, Experiment],
    backends: Sequence[str],
    updates: int,
    precision: str | None,
) -> tuple[tuple[Experiment, Experiment], tuple[str, str]]:
    """Return (the experiments, the backends); of one experiment twice the same object."""
    problems = Problems("compare")
    if isinstance(experiment, Mapping):
        experiments = tuple(experiment.values())
        backends = tuple(experiment)
        subject = "experiment must be one, or one for each of two backends"
    else:
        experiments = (experiment, experiment)
        subject = "backends must be two names"
    is_names = isinstance(backends, Sequence) and not isinstance(backends, str)
    if not is_names or len(backends) != 2:
        problems.add(f"{subject}, such as ('torch', 'jax'), got {shown(backends)}")
    # by identity, so that one experiment is told once: its loss may be a dict, which has no hash
    for each in {id(each): each for each in experiments}.values():
        problems.instance("experiment", each, Experiment, "a multibackend.Experiment")
    problems.integer("updates", updates, minimum=1)
    if len(experiments) == 2 and not problems.found:
        _check_alike(problems, *experiments, precision)
    problems.raise_if_any()
    first, second = experiments
    names = (backends[0], backends[1])
    if precision is None:
        return (first, second), names
    changed = first.replace(precision=precision)
    if first is second:
        return (changed, changed), names
    return (changed, second.replace(precision=precision)), names


def _check_options(names: tuple[str, str], *, executions: Any, devices: Any, progress: object, trace: object) -> None:
    problems = Problems("compare")
    for name, value in (("executions", executions), ("devices", devices)):
        if value is None:
            continue
        if problems.instance(name, value, Mapping, f"a mapping from the backends {names} to names"):
            for backend in value:
                problems.choice(f"the keys of {name}", backend, names)
    if progress is not None and not callable(progress):
        problems.add(f"progress must be a function of two lists of records, got {shown(progress)}", wrong_type=True)
    if trace is not None:
        problems.boolean("trace", trace)
    problems.raise_if_any()


def _check_alike(problems: Problems, first: Experiment, second: Experiment, precision: str | None) -> None:
    """Add what two experiments should have in common and have not."""
    # a precision that was asked for replaces both
    if precision is None and first.precision != second.precision:
        problems.add(f"both experiments must have one precision, got {first.precision!r} and {second.precision!r}")
    if first.seed != second.seed:
        problems.add(f"both experiments must have one seed, got {first.seed!r} and {second.seed!r}")


def _train_side_by_side(trainers: Sequence[Trainer], updates: int, progress: Progress | None) -> tuple[float, float]:
    """Train both to `updates`, a few at a time if somebody watches; return both times."""
    seconds = [0.0, 0.0]
    done = 0
    # twenty reports are enough for a bar of progress, and leave windows to dispatch together
    stride = updates if progress is None else max(1, updates // 20)
    while done < updates:
        target = min(done + stride, updates)
        records = []
        for index, trainer in enumerate(trainers):
            result = trainer.fit(updates=target, progress=False)
            seconds[index] += result.seconds
            records.append(list(result.history.since(done)))
        if progress is not None:
            progress(records[0], records[1])
        done = target
    return seconds[0], seconds[1]
