"""One update from its gradient: which optimizer law each side follows, with which numbers.

Every law gives a direction u, and the step is p' - p = -a u - b p. The learning rate a and the decay b enter linearly,
so they are fitted by least squares, over all parameters at once; what is left over decides whether the law holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Array, Arrays
from multibackend.parity.causes.laws import Difference, Law, distance

__all__ = ["UpdateSide", "clip_difference", "slot_difference", "update_difference"]


_ALIKE = 1e-10


@dataclass(frozen=True)
class UpdateSide:
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
        norm = np.sqrt(sum(float((np.asarray(array) ** 2).sum()) for array in self.gradients[-1].values()))
        limit = self.max_grad_norm
        return gradient * min(1.0, limit / norm) if limit and norm else gradient


@dataclass(frozen=True)
class _Recipe:
    """The traits of an update law but for learning rate and decay, which are fitted."""

    optimizer: str = "Adam"
    eps: float = 1e-8
    place: str = "outside the root"
    beta1: float = 0.9
    beta2: float = 0.999
    corrected: bool = True
    coupled: float = 0.0
    clip: str = "none"

    def traits(self) -> dict[str, object]:
        adaptive = self.optimizer in ("Adam", "NAdam", "RMSprop", "Adagrad")
        named: dict[str, object] = {"optimizer": self.optimizer, "clipping": self.clip}
        if adaptive:
            named |= {"epsilon": self.eps, "epsilon's place": self.place}
        if self.optimizer in ("Adam", "NAdam"):
            named |= {"beta1": self.beta1, "beta2": self.beta2}
            named["bias correction"] = "on" if self.corrected else "off"
        elif self.optimizer in ("momentum", "Nesterov", "Lion", "dampened momentum"):
            named["momentum"] = self.beta1
        elif self.optimizer == "RMSprop":
            named["beta2"] = self.beta2
        return named


def update_difference(sides: tuple[UpdateSide, UpdateSide], what: str = "") -> Difference | None:
    """The laws of the first update in which the sides move apart: over all parameters, else over the one called `what`.

    Args:
        sides: from a state that both began in.
        what: a parameter.
    """
    sides = _until_they_part(sides)
    names = sorted(set(sides[0].gradients[0]) & set(sides[1].gradients[0]))
    for chosen in (names, [what] if what in names else []):
        found = _difference(sides, chosen) if chosen else None
        if found is not None:
            return found
    return None


def _until_they_part(sides: tuple[UpdateSide, UpdateSide]) -> tuple[UpdateSide, UpdateSide]:
    """Both sides up to the first update after which a parameter differs."""
    first, second = sides
    count = len(first.gradients)
    for number in range(1, count):
        one, other = first.parameters[number], second.parameters[number]
        if any(distance(one[name], other[name]) > _ALIKE for name in one if name in other):
            count = number
            break
    early = (
        replace(
            side,
            gradients=side.gradients[:count],
            parameters=side.parameters[: count + 1],
            learning_rates=side.learning_rates[:count],
        )
        for side in sides
    )
    return next(early), next(early)


def clip_difference(values: tuple[float, float], limits: tuple[float | None, float | None]) -> Difference | None:
    """Other limits of the norm, from the factors by which gradients were scaled."""
    if limits[0] == limits[1]:
        return None
    before = abs(values[0] - values[1]) / max(map(abs, values))
    laws = [Law("clip", {"max_grad_norm": limit}, lambda: None) for limit in limits]
    return Difference((laws[0], laws[1]), ("max_grad_norm",), before, None)


def _difference(sides: tuple[UpdateSide, UpdateSide], names: Sequence[str]) -> Difference | None:
    stacks = [_Stack(side, names) for side in sides]
    before = distance(stacks[0].after - stacks[0].before, stacks[1].after - stacks[1].before)
    first = _first_fit(stacks[0], list(_recipes(sides)))
    if first is None:
        return None
    recipe, traits, rates = first
    second = _first_fit(stacks[1], sorted(_recipes(sides), key=lambda other: _distance(recipe, other)))
    if second is None or second[1] == traits:
        return None
    undone = stacks[1].stepped(recipe, rates)
    after = distance(stacks[0].after - stacks[0].before, undone - stacks[1].before)
    if after > max(0.1 * before, 1e-13):
        return None
    differing = tuple(n for n in dict.fromkeys([*traits, *second[1]]) if traits.get(n) != second[1].get(n))
    laws = [Law("update", named, lambda: None) for named in (traits, second[1])]
    return Difference((laws[0], laws[1]), differing, before, after)


def _first_fit(
    stack: _Stack, recipes: Sequence[_Recipe]
) -> tuple[_Recipe, dict[str, object], tuple[float, float]] | None:
    """The first law that fits with the learning rate that the experiment names, else with any."""
    other = None
    for found in _fitting(stack, iter(recipes)):
        if abs(found[2][0] - stack.rate) <= 1e-6 * abs(stack.rate):
            return found
        other = found if other is None else other
    return other


def _distance(one: _Recipe, other: _Recipe) -> float:
    """How many options differ; momentum and Nesterov's are nearer than other optimizers."""
    count = float(sum(getattr(one, name) != getattr(other, name) for name in one.__dataclass_fields__))
    return count - 0.5 if {one.optimizer, other.optimizer} == {"momentum", "Nesterov"} else count


