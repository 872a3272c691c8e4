"""The first place at which two runs of an experiment part beyond rounding, and every layer that is wrong by itself.

Both runs are made again, update by update, beside a third one: the reference from parameters that are one rounding
error away. What that one does is what rounding alone would do. The first update at which the other run goes further
is looked at stage by stage, from one and the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from multibackend.core.differences import relative_differences
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.rerun import Bridge, Runner, Step, nudged
from multibackend.parity.locate.stages import Evidence, Examination, bound_for, examine, undetermined
from multibackend.parity.locate.statistics import differs_by_bias, initial_laws
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
        notes: what is worth knowing and no failure: initial values by another law, a biased running variance.
        updates: how many were looked at.
        precision: in which.
    """

    divergence: Divergence | None
    layers: tuple[LayerFinding, ...]
    evidence: Evidence | None
    notes: tuple[str, ...]
    updates: int
    precision: str


def locate_between(
    trainers: Sequence[Trainer], start: Snapshot, matching: Matching, *, updates: int, broken: bool, build: Build
) -> Location:
    """Find the first divergence of two runs, in float64 first, where a difference of rounding cannot hide anything.

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
        exact = [build(trainer.experiment.replace(precision="float64"), trainer.backend) for trainer in trainers]
        begin = replace(start, parameters={n: np.asarray(a, np.float64) for n, a in start.parameters.items()})
        found = _locate(exact, begin, matching, updates)
    except Exception as error:  # a model that fixes its own number format, for example
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        own = _locate(trainers, start, matching, updates)
        return replace(own, notes=(*own.notes, f"no run in float64 stands beside this one, for it failed ({reason})"))
    if found.divergence is not None:
        remark = (
            f"Found in float64, where rounding is smaller; so it is a real difference, not rounding of {precision}."
        )
        return replace(found, divergence=replace(found.divergence, remark=_joined(found.divergence.remark, remark)))
    notes = (*found.notes, f"in float64 the runs agree through {found.updates} updates")
    if not broken:
        return replace(found, notes=notes)
    own = _locate(trainers, start, matching, updates)
    if own.divergence is None:
        return replace(own, notes=(*notes, f"so what differs is rounding of {precision}"))
    remark = (
        f"In float64 the runs agree through {found.updates} updates: this is rounding of {precision}, which the "
        f"computation amplifies and which first stands out at update {own.divergence.update}."
    )
    return replace(own, divergence=replace(own.divergence, remark=_joined(own.divergence.remark, remark)), notes=notes)


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _locate(trainers: Sequence[Trainer], start: Snapshot, matching: Matching, updates: int) -> Location:
    """Both runs again, from the beginning."""
    reference, other = trainers
    own = other.program.snapshot(other.program.init())
    bridge = Bridge.of(matching, start)
    notes = initial_laws(start.parameters, bridge.to_reference(own).parameters)
    sides = Runner(reference, start), Runner(other, bridge.to_other(start, own))
    found, made = _Walk(sides, Runner(reference, nudged(start)), bridge).to(updates)
    notes = (*notes, *found.notes)
    return Location(found.divergence, found.layers, found.evidence, notes, made, reference.experiment.precision)


class _Walk:
    """Goes through the updates until the sides part."""

    def __init__(self, sides: tuple[Runner, Runner], nearby: Runner, bridge: Bridge) -> None:
        self.sides, self.nearby, self.bridge = sides, nearby, bridge
        self.precision = sides[0].experiment.precision
        self.bound = bound_for(self.precision)
        self.noted: set[str] = set()
        self.notes: list[str] = []
        self.history: list[tuple[Step, Step]] = []

    def to(self, updates: int) -> tuple[Examination, int]:
        """(what was found, updates that were made)."""
        for index in range(updates):
            steps = self.sides[0].step(), self.sides[1].step()
            twin = self.nearby.step()
            self.history = [*self.history[1 - _HISTORY :], steps]
            parted = self._parted(steps, twin)
            if parted is None and index:
                continue
            found = examine(self.sides, self.bridge, steps)
            self.notes += [note for note in found.notes if note not in self.notes]
            if found.divergence is None and parted is not None:
                found.divergence = parted
            if found.divergence is not None:
                found.notes = self.notes
                if found.evidence is not None:
                    first, second = zip(*self.history, strict=True)
                    found.evidence = replace(found.evidence, history=(first, second))
                return found, index + 1
            if not steps[0].results.finite[0]:
                break
        return Examination(notes=self.notes), updates

    def _parted(self, steps: tuple[Step, Step], twin: Step) -> Divergence | None:
        """What differs beyond rounding after an update; told only where no stage of it does."""
        update = steps[0].before.update + 1
        first, second = steps
        after = self.bridge.to_reference(second.after)
        for what, values in (
            ("loss", [s.results.loss[0] for s in (*steps, twin)]),
            ("grad_norm", [s.results.grad_norm[0] for s in (*steps, twin)]),
        ):
            a, b, c = (np.array([value]) for value in values)
            sizes = relative_differences({what: a}, {what: b})[what], relative_differences({what: a}, {what: c})[what]
            if sizes[0] > self.bound(sizes[1]):
                return Divergence("next update", update, what, (float(a[0]), float(b[0])), *sizes)
        skip = undetermined(first, self.sides[0].program.info.parameter_names, self.precision)
        for own, other, nearby in self._states(first.after, after, twin.after):
            sizes, rounding = relative_differences(own, other), relative_differences(own, nearby)
            for name, size in sizes.items():
                if size > self.bound(rounding[name]) and name not in skip and not self._biased(name, own, other, first):
                    values = float(np.abs(own[name]).max()), float(np.abs(other[name]).max())
                    return Divergence(
                        "next update", update, name, values, size, rounding[name], self.bridge.partner(name)
                    )
        return None

    def _states(self, own: Snapshot, other: Snapshot, nearby: Snapshot) -> list[tuple[Mapping, Mapping, Mapping]]:
        """Parameters, model state, each slot of the optimizer: of the reference, the other, the reference nearby."""
        found: list[tuple[Mapping, Mapping, Mapping]] = []
        slots = [(arrays, other.optimizer.get(s, {}), nearby.optimizer[s]) for s, arrays in own.optimizer.items()]
        parts = (
            (own.parameters, other.parameters, nearby.parameters),
            (own.model_state, other.model_state, nearby.model_state),
        )
        for first, second, third in (*parts, *slots):
            common = {
                n: a for n, a in first.items() if n in second and a.dtype.kind == "f" and a.shape == second[n].shape
            }
            found.append((common, second, third))
        return found

    def _biased(self, name: str, own: Mapping, other: Mapping, step: Step) -> bool:
        """Whether it is a running variance that one side keeps unbiased: then it goes on to differ at every update."""
        if name not in step.before.model_state:
            return False
        if name in self.noted or differs_by_bias(own[name], other[name], step.before.model_state[name]) is not None:
            self.noted.add(name)
            return True
        return False


def rounding_curve(trainer: Trainer, start: Snapshot, losses: Sequence[float]) -> np.ndarray:
    """float64 [updates]: the relative difference of each loss from a run that starts one rounding error away."""
    runner, found = Runner(trainer, nudged(start)), np.full(len(losses), np.nan)
    for _ in range(2 * len(losses)):
        step = runner.step()
        if step.results.applied[0]:
            place = runner.update - start.update - 1
            loss = np.array([float(step.results.loss[0])]), np.array([losses[place]])
            found[place] = relative_differences({"loss": loss[0]}, {"loss": loss[1]})["loss"]
        if runner.update - start.update >= len(losses) or not step.results.finite[0]:
            break
    return found
