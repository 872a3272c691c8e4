"""What comes of holding a run against a golden trace: where they part, and how far all moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multibackend.core.differences import relative_difference
from multibackend.core.validation import Problems
from multibackend.experiment import Experiment
from multibackend.golden.divergences import Traces, floor_of
from multibackend.golden.file import Golden
from multibackend.golden.run import repeat
from multibackend.golden.summary import Summary, difference
from multibackend.parity.findings import Divergence
from multibackend.parity.tolerances import tolerance_for

__all__ = ["GoldenReport", "check", "hold"]


@dataclass(frozen=True)
class GoldenReport:
    """What came of holding a run against a recording.

    Attributes:
        golden, actual: the recording, and the run now, by the recording's names.
        settings: sentences about what is asked for otherwise than it was recorded: precision,
            seed, updates, dropout.
        first_divergence: the first place beyond the tolerance of the precision, in the order of
            time; `values` are the recorded one and the one now.
        place: where in the tensor, "norm", "mean" or "element [0, 3]", where `first_divergence` is
            about a tensor.
        losses: relative difference of each update's loss.
        parameters: relative difference of each parameter at the end, as far as the recording tells.
        notes: sentences about running variances that another framework keeps otherwise. They fail
            no run: a layer that a user brings keeps its own definition, Flax's BatchNorm the biased
            variance, torch's the unbiased.
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
        return (
            self.golden.history["loss"] == self.actual.history["loss"]
            and _are_identical(self.golden.end, self.actual.end)
            and _are_identical(self.golden.state_end, self.actual.state_end)
        )

    def __str__(self) -> str:
        return "\n".join([self.verdict(), *(f"  {line}" for line in self.details())])

    def verdict(self) -> str:
        """One sentence: does the run match the recording, and where does it part from it?"""
        golden = self.golden
        actual = self.actual
        run = f"{actual.experiment} on {actual.backend} ({actual.versions})"
        recorded = f"the golden trace of {golden.backend} ({golden.versions}), {golden.updates} updates"
        if not self.matches:
            return f"{run} does NOT match {recorded} in {golden.precision}"
        how = "bit for bit" if self.identical else f"within the tolerance of {golden.precision}"
        return f"{run} matches {recorded}, {how}"

    def details(self) -> list[str]:
        """What differs: settings, the first divergence, how many losses and parameters moved how far."""
        divergence = self.first_divergence
        if divergence is None:
            return [*self.settings, *self.notes]
        what = divergence.what
        if self.place:  # in a tensor, whose name alone does not say what of it
            what = f"{divergence.stage}: {what} ({self.place})"
        recorded, now = divergence.values
        first = (
            f"First divergence: {what} at update {divergence.update}: recorded {recorded:.9g}, now {now:.9g} "
            f"(relative {divergence.difference:.1e})"
        )
        return [*self.settings, first, *self.moved()]

    def moved(self) -> list[str]:
        """How many losses and parameters moved beyond the tolerance, and which ones the most."""
        sentences = []
        moved_losses = int((self.losses > tolerance_for(self.golden.precision).loss).sum())
        if moved_losses:
            worst = int(np.argmax(self.losses))
            sentences.append(
                f"{moved_losses} of {len(self.losses)} losses moved, most at update {worst + 1} "
                f"(relative {self.losses[worst]:.1e})"
            )
        traces = Traces(self.golden, self.actual)
        gaps = {name: gap for name, gap in self.parameters.items() if gap > traces.bound(name)}
        if gaps:
            # a wrong step moves all of them; the worst say where to look
            largest = sorted(gaps, key=lambda name: -gaps[name])[:5]
            named = ", ".join(f"{name} {gaps[name]:.1e}" for name in largest)
            more = ", ..." if len(gaps) > len(largest) else ""
            sentences.append(f"{len(gaps)} of {len(self.parameters)} parameters moved by the end: {named}{more}")
        return sentences


def _are_identical(golden: Mapping[str, Summary], actual: Mapping[str, Summary]) -> bool:
    return all(name in actual and summary.digest == actual[name].digest for name, summary in golden.items())


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
        experiment: what to train; in another precision or with another seed than recorded it
            does not match.
        backend, device, execution: as for `Trainer`.
        updates: how many are asked for; as many as were recorded unless given.

    Raises:
        ParameterMatchError: the model's parameters and the recorded ones do not pair up.

    >>> report = golden.check(golden.load("digits.json"), experiment, "jax")   # doctest: +SKIP
    >>> report.matches, report.first_divergence                                # doctest: +SKIP
    (True, None)
    """
    problems = Problems("golden.check")
    problems.instance("golden", golden, Golden, "a trace, of golden.load or golden.record")
    problems.raise_if_any()
    return hold(golden, repeat(golden, experiment, backend, updates=updates, device=device, execution=execution))


def hold(golden: Golden, actual: Golden) -> GoldenReport:
    """Hold one trace against another, both with the recording's names."""
    traces = Traces(golden, actual)
    settings = []
    for name in ("precision", "seed", "updates", "dropout"):
        recorded = getattr(golden, name)
        now = getattr(actual, name)
        if recorded != now:
            settings.append(f"{name}: recorded with {recorded!r}, asked for is {now!r}")
    divergence, place = next(traces.divergences(), (None, ""))
    # as many as both have: the other may have been asked for more updates
    losses = zip(golden.history["loss"], actual.history["loss"], strict=False)
    gaps = [relative_difference(recorded, now) for recorded, now in losses]
    floor = floor_of(golden.end, actual.end)
    return GoldenReport(
        golden=golden,
        actual=actual,
        settings=tuple(settings),
        first_divergence=divergence,
        place=place,
        losses=np.array(gaps),
        parameters={name: difference(end, actual.end[name], floor)[0] for name, end in golden.end.items()},
        notes=tuple(traces.notes()),
    )