class _Stack:
    """All parameters of a side as one vector, update by update."""

    def __init__(self, side: UpdateSide, names: Sequence[str]) -> None:
        self.names = names
        self.norms = [np.sqrt(sum(float((np.asarray(a) ** 2).sum()) for a in g.values())) for g in side.gradients]
        self.gradients = [self._flat(g) for g in side.gradients]
        self.parameters = [self._flat(p) for p in side.parameters]
        self.before, self.after, self.rate = self.parameters[-2], self.parameters[-1], side.learning_rates[-1]
        self._directions: dict[_Recipe, Array] = {}

    def _flat(self, arrays: Arrays) -> Array:
        return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in self.names])

    def direction(self, recipe: _Recipe) -> Array:
        if recipe not in self._directions:
            clipped = [_clipped(g, norm, recipe.clip) for g, norm in zip(self.gradients, self.norms, strict=True)]
            coupled = [g + recipe.coupled * p for g, p in zip(clipped, self.parameters, strict=False)]
            self._directions[recipe] = _direction(coupled, recipe)
        return self._directions[recipe]

    def fitted(self, recipe: _Recipe) -> tuple[float, float] | None:
        """Learning rate and decay that give the step to rounding."""
        u, p, step = self.direction(recipe), self.before, self.after - self.before
        if not np.isfinite(u).all() or not u.any():
            return None
        matrix = np.stack([-u, -p], axis=1)
        scale = np.sqrt((matrix**2).sum(0))
        if scale[1] == 0:
            matrix, scale = matrix[:, :1], scale[:1]
        factors = np.linalg.lstsq(matrix / scale, step, rcond=None)[0] / scale
        left = np.abs(matrix @ factors - step).max()
        room = 64 * np.finfo(np.float64).eps * np.abs(self.after).max() + 1e-11 * np.abs(step).max()
        if left > room:
            return None
        return float(factors[0]), float(factors[1]) if len(factors) > 1 else 0.0

    def stepped(self, recipe: _Recipe, rates: tuple[float, float]) -> Array:
        u = self.direction(recipe)
        return self.before - rates[0] * u - rates[1] * self.before


def _fitting(
    stack: _Stack, recipes: Iterator[_Recipe]
) -> Iterator[tuple[_Recipe, dict[str, object], tuple[float, float]]]:
    for recipe in recipes:
        with np.errstate(all="ignore"):
            rates = stack.fitted(recipe)
        if rates is None:
            continue
        rate, decay = rates
        if abs(decay) < 1e-9 * abs(rate):
            decay = 0.0
        coupled = recipe.coupled
        weight_decay = coupled or decay / rate
        if coupled and decay:
            continue  # one way to decay is enough
        kind = "none" if not weight_decay else "coupled: into the gradient" if coupled else "decoupled"
        if recipe.optimizer == "SGD" and decay:
            kind = "in the gradient or outside: the same for SGD"
        traits = recipe.traits() | {"weight decay": _round(weight_decay), "kind of decay": kind}
        traits["learning rate"] = _round(rate)
        yield recipe, traits, (rate, decay)


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _clipped(gradient: Array, norm: float, clip: str) -> Array:
    kind, _, limit = clip.rpartition(" ")
    if kind == "norm":
        return gradient * min(1.0, float(limit) / norm)
    return np.clip(gradient, -float(limit), float(limit)) if kind == "value" else gradient


def _direction(gradients: Sequence[Array], recipe: _Recipe) -> Array:
    """u after the last of several gradients."""
    g, b1, b2, t = gradients[-1], recipe.beta1, recipe.beta2, len(gradients)
    if recipe.optimizer == "SGD":
        return g
    if recipe.optimizer in ("momentum", "Nesterov", "dampened momentum"):
        share = 1 - b1 if recipe.optimizer == "dampened momentum" else 1.0
        m = gradients[0] * (share if recipe.optimizer == "dampened momentum" else 1.0)
        for gradient in gradients[1:]:
            m = b1 * m + share * gradient
        return g + b1 * m if recipe.optimizer == "Nesterov" else m
    if recipe.optimizer == "Lion":
        m = np.zeros_like(g)
        for gradient in gradients[:-1]:
            m = b2 * m + (1 - b2) * gradient
        return np.sign(b1 * m + (1 - b1) * g)
    return _adaptive(gradients, recipe, b1, b2, t)


