"""One update from its gradient: which optimizer's rule each side follows, with which numbers.

The learning rate a and the decay b enter a step p' - p = -a u - b p linearly, so they are fitted by least
squares, over all parameters at once; what is left over decides whether the rule holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.parity.causes.formulas import Difference, Formula, difference_in, differing, distance, least_squares
from multibackend.parity.causes.update_rules import UpdateRule, candidate_rules, clipped, direction

__all__ = ["RecordedUpdates", "clip_difference", "slot_difference", "update_difference"]

_ALIKE = 1e-10
_MACHINE_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class RecordedUpdates:
    """What one side did in its first updates.

    Attributes:
        gradients: of each update, normalised, before clipping, by the reference's names.
        parameters: before the first update, then after each.
        learning_rates: of each update, as the experiment says.
        max_grad_norm: as the experiment says.
        settings: of the optimizer, whose numbers are tried too.
    """

    gradients: Sequence[Arrays]
    parameters: Sequence[Arrays]
    learning_rates: Sequence[float]
    max_grad_norm: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def clipped(self, gradient: Array) -> Array:
        """One of the last gradients after the experiment's own clipping."""
        norm = _norm(self.gradients[-1])
        if not self.max_grad_norm or not norm:
            return gradient
        return gradient * min(1.0, self.max_grad_norm / norm)

    def first(self, count: int) -> RecordedUpdates:
        """The first updates alone."""
        return replace(
            self,
            gradients=self.gradients[:count],
            parameters=self.parameters[: count + 1],
            learning_rates=self.learning_rates[:count],
        )


Sides = tuple[RecordedUpdates, RecordedUpdates]


@dataclass(frozen=True)
class _Fit:
    """A rule that gives a recorded step, with the learning rate and the decay that were fitted."""

    rule: UpdateRule
    traits: Mapping[str, object]
    rate: float
    decay: float


def update_difference(sides: Sides, what: str = "") -> Difference | None:
    """The rules of the first update in which the sides part, over all parameters, else over one.

    Args:
        sides: from a state that both began in.
        what: a parameter.
    """
    count = _until_they_part(sides)
    sides = sides[0].first(count), sides[1].first(count)
    names = sorted(set(sides[0].gradients[0]) & set(sides[1].gradients[0]))
    if not names:
        return None
    difference = _difference(sides, names)
    # one parameter may follow another rule than the rest, for example one without decay
    if difference is None and what in names:
        difference = _difference(sides, [what])
    return difference


def _until_they_part(sides: Sides) -> int:
    """The number of updates up to the first after which a parameter differs."""
    count = len(sides[0].gradients)
    for number in range(1, count):
        reference = sides[0].parameters[number]
        other = sides[1].parameters[number]
        for name in reference.keys() & other.keys():
            if distance(reference[name], other[name]) > _ALIKE:
                return number
    return count


Limits = tuple[float | None, float | None]


def clip_difference(values: tuple[float, float], limits: Limits) -> Difference | None:
    """Other limits of the norm, from the factors by which gradients were scaled."""
    largest = max(abs(values[0]), abs(values[1]))
    if limits[0] == limits[1] or largest == 0:
        return None
    return difference_in("clip", "max_grad_norm", limits, abs(values[0] - values[1]) / largest, None)


def _difference(sides: Sides, names: Sequence[str]) -> Difference | None:
    """Fit both sides' updates of some parameters; None unless the reference's rule undoes it all."""
    reference = _Update(sides[0], names)
    other = _Update(sides[1], names)
    before = distance(reference.step, other.step)
    # the reference's rule first, then the other side's among the rules nearest to it
    limits = (sides[0].max_grad_norm, sides[1].max_grad_norm)
    rules = list(candidate_rules(limits, (sides[0].settings, sides[1].settings)))
    fit = _first_fit(reference, rules)
    if fit is None:
        return None
    other_fit = _first_fit(other, sorted(rules, key=lambda rule: _count_differing(fit.rule, rule)))
    if other_fit is None or other_fit.traits == fit.traits:
        return None
    after = distance(reference.step, other.stepped(fit) - other.before)
    if after > max(0.1 * before, 1e-13):
        return None
    first = Formula("update", fit.traits, lambda: None)
    second = Formula("update", other_fit.traits, lambda: None)
    return Difference((first, second), differing(first, second), before, after)


def _first_fit(update: _Update, rules: Iterable[UpdateRule]) -> _Fit | None:
    """The first rule that fits with the learning rate that the experiment names, else with any."""
    first = None
    for fit in _fits(update, rules):
        if abs(fit.rate - update.rate) <= 1e-6 * abs(update.rate):
            return fit
        first = first or fit
    return first


def _count_differing(rule: UpdateRule, other: UpdateRule) -> float:
    """How many options differ; momentum and Nesterov's are nearer than other optimizers."""
    options = vars(rule)
    count = float(sum(options[name] != value for name, value in vars(other).items()))
    if {rule.optimizer, other.optimizer} == {"momentum", "Nesterov"}:
        return count - 0.5
    return count


