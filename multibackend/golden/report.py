"""Holds a run against a golden trace: the first divergence in the order of time, and how far everything moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.experiment import Experiment
from multibackend.golden.file import Golden
from multibackend.golden.run import repeat
from multibackend.golden.summary import Summary, difference
from multibackend.parity.findings import Divergence
from multibackend.parity.tolerances import Tolerance, tolerance_for

__all__ = ["GoldenReport", "check", "hold"]

_SAME_NUMBER = 1e-12  # of learning rates and weights, which the host computes the same way everywhere
_DEVIATIONS = 8.0  # standard errors, deviation / sqrt(n), that the mean and the deviation of n elements may stray
_FEW = 16  # elements, of which nothing can be said
_FLOOR = 1e-3  # gradients are measured against no less than this share of the global norm


@dataclass(frozen=True)
class GoldenReport:
    """What came of holding a run against a recording.

    Attributes:
        golden, actual: the recording, and the run now, by the recording's names.
        settings: sentences about what is asked for otherwise than it was recorded: precision, seed, updates, dropout.
        first_divergence: the first place beyond the tolerance of the precision, in the order of time; `values` are the
            recorded one and the one now.
        place: where in the tensor, "norm", "mean" or "element [0, 3]", where `first_divergence` is about a tensor.
        losses: relative difference of each update's loss.
        parameters: relative difference of each parameter at the end, as far as the recording tells.
        notes: sentences about running variances that another framework keeps otherwise. They fail no run: a layer that
            a user brings keeps its own definition, Flax's BatchNorm the biased variance, torch's the unbiased.
    """

    golden: Golden
    actual: Golden
    settings: tuple[str, ...]
    first_divergence: Divergence | None
    place: str
    losses: np.ndarray
    parameters: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        """Whether everything is within the tolerance and was asked for as recorded."""
        return self.first_divergence is None and not self.settings

    @property
    def identical(self) -> bool:
        """Whether every loss and every tensor at the end is the recorded one bit for bit."""
        ends = ((self.golden.end, self.actual.end), (self.golden.state_end, self.actual.state_end))
        same = all(
            name in other and one.digest == other[name].digest for table, other in ends for name, one in table.items()
        )
        return same and self.golden.history["loss"] == self.actual.history["loss"]

    def __str__(self) -> str:
        return "\n".join([self.verdict(), *(f"  {line}" for line in self.details())])

    def verdict(self) -> str:
        """One sentence: does the run match the recording, and where does it part from it?"""
        golden, actual = self.golden, self.actual
        pair = f"{actual.experiment} on {actual.backend} ({actual.versions})"
        recorded = f"the golden trace of {golden.backend} ({golden.versions}), {golden.updates} updates"
        if self.matches:
            how = "bit for bit" if self.identical else f"within the tolerance of {golden.precision}"
            return f"{pair} matches {recorded}, {how}"
        return f"{pair} does NOT match {recorded} in {golden.precision}"

    def details(self) -> list[str]:
        """What differs: the settings, the first divergence, how many losses and parameters moved and how far."""
        lines = [*self.settings]
        found = self.first_divergence
        if found is None:
            return [*lines, *self.notes]
        what = f"{found.stage}: {found.what} ({self.place})" if self.place else found.what
        first, second = found.values
        lines.append(
            f"First divergence: {what} at update {found.update}: recorded {first:.9g}, now {second:.9g} "
            f"(relative {found.difference:.1e})"
        )
        return lines + self.moved()

    def moved(self) -> list[str]:
        """How many losses and parameters moved beyond the tolerance, and which ones the most."""
        tolerance, lines = tolerance_for(self.golden.precision), []
        beyond = int((self.losses > tolerance.loss).sum())
        if beyond:
            worst = int(np.argmax(self.losses))
            lines.append(
                f"{beyond} of {len(self.losses)} losses moved, most at update {worst + 1} "
                f"(relative {self.losses[worst]:.1e})"
            )
        gaps = {name: gap for name, gap in self.parameters.items() if gap > _bound(self, name, tolerance)}
        if gaps:
            largest = sorted(gaps, key=lambda name: -gaps[name])[:5]
            named = ", ".join(f"{name} {gaps[name]:.1e}" for name in largest)
            more = ", ..." if len(gaps) > len(largest) else ""
            lines.append(f"{len(gaps)} of {len(self.parameters)} parameters moved by the end: {named}{more}")
        return lines


def check(
    golden: Golden,
    experiment: Experiment,
    backend: str,
    *,
    updates: int | None = None,
    device: str | None = None,
    execution: str = "auto",
) -> GoldenReport:
    """Run an experiment as a golden trace was recorded, on any backend, and hold it against the trace.

    Args:
        golden: from `load`.
        experiment: what to train; in another precision or with another seed than recorded it does not match.
        backend, device, execution: as for `Trainer`.
        updates: how many are asked for; as many as were recorded unless given.

    Raises:
        ParameterMatchError: the model's parameters and the recorded ones do not pair up.

    >>> report = golden.check(golden.load("digits.json"), experiment, "jax")   # doctest: +SKIP
    >>> report.matches, report.first_divergence                                # doctest: +SKIP
    (True, None)
    """
    return hold(golden, repeat(golden, experiment, backend, updates=updates, device=device, execution=execution))


def hold(golden: Golden, actual: Golden) -> GoldenReport:
    """Hold one trace against another, both with the recording's names."""
    tolerance = tolerance_for(golden.precision)
    settings = tuple(
        f"{name}: recorded with {getattr(golden, name)!r}, asked for is {getattr(actual, name)!r}"
        for name in ("precision", "seed", "updates", "dropout")
        if getattr(golden, name) != getattr(actual, name)
    )
    first, place = next(_divergences(golden, actual, tolerance), (None, ""))
    common = min(golden.updates, actual.updates)
    pairs = zip(golden.history["loss"][:common], actual.history["loss"][:common], strict=True)
    losses = np.array([relative_difference(one, other) for one, other in pairs])
    floor = _floor(golden.end, actual.end)
    ends = {name: difference(one, actual.end[name], floor)[0] for name, one in golden.end.items()}
    return GoldenReport(golden, actual, settings, first, place, losses, ends, _notes(golden, actual, tolerance))


