"""The report of two runs that have ended: how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.differences import relative_differences, relative_gaps
from multibackend.core.history import History
from multibackend.matching import Matching
from multibackend.optimizers import Native
from multibackend.parity.findings import Divergence
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.statistics import differs_by_definition
from multibackend.parity.native_layouts import NativeLayout, native_layouts
from multibackend.parity.report import CompareReport
from multibackend.parity.tolerances import Tolerance, tolerance_for
from multibackend.protocol import Snapshot
from multibackend.training.settings import settings_of
from multibackend.training.trainer import FitResult, Trainer

__all__ = ["report_of"]

_NATIVE = "the optimizer is native to each backend: nobody promises that both sides follow the same law"


def report_of(
    trainers: Sequence[Trainer],
    matching: Matching,
    start: Snapshot,
    seconds: tuple[float, float],
    updates: int,
    notes: tuple[str, ...],
) -> CompareReport:
    """Hold the losses, parameters and statistics of two runs that have ended against each other."""
    first, second = trainers
    experiment = first.experiment
    tolerance = tolerance_for(experiment.precision)
    # counted from the runs' beginning, so this trains nothing and returns what they did
    results = [trainer.fit(updates=updates, progress=False) for trainer in trainers]
    histories = (results[0].history, results[1].history)
    bridge = Bridge.of(matching, start)
    snapshots = (first.snapshot(), bridge.to_reference(second.snapshot()))
    evaluations = (_evaluation(first), _evaluation(second))
    parameters = _determined_parameters(trainers, matching, tolerance.noise)
    # in the order in which an update makes them: the first that differs is where the runs part
    divergence = (
        _skip_divergence(results, updates)
        or _loss_divergence(histories, tolerance)
        or _parameter_divergence(parameters, tolerance, updates)
        or _state_divergence(start, snapshots, _state_bound(parameters, tolerance), updates)
    )
    if any(isinstance(trainer.experiment.optimizer, Native) for trainer in trainers):
        notes = (*notes, _NATIVE)
    backends = (first.backend, second.backend)
    return CompareReport(
        experiment=experiment.name,
        backends=backends,
        precision=experiment.precision,
        updates=updates,
        histories=histories,
        loss_differences=relative_gaps(histories[0]["loss"], histories[1]["loss"]),
        parameter_differences=parameters.differences,
        undetermined=parameters.undetermined,
        tolerance=tolerance,
        first_divergence=divergence,
        evaluations=evaluations,
        seconds=seconds,
        execution_modes=(first.program.execution.mode, second.program.execution.mode),
        notes=notes,
        gradient_differences=_gradient_differences(trainers, bridge, list(parameters.differences)),
        matching=matching,
        settings=settings_of(experiment, backends),
        native=(_native(first), _native(second)),
    )


def _native(trainer: Trainer) -> Mapping[str, NativeLayout]:
    snapshot = trainer.snapshot()
    return native_layouts(trainer.program.info.native_arrays, {**snapshot.model_state, **snapshot.parameters})


def _evaluation(trainer: Trainer) -> Mapping[str, Any]:
    return {} if trainer.experiment.eval_data is None else trainer.evaluate()


@dataclass(frozen=True)
class _Parameters:
    """The parameters of both runs at the end, by the reference's names.

    Attributes:
        reference, other: their values.
        undetermined: those whose gradient is nothing but rounding.
    """

    reference: Arrays
    other: Arrays
    undetermined: tuple[str, ...]

    @cached_property
    def differences(self) -> dict[str, float]:
        """The relative difference of each."""
        return relative_differences(self.reference, self.other)


def _determined_parameters(trainers: Sequence[Trainer], matching: Matching, noise: float) -> _Parameters:
    """Gather what can be compared.

    Where a part of an array of the reference is an array of its own in the other model whose
    gradient is nothing but rounding (the bias of an attention's keys), that part is left out of the
    comparison.
    """
    first, second = trainers
    reference_shares = first.gradient_shares()
    other_shares = second.gradient_shares()
    reference = first.parameters()
    snapshot = second.snapshot()
    # one array of the reference may be made of several, even of model state
    other = matching.to_reference({**snapshot.model_state, **snapshot.parameters})
    shares = {name: reference_shares[name] for name in reference if name in other}
    for link in matching.links:
        name = link.reference
        if name not in shares:
            continue
        share = other_shares.get(link.other, 0.0)
        part = link.reference_part
        if part is not None and share <= noise:
            # equal on both sides, the part adds nothing to the difference of its array
            gap = np.zeros_like(reference[name])
            part.put(gap, part.take(reference[name]) - part.take(other[name]))
            other[name] = other[name] + gap
        elif link.other_part is None:  # the gradient of a whole array says nothing of its part
            shares[name] = max(shares[name], share)
    undetermined = tuple(name for name, share in shares.items() if share <= noise)
    return _Parameters({name: reference[name] for name in shares}, other, undetermined)


def _gradient_differences(trainers: Sequence[Trainer], bridge: Bridge, names: Sequence[str]) -> np.ndarray:
    """Compare the norms of the gradients, relative to themselves: float64 [updates, parameters]."""
    reference, other = (trainer.gradient_norms() for trainer in trainers)
    updates = min(len(reference), len(other))
    if not updates:
        return np.zeros((0, len(names)))
    first, second = (trainer.program.info.parameter_names for trainer in trainers)
    reference_norms = reference[:updates, [first.index(name) for name in names]]
    other_norms = np.array([bridge.norms(second, row, names) for row in other[:updates]])
    larger = np.maximum(reference_norms, other_norms)
    # at least a thousandth of the update's largest: rounding alone would differ by 100 %
    scale = np.maximum(larger, 1e-3 * larger.max(axis=1, keepdims=True))
    differences = np.abs(reference_norms - other_norms) / np.maximum(scale, np.finfo(np.float64).tiny)
    return np.nan_to_num(differences, nan=np.inf)


def _skip_divergence(results: Sequence[FitResult], updates: int) -> Divergence | None:
    """Find windows that one backend skipped and the other did not."""
    first, second = (result.skipped for result in results)
    if first == second:
        return None
    values = (float(len(first)), float(len(second)))
    return Divergence("update", updates, "number of skipped windows", values, 1.0)


def _loss_divergence(histories: tuple[History, History], tolerance: Tolerance) -> Divergence | None:
    """Find the first update whose losses differ by more than the tolerance."""
    first, second = histories
    differences = relative_gaps(first["loss"], second["loss"])
    if differences.max(initial=0.0) <= tolerance.loss:
        return None
    index = int(np.argmax(differences > tolerance.loss))
    values = (first[index].loss, second[index].loss)
    return Divergence("loss", index + 1, "loss", values, float(differences[index]))


def _parameter_divergence(parameters: _Parameters, tolerance: Tolerance, updates: int) -> Divergence | None:
    """Find the parameter that exceeds its bound by the largest factor, if any does."""
    excess = {}
    for name, difference in parameters.differences.items():
        undetermined = name in parameters.undetermined
        bound = tolerance.undetermined if undetermined else tolerance.parameters
        excess[name] = difference / bound  # 0 where the bound is infinite
    worst = max(excess, key=lambda name: excess[name])
    if excess[worst] <= 1:
        return None
    values = _largest_elements(parameters.reference[worst], parameters.other[worst])
    return Divergence("update", updates, worst, values, parameters.differences[worst])


def _state_bound(parameters: _Parameters, tolerance: Tolerance) -> float:
    """Return the bound for statistics: an undetermined bias moves a BatchNorm's running mean."""
    return tolerance.undetermined if parameters.undetermined else tolerance.parameters


def _state_divergence(
    start: Snapshot, ends: tuple[Snapshot, Snapshot], bound: float, updates: int
) -> Divergence | None:
    """Find statistics that differ, biased variances aside: each framework defines them."""
    other = ends[1].model_state
    # statistics alone, no counters, which are integers
    floats = {name: array for name, array in ends[0].model_state.items() if array.dtype.kind == "f"}
    reference = {name: array for name, array in floats.items() if name in other}
    for name, difference in relative_differences(reference, other).items():
        by_definition = differs_by_definition(name, reference, other, start.model_state, bound)
        if difference > bound and not by_definition:
            values = _largest_elements(reference[name], other[name])
            return Divergence("model state", updates, name, values, difference)
    return None


def _largest_elements(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    return float(np.abs(first).max()), float(np.abs(second).max())
