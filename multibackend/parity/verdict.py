"""What two runs that have ended say: how far their losses, parameters, statistics and gradients are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from multibackend.core.differences import relative_differences, relative_gaps
from multibackend.core.history import History
from multibackend.matching import Matching
from multibackend.optimizers import Native
from multibackend.parity.findings import Divergence
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.statistics import differs_by_definition
from multibackend.parity.report import CompareReport
from multibackend.parity.settings import settings_of
from multibackend.parity.tolerances import Tolerance, tolerance_for
from multibackend.protocol import Snapshot
from multibackend.training.trainer import FitResult, Trainer

__all__ = ["verdict"]

_NATIVE = "the optimizer is native to each backend: nobody promises that both sides follow the same law"


def verdict(
    trainers: Sequence[Trainer],
    matching: Matching,
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
    bridge = Bridge.of(matching, start)
    after = first.snapshot(), bridge.to_reference(second.snapshot())
    evaluations = [trainer.evaluate() if trainer.experiment.eval_data is not None else {} for trainer in trainers]
    tolerance = tolerance_for(experiment.precision)
    *ends, undetermined = _ends(trainers, matching, tolerance.noise)
    differences = relative_differences(*ends)
    bounds = {n: tolerance.undetermined if n in undetermined else tolerance.parameters for n in differences}
    excess = {name: difference / bounds[name] for name, difference in differences.items()}
    divergence = (
        _skip_divergence(results, updates)
        or _loss_divergence(histories, tolerance)
        or _parameter_divergence((ends[0], ends[1]), excess, differences, updates)
        or _state_divergence(start, after, tolerance.undetermined if undetermined else tolerance.parameters, updates)
    )
    native = any(isinstance(trainer.experiment.optimizer, Native) for trainer in trainers)
    return CompareReport(
        experiment=experiment.name,
        backends=(first.backend, second.backend),
        precision=experiment.precision,
        updates=updates,
        histories=histories,
        loss_differences=relative_gaps(histories[0]["loss"], histories[1]["loss"]),
        parameter_differences=differences,
        undetermined=undetermined,
        tolerance=tolerance,
        first_divergence=divergence,
        evaluations=(evaluations[0], evaluations[1]),
        seconds=seconds,
        execution_modes=(first.program.execution.mode, second.program.execution.mode),
        notes=(*notes, *((_NATIVE,) if native else ())),
        gradient_differences=_gradient_differences(trainers, bridge, list(differences)),
        matching=matching,
        settings=settings_of(experiment, (first.backend, second.backend)),
    )


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


def _gradient_differences(trainers: Sequence[Trainer], bridge: Bridge, names: Sequence[str]) -> np.ndarray:
    """float64 [updates, parameters]: relative, each norm against at least a thousandth of its update's largest."""
    own, other = (trainer.gradient_norms() for trainer in trainers)
    updates = min(len(own), len(other))
    if not updates:
        return np.zeros((0, len(names)))
    first, second = trainers
    place = [first.program.info.parameter_names.index(name) for name in names]
    twin = [bridge.norms(second.program.info.parameter_names, row, names) for row in other[:updates]]
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
    differences = relative_gaps(first["loss"], second["loss"])
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
    start: Snapshot, ends: tuple[Snapshot, Snapshot], bound: float, updates: int
) -> Divergence | None:
    """Statistics that differ, but for the biased variance: a layer keeps the definition of its framework.

    The bound is the looser one where a parameter is undetermined: a bias before a BatchNorm moves its running mean.
    """
    own = {
        name: array
        for name, array in ends[0].model_state.items()
        if name in ends[1].model_state and array.dtype.kind == "f"
    }
    differences = relative_differences(own, ends[1].model_state)
    for name, difference in differences.items():
        pair = own[name], ends[1].model_state[name]
        known = differs_by_definition(name, own, ends[1].model_state, start.model_state, bound)
        if difference > bound and not known:
            values = tuple(float(np.abs(array).max()) for array in pair)
            return Divergence("model state", updates, name, (values[0], values[1]), difference)
    return None