def _divergences(golden: Golden, actual: Golden, tolerance: Tolerance) -> Iterator[tuple[Divergence, str]]:
    """Everything beyond its bound, in the order of time; then the tensors, the worst first."""
    yield from _fields(golden, actual, tolerance)
    yield from _laws(golden, actual)
    yield from _tensors("initial parameters", 1, golden.start, actual.start, lambda _: tolerance.parameters)
    yield from _tensors("model state", 1, golden.state_start, actual.state_start, lambda _: tolerance.parameters)
    for index in range(min(golden.updates, actual.updates)):
        yield from _update(index, golden, actual, tolerance)
    if golden.skipped != actual.skipped:
        counts = float(len(golden.skipped)), float(len(actual.skipped))
        yield Divergence("update", golden.updates, "number of skipped windows", counts, 1.0), ""
    if golden.updates != actual.updates:
        return

    def bound(name: str) -> float:
        return tolerance.undetermined if _is_noise(golden, actual, name, tolerance) else tolerance.parameters

    yield from _tensors("update", golden.updates, golden.end, actual.end, bound)
    state = {name: one for name, one in golden.state_end.items() if not _is_variance(golden, actual, name)}
    noisy = any(_is_noise(golden, actual, name, tolerance) for name in golden.end)
    # a bias before a BatchNorm, whose gradient is nothing but rounding, moves its running mean
    loosest = tolerance.undetermined if noisy else tolerance.parameters
    yield from _tensors("model state", golden.updates, state, actual.state_end, lambda _: loosest)


def _is_variance(golden: Golden, actual: Golden, name: str) -> bool:
    """Whether a statistic is a running variance of another framework, which may keep the biased one."""
    return golden.backend != actual.backend and name.rpartition(".")[2] == "running_var"


def _notes(golden: Golden, actual: Golden, tolerance: Tolerance) -> tuple[str, ...]:
    """Running variances at the end that another framework defines otherwise."""
    if golden.updates != actual.updates:
        return ()
    state = {name: one for name, one in golden.state_end.items() if _is_variance(golden, actual, name)}
    found = _tensors("model state", golden.updates, state, actual.state_end, lambda _: tolerance.parameters)
    return tuple(
        f"Note: {one.what} ({place}): recorded {one.values[0]:.9g} on {golden.backend}, now {one.values[1]:.9g} on "
        f"{actual.backend}; training does not use it, evaluation does"
        for one, place in found
    )


