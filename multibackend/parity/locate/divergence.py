"""The first place at which two runs part beyond rounding, and every layer wrong by itself.

Both runs are made again, update by update, beside a third one: the reference from parameters that
are one rounding error away. What that one does is what rounding alone would do. The first update at
which the other run goes further is looked at stage by stage, from one and the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.differences import relative_difference, relative_differences
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.evidence import Evidence, Examination
from multibackend.parity.locate.examined_update import bound_for, undetermined
from multibackend.parity.locate.rerun import Runner, Step, perturbed
from multibackend.parity.locate.stages import examine
from multibackend.parity.locate.statistics import differs_by_bias, notes_on_initial_values
from multibackend.protocol import Snapshot
from multibackend.training.trainer import Trainer

__all__ = ["Location", "locate_between", "rounding_curve"]

_HISTORY = 3  # updates that are kept: what an optimizer's law shows in

Build = Callable[[Experiment, str], Trainer]


@dataclass(frozen=True)
class Location:
    """Where two runs part.

    Attributes:
        divergence: the first place; None where they differ by no more than rounding makes.
        layers: every place in the second model that is wrong by itself.
        evidence: what was recorded there.
        notes: what is worth knowing and no failure: initial values drawn otherwise, a
            biased running variance.
        updates: how many were looked at.
        precision: in which.
    """

    divergence: Divergence | None
    layers: tuple[LayerFinding, ...]
    evidence: Evidence | None
    notes: tuple[str, ...]
    updates: int
    precision: str

    def with_remark(self, remark: str) -> Location:
        """Add a sentence to what is said of the divergence, if there is one."""
        if self.divergence is None:
            return self
        joined = f"{self.divergence.remark} {remark}".lstrip()
        return replace(self, divergence=replace(self.divergence, remark=joined))


def locate_between(
    trainers: Sequence[Trainer], start: Snapshot, matching: Matching, *, updates: int, broken: bool, build: Build
) -> Location:
    """Find the first divergence of two runs, in float64 first, where rounding hides nothing.

    Args:
        trainers: of the reference and of the other; their programs are used, their states stay.
        start: the reference's state at the beginning.
        matching: which parameter is which.
        updates: how many to look at.
        broken: whether the runs part in their own precision.
        build: makes a trainer of an experiment and a backend.
    """
    precision = trainers[0].experiment.precision
    if precision == "float64":
        return _locate(trainers, start, matching, updates)
    try:
        exact = _locate_in_float64(trainers, start, matching, updates, build)
    except Exception as error:  # a model that fixes its own number format, for example
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        location = _locate(trainers, start, matching, updates)
        note = f"no run in float64 stands beside this one, for it failed ({reason})"
        return replace(location, notes=(*location.notes, note))
    if exact.divergence is not None:
        return exact.with_remark(
            f"Found in float64, where rounding is smaller; so it is a real difference, not rounding of {precision}."
        )
    notes = (*exact.notes, f"in float64 the runs agree through {exact.updates} updates")
    if not broken:
        return replace(exact, notes=notes)
    location = _locate(trainers, start, matching, updates)
    if location.divergence is None:
        return replace(location, notes=(*notes, f"so what differs is rounding of {precision}"))
    remark = (
        f"In float64 the runs agree through {exact.updates} updates: this is rounding of {precision}, which the "
        f"computation amplifies and which first stands out at update {location.divergence.update}."
    )
    return replace(location.with_remark(remark), notes=notes)


def _locate_in_float64(
    trainers: Sequence[Trainer], start: Snapshot, matching: Matching, updates: int, build: Build
) -> Location:
    exact = [build(trainer.experiment.replace(precision="float64"), trainer.backend) for trainer in trainers]
    parameters = {name: np.asarray(array, np.float64) for name, array in start.parameters.items()}
    return _locate(exact, replace(start, parameters=parameters), matching, updates)


def _locate(trainers: Sequence[Trainer], start: Snapshot, matching: Matching, updates: int) -> Location:
    """Make both runs again from the beginning, and look where they part."""
    reference, other = trainers
    other_initial = other.program.snapshot(other.program.init())
    bridge = Bridge.of(matching, start)
    notes = notes_on_initial_values(start.parameters, bridge.to_reference(other_initial).parameters)
    sides = (Runner(reference, start), Runner(other, bridge.to_other(start, other_initial)))
    rerun = _Rerun(sides, Runner(reference, perturbed(start)), bridge)
    examination, made = rerun.until_they_part(updates)
    return Location(
        examination.divergence,
        examination.layers,
        examination.evidence,
        (*notes, *examination.notes),
        made,
        reference.experiment.precision,
    )


class _Rerun:
    """Goes through the updates until the sides part."""

    def __init__(self, sides: tuple[Runner, Runner], nearby: Runner, bridge: Bridge) -> None:
        self.sides = sides
        self.nearby = nearby
        self.bridge = bridge
        self.precision = sides[0].experiment.precision
        self.bound = bound_for(self.precision)
        self.biased: set[str] = set()
        self.notes: list[str] = []
        self.history: list[tuple[Step, Step]] = []

    def until_they_part(self, updates: int) -> tuple[Examination, int]:
        """Return what was found and how many updates were made."""
        for index in range(updates):
            steps = (self.sides[0].step(), self.sides[1].step())
            nearby = self.nearby.step()
            self.history = [*self.history[1 - _HISTORY :], steps]
            parted = self._parted(steps, nearby)
            # The first update is examined anyway, for what no loss shows, such as statistics.
            if parted is None and index:
                continue
            examination = self._examined(steps, parted)
            if examination.divergence is not None:
                return examination, index + 1
            if not steps[0].results.finite[0]:
                break
        return Examination(notes=self.notes), updates

    def _examined(self, steps: tuple[Step, Step], parted: Divergence | None) -> Examination:
        examination = examine(self.sides, self.bridge, steps)
        self.notes += [note for note in examination.notes if note not in self.notes]
        # From one state both make the same update: what differs has grown over those before.
        examination.divergence = examination.divergence or parted
        examination.notes = self.notes
        if examination.evidence is not None:
            first, second = zip(*self.history, strict=True)
            examination.evidence = replace(examination.evidence, history=(first, second))
        return examination

    def _parted(self, steps: tuple[Step, Step], nearby: Step) -> Divergence | None:
        """Return what differs beyond rounding after an update; told where no stage of it does."""
        first, second = steps
        update = first.before.update + 1
        numbers = {
            "loss": [float(step.results.loss[0]) for step in (first, second, nearby)],
            "grad_norm": [float(step.results.grad_norm[0]) for step in (first, second, nearby)],
        }
        for what, (reference, other, perturbed_reference) in numbers.items():
            difference = relative_difference(reference, other)
            rounding = relative_difference(reference, perturbed_reference)
            if difference > self.bound(rounding):
                return Divergence("next update", update, what, (reference, other), difference, rounding)
        skip = undetermined(first, self.sides[0].program.info.parameter_names, self.precision)
        for reference, other, perturbed_reference in self._states(first.after, second.after, nearby.after):
            differences = relative_differences(reference, other)
            roundings = relative_differences(reference, perturbed_reference)
            for name, size in differences.items():
                if size <= self.bound(roundings[name]) or name in skip:
                    continue
                if not self._is_biased(name, reference, other, first):
                    values = (float(np.abs(reference[name]).max()), float(np.abs(other[name]).max()))
                    partner = self.bridge.partner(name)
                    return Divergence("next update", update, name, values, size, roundings[name], partner)
        return None

    def _states(self, first: Snapshot, second: Snapshot, nearby: Snapshot) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
        """Yield parameters, model state and slots of reference, other and perturbed one."""
        other = self.bridge.to_reference(second)
        yield _common(first.parameters, other.parameters), other.parameters, nearby.parameters
        yield _common(first.model_state, other.model_state), other.model_state, nearby.model_state
        for slot, arrays in first.optimizer.items():
            other_arrays = other.optimizer.get(slot, {})
            yield _common(arrays, other_arrays), other_arrays, nearby.optimizer[slot]

    def _is_biased(self, name: str, reference: Arrays, other: Arrays, step: Step) -> bool:
        """Whether one side keeps it as an unbiased variance: then it differs at every update."""
        if name not in step.before.model_state:
            return False
        if name not in self.biased:
            if differs_by_bias(reference[name], other[name], step.before.model_state[name]) is None:
                return False
            self.biased.add(name)
        return True


def _common(first: Arrays, second: Arrays) -> dict[str, np.ndarray]:
    """Those of the first's float arrays that the second has in the same shape."""
    shapes = {name: array.shape for name, array in second.items()}
    return {n: a for n, a in first.items() if a.dtype.kind == "f" and shapes.get(n) == a.shape}


def rounding_curve(trainer: Trainer, start: Snapshot, losses: Sequence[float]) -> np.ndarray:
    """float64 [updates]: each loss's relative difference from a run one rounding error away."""
    runner = Runner(trainer, perturbed(start))
    curve = np.full(len(losses), np.nan)
    # twice as many windows as updates: skipped ones make none, and it has to end
    for _ in range(2 * len(losses)):
        step = runner.step()
        if step.results.applied[0]:
            place = runner.update - start.update - 1
            curve[place] = relative_difference(float(step.results.loss[0]), losses[place])
        if runner.update - start.update >= len(losses) or not step.results.finite[0]:
            break
    return curve
