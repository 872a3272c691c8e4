"""One update as it is examined: both sides from one state, and what is told from rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.core.differences import relative_difference, relative_differences
from multibackend.core.history import term_name
from multibackend.parity.findings import Divergence, LayerFinding
from multibackend.parity.locate.bridge import Bridge
from multibackend.parity.locate.evidence import Evidence
from multibackend.parity.locate.fits import worst_element
from multibackend.parity.locate.rerun import Runner, Step, perturbed
from multibackend.parity.tolerances import TOLERANCES

__all__ = ["ExaminedUpdate", "bound_for", "undetermined"]

# For what is exact when measured: 4500 roundings of float64, 840 of float32, 30 of fp16, 4 of bf16.
_BASE = {"float64": 1e-12, "float32": 1e-4}
_BASE_OF_MIXED = 3e-2
_TIMES = 100.0


def bound_for(precision: str) -> Callable[[float], float]:
    """Return the relative difference up to which nothing is said, given that of rounding.

    Frameworks add up in other orders and fuse, which is more than one rounding error at the start:
    100 times what that makes, and a base for what happens to be exact in the measurement.
    """
    base = _BASE.get(precision, _BASE_OF_MIXED)
    return lambda rounding: base + _TIMES * rounding


def undetermined(step: Step, names: Sequence[str], precision: str) -> set[str]:
    """Return the parameters whose gradient is nothing but rounding."""
    noise = TOLERANCES[precision].noise
    norms = step.results.gradient_norms[0]
    whole = max(float(step.results.grad_norm[0]), np.finfo(np.float64).tiny)
    return {name for name, norm in zip(names, norms, strict=True) if norm / whole <= noise}


class ExaminedUpdate:
    """The windows of both sides from the same state, and the reference's one rounding error away.

    Attributes:
        steps: the reference's own window, and the other's run again from the reference's state.
        perturbed: the reference's from the perturbed state: what it differs by is rounding.
        evidence, layers, notes: what the stages record beside a divergence.
    """

    def __init__(self, sides: tuple[Runner, Runner], bridge: Bridge, steps: tuple[Step, Step]) -> None:
        self.reference, self.other = sides
        self.bridge = bridge
        self.precision = self.reference.experiment.precision
        self.bound = bound_for(self.precision)
        self.start = steps[0].before
        self.other_start = bridge.to_other(self.start, steps[1].before)
        self.perturbed_start = perturbed(self.start)
        self.steps = (steps[0], self.other.rerun(steps[1], self.other_start))
        self.perturbed = self.reference.rerun(steps[0], self.perturbed_start)
        self.evidence = Evidence.of(sides, bridge, self.steps)
        self.layers: tuple[LayerFinding, ...] = ()
        self.notes: list[str] = []

    @property
    def terms(self) -> list[str]:
        """The names of the loss's terms."""
        terms = self.reference.experiment.loss_terms
        return [term_name(name, len(terms)) for name in terms]

    @property
    def undetermined(self) -> set[str]:
        """The parameters whose gradient is nothing but rounding."""
        return undetermined(self.steps[0], self.reference.program.info.parameter_names, self.precision)

    def divergence(
        self, stage: str, what: str, values: tuple[float, float], difference: float, rounding: float | None = None
    ) -> Divergence:
        """Return a divergence at this update."""
        return Divergence(stage, self.evidence.update, what, values, difference, rounding, self.bridge.partner(what))

    def first_of_the_terms(self, reference: np.ndarray, other: np.ndarray, nearby: np.ndarray) -> Divergence | None:
        """Return the first term of the loss that differs more than rounding makes it."""
        for name, *values in zip(self.terms, reference, other, nearby, strict=True):
            difference = relative_difference(values[0], values[1])
            rounding = relative_difference(values[0], values[2])
            if difference > self.bound(rounding):
                return self.divergence("loss", name, (float(values[0]), float(values[1])), difference, rounding)
        return None

    def first_divergence(
        self,
        stage: str,
        reference: Arrays,
        other: Arrays,
        nearby: Arrays,
        *,
        order: Sequence[str],
        skip: Collection[str] = (),
    ) -> Divergence | None:
        """Return the first name in order whose arrays differ more than rounding makes them."""
        differences = relative_differences(reference, other)
        roundings = relative_differences(reference, nearby)
        for name in order:
            if name in skip or name not in differences or differences[name] <= self.bound(roundings[name]):
                continue
            values = worst_element(reference[name], other[name])
            return self.divergence(stage, name, values, differences[name], roundings[name])
        return None