def _fields(golden: Golden, actual: Golden, tolerance: Tolerance) -> Iterator[tuple[Divergence, str]]:
    """The examples of the first window, where both sides know them."""
    if not golden.data or not actual.data:
        return
    missing = [name for name in golden.data if name not in actual.data]
    for name in missing:
        yield Divergence("data order", 1, name, (golden.data[name].norm, math.nan), math.inf), "norm"
    here = {name: actual.data[name] for name in golden.data if name not in missing}
    kept = {name: golden.data[name] for name in here}
    yield from _tensors("data order", 1, kept, here, lambda _: tolerance.loss)


def _laws(golden: Golden, actual: Golden) -> Iterator[tuple[Divergence, str]]:
    """Initialisation laws, where the framework is the same: each has its own defaults, which are no regression."""
    if golden.backend != actual.backend:
        return
    for name, law in golden.laws.items():
        now = actual.laws[name]
        count, least = math.prod(law.shape), min(law.deviation, now.deviation)
        if count < _FEW and least > 0:
            continue
        stray = _DEVIATIONS * least / math.sqrt(max(count, 1))
        for what in ("mean", "deviation"):
            one, other = getattr(law, what), getattr(now, what)
            if abs(one - other) > stray + _SAME_NUMBER * abs(one):
                gap = relative_difference(one, other)
                yield Divergence("initial parameters", 1, name, (one, other), gap), f"{what} of the builder's values"


def _update(index: int, golden: Golden, actual: Golden, tolerance: Tolerance) -> Iterator[tuple[Divergence, str]]:
    """One update: what the host decides, the loss, the gradients where they were kept, their global norm."""
    bounds = {"learning_rate": _SAME_NUMBER, "weight": _SAME_NUMBER, "loss": tolerance.loss}
    stages = {"learning_rate": "update", "weight": "data order", "loss": "loss"}
    for what, bound in bounds.items():
        values = golden.history[what][index], actual.history[what][index]
        if relative_difference(*values) > bound:
            named = "weight of the window" if what == "weight" else what  # a parameter may be called so
            yield Divergence(stages[what], index + 1, named, values, relative_difference(*values)), ""
    norms = golden.history["grad_norm"][index], actual.history["grad_norm"][index]
    if index + 1 in golden.gradient_updates and index + 1 in actual.gradient_updates:
        one, other = golden.gradient_updates.index(index + 1), actual.gradient_updates.index(index + 1)
        names = [name for name in golden.gradients if name in actual.gradients]  # not those that one side has fused
        pairs = {name: (golden.gradients[name][one], actual.gradients[name][other]) for name in names}
        gaps = {name: relative_difference(*values, floor=_FLOOR * max(norms)) for name, values in pairs.items()}
        for name in sorted(gaps, key=lambda name: -gaps[name]):
            if gaps[name] > tolerance.parameters:
                yield Divergence("gradients", index + 1, name, pairs[name], gaps[name]), "norm"
    if relative_difference(*norms) > tolerance.parameters:
        yield Divergence("gradients", index + 1, "grad_norm", norms, relative_difference(*norms)), ""


def _tensors(
    stage: str, update: int, golden: Mapping[str, Summary], actual: Mapping[str, Summary], bound: Callable[[str], float]
) -> Iterator[tuple[Divergence, str]]:
    """The tensors beyond their bound, the one that exceeds it by the largest factor first."""
    floor = _floor(golden, actual)
    found = {name: difference(one, actual[name], floor) for name, one in golden.items() if name in actual}
    excess = {name: gap / bound(name) if gap else 0.0 for name, (gap, _, _) in found.items()}
    for name in sorted(excess, key=lambda name: -excess[name]):
        if excess[name] > 1:
            gap, place, values = found[name]
            yield Divergence(stage, update, name, values, gap), place


def _floor(golden: Mapping[str, Summary], actual: Mapping[str, Summary]) -> float:
    """A thousandth of the median tensor's largest element, as `multibackend.parity.relative_differences` has it."""
    sizes = [max(one.largest, actual[name].largest) for name, one in golden.items() if name in actual]
    return 1e-3 * float(np.median(sizes)) if sizes else 0.0


def _is_noise(golden: Golden, actual: Golden, name: str, tolerance: Tolerance) -> bool:
    """Whether the gradient of a parameter is nothing but rounding in both runs."""
    return max(golden.shares.get(name, 1.0), actual.shares.get(name, 0.0)) <= tolerance.noise


def _bound(report: GoldenReport, name: str, tolerance: Tolerance) -> float:
    noise = _is_noise(report.golden, report.actual, name, tolerance)
    return tolerance.undetermined if noise else tolerance.parameters