class _Update:
    """All parameters of a side as one vector, update by update, and the last of these updates."""

    def __init__(self, side: RecordedUpdates, names: Sequence[str]) -> None:
        self.norms = [_norm(gradients) for gradients in side.gradients]
        self.gradients = [_flat(gradients, names) for gradients in side.gradients]
        self.parameters = [_flat(parameters, names) for parameters in side.parameters]
        self.before = self.parameters[-2]
        self.after = self.parameters[-1]
        self.step = self.after - self.before
        self.rate = side.learning_rates[-1]

    def direction(self, rule: UpdateRule) -> Array:
        """u of a rule, with clipping and decay that goes into the gradient."""
        gradients = []
        for gradient, norm, parameters in zip(self.gradients, self.norms, self.parameters[:-1], strict=True):
            gradients.append(clipped(gradient, norm, rule.clip) + rule.coupled * parameters)
        return direction(gradients, rule)

    def fitted(self, rule: UpdateRule) -> tuple[float, float] | None:
        """Learning rate and decay that give the step to rounding."""
        u = self.direction(rule)
        if not np.isfinite(u).all() or not u.any():
            return None
        # columns of one size: a decay is small beside a rate and would be lost in rounding
        matrix = np.stack([-u, -self.before], axis=1)
        scale = np.sqrt((matrix**2).sum(0))
        # parameters that are all 0 have no decay
        if scale[1] == 0:
            matrix = matrix[:, :1]
            scale = scale[:1]
        solution = least_squares(matrix / scale, self.step)
        if solution is None:
            return None
        factors = solution[0] / scale
        rest = np.abs(matrix @ factors - self.step).max()
        # the step is the difference of parameters, whose rounding it has
        room = 64 * _MACHINE_EPSILON * np.abs(self.after).max() + 1e-11 * np.abs(self.step).max()
        if rest > room:
            return None
        rate, decay = (*factors, 0.0)[:2]
        return float(rate), float(decay)

    def stepped(self, fit: _Fit) -> Array:
        """The parameters after the step that another side's fit makes here."""
        return self.before - fit.rate * self.direction(fit.rule) - fit.decay * self.before


def _norm(arrays: Arrays) -> float:
    return np.sqrt(sum(float((np.asarray(array) ** 2).sum()) for array in arrays.values()))


def _flat(arrays: Arrays, names: Sequence[str]) -> Array:
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in names])


def _fits(update: _Update, rules: Iterable[UpdateRule]) -> Iterator[_Fit]:
    """The rules that give an update's step to rounding."""
    for rule in rules:
        with np.errstate(all="ignore"):
            factors = update.fitted(rule)
        if factors is None:
            continue
        rate, decay = factors
        if abs(decay) < 1e-9 * abs(rate):
            decay = 0.0
        # one way to decay is enough; without a step there is no decay to tell
        if (rule.coupled and decay) or rate == 0:
            continue
        weight_decay = _six_digits(rule.coupled or decay / rate)
        traits = {**rule.traits(), "weight decay": weight_decay}
        traits |= {"kind of decay": _kind_of_decay(rule, decay), "learning rate": _six_digits(rate)}
        yield _Fit(rule, traits, rate, decay)


def _kind_of_decay(rule: UpdateRule, decay: float) -> str:
    if rule.coupled:
        return "coupled: into the gradient"
    if not decay:
        return "none"
    if rule.optimizer == "SGD":
        return "in the gradient or outside: the same for SGD"
    return "decoupled"


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def slot_difference(sides: Sequence[tuple[Array, Array, Array]]) -> Difference | None:
    """Other moving averages: new = b old + (1 - b) x, with x the gradient or its square.

    Args:
        sides: of each side a slot before and after the update, and the gradient as it entered.
    """
    _, recorded, _ = sides[0]
    old, new, gradient = sides[1]
    fit = _moving_average(*sides[0])
    other_fit = _moving_average(*sides[1])
    if fit is None or other_fit is None or fit[0] != other_fit[0] or fit[1] == other_fit[1]:
        return None
    name, decay = fit
    x = gradient if name == "beta1" else gradient**2
    after = distance(recorded, decay * old + (1 - decay) * x)
    return difference_in("update", name, (decay, other_fit[1]), distance(recorded, new), after)


def _moving_average(old: Array, new: Array, gradient: Array) -> tuple[str, float] | None:
    """Which average a slot is, beta1's of gradients or beta2's of squares, and its decay."""
    for name, x in (("beta1", gradient), ("beta2", gradient**2)):
        way = np.asarray(old - x, np.float64).ravel()
        power = float(way @ way)
        if power == 0:
            continue
        decay = float(way @ (new - x).ravel()) / power
        if 0 <= decay < 1 and distance(np.asarray(new), decay * old + (1 - decay) * x) <= 1e-9:
            return name, _six_digits(decay)
    return None
