"""The same experiment on two backends, from the same parameters and on the same data: do the runs match?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from multibackend.autobatch import resolve_together
from multibackend.experiment import Experiment
from multibackend.history import History, UpdateRecord
from multibackend.names import match_names, pair_state, shapes_of
from multibackend.optimizers import Native
from multibackend.parity.diagnosis import diagnose
from multibackend.parity.dropout import with_same_dropout
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate import Location, locate_between, rounding_curve
from multibackend.parity.stages import Evidence
from multibackend.parity.statistics import differs_by_bias
from multibackend.parity.tolerances import Tolerance, relative_differences, tolerance_for
from multibackend.parity.walk import Bridge
from multibackend.protocol import Snapshot, Traceable
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
        layers: every place in the second model that is wrong by itself, where the runs part in a forward pass.
        evidence: what was recorded at the first divergence.
        rounding: float64 [updates], the relative difference of each loss that rounding alone makes, measured on the
            reference; None where nothing had to be located.
        gradient_differences: float64 [updates, parameters], relative, of the norm of each parameter's gradient, in the
            order of `parameter_differences`.
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
    layers: tuple[LayerFinding, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False, compare=False)
    rounding: np.ndarray | None = None
    gradient_differences: np.ndarray | None = None

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


def compare(
    experiment: Experiment | Mapping[str, Experiment],
    backends: Sequence[str] = ("torch", "jax"),
    *,
    updates: int = 20,
    precision: str | None = None,
    strategies: Mapping[str, str] | None = None,
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
        strategies, devices: by backend.
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
        together = resolve_together(experiments[0], natives, devices or {}, strategies or {})
        experiments = together, together

    def build(experiment: Experiment, name: str) -> Trainer:
        return Trainer(
            experiment, name, device=(devices or {}).get(name), strategy=(strategies or {}).get(name, "auto")
        )

    trainers, notes = with_same_dropout([build(*side) for side in zip(experiments, names, strict=True)], build)
    pairs = start_alike(*trainers, rename=trainers[1].experiment.model.rename)
    start = trainers[0].snapshot()
    for trainer in trainers:
        trainer._ledger.gradient_norms = []
    seconds = _train_side_by_side(trainers, int(updates), progress)
    report = _report(trainers, pairs, start, seconds, int(updates), notes)
    if trace is False or (trace is None and report.matches) or not all(map(_traceable, trainers)):
        return report
    where = locate_between(trainers, start, pairs, updates=int(updates), broken=not report.matches, build=build)
    curve = rounding_curve(trainers[0], start, report.histories[0]["loss"].tolist())
    return _located(replace(report, rounding=curve), where)


def _report(
    trainers: Sequence[Trainer],
    pairs: Mapping[str, str],
    start: Snapshot,
    seconds: tuple[float, float],
    updates: int,
    notes: tuple[str, ...],
) -> CompareReport:
    """What two runs that have ended say."""
    first, second = trainers
    experiment = first.experiment
    results = [trainer.fit(updates=updates) for trainer in trainers]
    histories = (results[0].history, results[1].history)
    bridge = Bridge.of(pairs, start, second.snapshot(), second.experiment.model.rename)
    after = first.snapshot(), bridge.to_reference(second.snapshot())
    ends = after[0].parameters, after[1].parameters
    evaluations = [trainer.evaluate() if trainer.experiment.eval_data is not None else {} for trainer in trainers]
    tolerance, differences = tolerance_for(experiment.precision), relative_differences(*ends)
    undetermined = _undetermined(trainers, bridge, tolerance)
    bounds = {n: tolerance.undetermined if n in undetermined else tolerance.parameters for n in differences}
    excess = {name: difference / bounds[name] for name, difference in differences.items()}
    divergence = (
        _skip_divergence(results, updates)
        or _loss_divergence(histories, tolerance)
        or _parameter_divergence(ends, excess, differences, updates)
        or _state_divergence(start, after, tolerance, updates)
    )
    native = any(isinstance(trainer.experiment.optimizer, Native) for trainer in trainers)
    return CompareReport(
        experiment=experiment.name,
        backends=(first.backend, second.backend),
        precision=experiment.precision,
        updates=updates,
        histories=histories,
        loss_differences=_relative(histories[0]["loss"], histories[1]["loss"]),
        parameter_differences=differences,
        undetermined=undetermined,
        tolerance=tolerance,
        first_divergence=divergence,
        evaluations=(evaluations[0], evaluations[1]),
        seconds=seconds,
        strategies=(first.program.strategy, second.program.strategy),
        notes=(*notes, *((_NATIVE,) if native else ())),
        gradient_differences=_gradient_differences(trainers, bridge, list(differences)),
    )


def _located(report: CompareReport, where: Location) -> CompareReport:
    """The report with what was located; what no bound was broken by is told as a note, but for differing statistics."""
    notes, found = (*report.notes, *where.notes), where.divergence
    if found is not None:
        layers = where.layers
        if where.evidence is not None:
            found, layers = diagnose(found, layers, where.evidence, _spellings(report.backends))
        report = replace(report, first_divergence=found, layers=layers, evidence=where.evidence)
    return replace(report, notes=notes)


def _spellings(backends: tuple[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """How the frameworks write what may have to be changed, where a backend says so."""
    first, second = (getattr(load_backend(name), "spellings", {}) for name in backends)
    return first, second


def _traceable(trainer: Trainer) -> bool:
    return isinstance(trainer.program, Traceable)


def start_alike(reference: Trainer, other: Trainer, *, rename: Mapping[str, str]) -> dict[str, str]:
    """Give `other` the parameters and model state of `reference`; returns the pairs {name of other: of reference}."""
    source, target = reference.snapshot(), other.snapshot()
    pairs = match_names(shapes_of(source.parameters), shapes_of(target.parameters), rename)
    parameters = {name: source.parameters[partner] for name, partner in pairs.items()}
    shared = pair_state(shapes_of(source.model_state), shapes_of(target.model_state), rename)
    state = {**target.model_state, **{name: source.model_state[partner] for name, partner in shared.items()}}
    other.restore(Snapshot(parameters=parameters, model_state=state, update=target.update))
    return pairs


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


def _relative(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    scale = np.maximum(np.maximum(np.abs(first), np.abs(second)), np.finfo(np.float64).tiny)
    return np.nan_to_num(np.abs(first - second) / scale, nan=np.inf)


def _undetermined(trainers: Sequence[Trainer], bridge: Bridge, tolerance: Tolerance) -> tuple[str, ...]:
    """The parameters (of the reference) whose gradient is nothing but rounding on both backends."""
    reference, other = (trainer.gradient_shares() for trainer in trainers)
    largest = dict.fromkeys(reference, 0.0)
    for name, partner in bridge.links:
        largest[name] = max(largest[name], reference[name], other.get(partner, 0.0))
    return tuple(name for name, share in largest.items() if share <= tolerance.noise)


def _gradient_differences(trainers: Sequence[Trainer], bridge: Bridge, names: Sequence[str]) -> np.ndarray:
    """float64 [updates, parameters]: relative, each norm against at least a thousandth of its update's largest."""
    own, other = (np.array(trainer._ledger.gradient_norms or []) for trainer in trainers)
    updates = min(len(own), len(other))
    if not updates:
        return np.zeros((0, len(names)))
    first, second = trainers
    place = [first.program.parameter_names.index(name) for name in names]
    twin = [bridge.norms(second.program.parameter_names, row, names) for row in other[:updates]]
    one, two = own[:updates, place], np.array(twin)
    scale = np.maximum(np.maximum(one, two), 1e-3 * np.maximum(one, two).max(axis=1, keepdims=True))
    return np.nan_to_num(np.abs(one - two) / np.maximum(scale, np.finfo(np.float64).tiny), nan=np.inf)


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


def _state_divergence(
    start: Snapshot, ends: tuple[Snapshot, Snapshot], tolerance: Tolerance, updates: int
) -> Divergence | None:
    """Statistics that differ, but for the biased variance: a layer keeps the definition of its framework."""
    own = {
        name: array
        for name, array in ends[0].model_state.items()
        if name in ends[1].model_state and array.dtype.kind == "f"
    }
    differences = relative_differences(own, ends[1].model_state)
    for name, difference in differences.items():
        pair = own[name], ends[1].model_state[name]
        if difference > tolerance.parameters and differs_by_bias(*pair, start.model_state[name]) is None:
            values = tuple(float(np.abs(array).max()) for array in pair)
            return Divergence("model state", updates, name, (values[0], values[1]), difference)
    return None