def _adaptive(gradients: Sequence[Array], recipe: _Recipe, b1: float, b2: float, t: int) -> Array:
    g = gradients[-1]
    m, v = np.zeros_like(g), np.zeros_like(g)
    for gradient in gradients:
        m = b1 * m + (1 - b1) * gradient
        v = v + gradient**2 if recipe.optimizer == "Adagrad" else b2 * v + (1 - b2) * gradient**2
    if recipe.optimizer in ("RMSprop", "Adagrad"):
        m = g
    elif recipe.corrected:
        m = m / (1 - b1**t)
        v = v / (1 - b2**t)
    if recipe.optimizer == "NAdam":
        m = b1 * m + (1 - b1) * g / (1 - b1**t)
    root = np.sqrt(v + recipe.eps) if recipe.place == "in the root" else np.sqrt(v) + recipe.eps
    return m / root


def _recipes(sides: Sequence[UpdateSide]) -> Iterator[_Recipe]:
    """Each optimizer with its usual numbers, then with one changed, then with two."""
    limits = dict.fromkeys(side.max_grad_norm for side in sides if side.max_grad_norm)
    clips = ["none", *(f"norm {limit:g}" for limit in limits)]
    numbers = dict.fromkeys([*limits, 1.0, 0.5, 5.0, 0.1, 0.25, 10.0, 2.0, 0.01])
    more = [f"{kind} {limit:g}" for kind, limit in itertools.product(("norm", "value"), numbers)]
    told = [side.settings for side in sides]

    def numbers_of(*names: str) -> list[float]:
        return [s[n] for s in told for n in names if isinstance(s.get(n), float)]

    decays = (*numbers_of("weight_decay"), 0.01, 0.1, 0.0001, 0.001, 0.05, 0.0005, 0.02, 0.2, 0.3, 0.03)
    changes: dict[str, Sequence[object]] = {
        "eps": (*numbers_of("eps"), 1e-8, 1e-6, 1e-7, 1e-5, 1e-3, 1e-10, 1e-4, 1e-16),
        "place": ("in the root",),
        "beta1": (*numbers_of("beta1", "momentum"), 0.95, 0.8, 0.99, 0.5, 0.98, 0.85, 0.0),
        "beta2": (*numbers_of("beta2"), 0.95, 0.99, 0.98, 0.9, 0.9999, 0.995),
        "corrected": (False,),
        "coupled": decays,
        "clip": [clip for clip in more if clip not in clips],
    }
    plain = [_Recipe("Adam"), _Recipe("SGD"), _Recipe("momentum"), _Recipe("Nesterov")]
    plain += [
        _Recipe("RMSprop", beta2=0.99),
        _Recipe("RMSprop", beta2=0.9),
        _Recipe("Adagrad", 1e-10),
        _Recipe("NAdam"),
    ]
    plain += [_Recipe("Lion", beta2=0.99), _Recipe("dampened momentum")]
    starts = [_with(recipe, "clip", clip) for recipe in plain for clip in clips]
    yield from starts
    for recipe in starts:
        for name, values in changes.items():
            yield from (_with(recipe, name, value) for value in values)
    for recipe in starts:
        for one, other in itertools.combinations(changes, 2):
            for a, b in itertools.product(changes[one], changes[other]):
                yield _with(_with(recipe, one, a), other, b)


def _with(recipe: _Recipe, name: str, value: object) -> _Recipe:
    return replace(recipe, **{name: value})


def slot_difference(sides: Sequence[tuple[Array, Array, Array]]) -> Difference | None:
    """Other moving averages in an optimizer's state: new = b old + (1 - b) x, with x the gradient or its square.

    Args:
        sides: of each side a slot before and after the update, and the gradient as it entered.
    """
    found: list[tuple[str, float]] = []
    for old, new, gradient in sides:
        for name, x in (("beta1", gradient), ("beta2", gradient**2)):
            way = np.asarray(old - x, np.float64).ravel()
            size = float(way @ way)
            decay = float(way @ (new - x).ravel()) / size if size else 0.0
            if distance(np.asarray(new), decay * old + (1 - decay) * x) <= 1e-9 and size and 0 <= decay < 1:
                found.append((name, _round(decay)))
                break
    if len(found) != len(sides) or found[0][0] != found[1][0] or found[0][1] == found[1][1]:
        return None
    (name, one), (_, other) = found
    before = distance(sides[0][1], sides[1][1])
    x = sides[1][2] if name == "beta1" else sides[1][2] ** 2
    after = distance(sides[0][1], one * sides[1][0] + (1 - one) * x)
    laws = [Law("update", {name: value}, lambda: None) for value in (one, other)]
    return Difference((laws[0], laws[1]), (name,), before, after)
