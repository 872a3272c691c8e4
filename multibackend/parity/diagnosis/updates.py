"""One update from its gradient: which optimizer law each side follows, with which numbers.

Every law gives a direction u, and the step is p' - p = -a u - b p. The learning rate a and the decay b enter linearly,
so they are fitted by least squares, over all parameters at once; what is left over decides whether the law holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multibackend.parity.diagnosis.laws import Difference, Law, distance

__all__ = ["UpdateSide", "update_difference"]

Array = np.ndarray
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class UpdateSide:
    """What one side did in its first updates.

    Attributes:
        gradients: of each update, normalised, before clipping, by the reference's names.
        parameters: before the first update, then after each.
        learning_rates: of each update, as the experiment says.
        max_grad_norm: as the experiment says.
    """

    gradients: Sequence[Arrays]
    parameters: Sequence[Arrays]
    learning_rates: Sequence[float]
    max_grad_norm: float | None = None

    @property
    def updates(self) -> int:
        """How many are known."""
        return len(self.gradients)


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


def update_difference(sides: tuple[UpdateSide, UpdateSide], update: int) -> Difference | None:
    """The laws of the two updates number `update`, from 1."""
    stacks = [_Stack(side, update) for side in sides]
    before = distance(stacks[0].after, stacks[1].after)
    first = next(_fitting(stacks[0], _recipes(sides)), None)
    if first is None:
        return None
    recipe, traits, rates = first
    near = sorted(_recipes(sides), key=lambda other: _distance(recipe, other))
    second = next(_fitting(stacks[1], iter(near)), None)
    if second is None or second[1] == traits:
        return None
    undone = stacks[1].stepped(recipe, rates)
    after = float("inf") if undone is None else distance(stacks[0].after, undone)
    if after > max(0.1 * before, 1e-13):
        return None
    names = tuple(n for n in dict.fromkeys([*traits, *second[1]]) if traits.get(n) != second[1].get(n))
    laws = [Law("update", named, lambda: None) for named in (traits, second[1])]
    return Difference((laws[0], laws[1]), names, before, after)


def _distance(one: _Recipe, other: _Recipe) -> int:
    return sum(getattr(one, name) != getattr(other, name) for name in one.__dataclass_fields__)


class _Stack:
    """All parameters of a side as one vector, update by update."""

    def __init__(self, side: UpdateSide, update: int) -> None:
        self.names = sorted(side.gradients[0])
        self.gradients = [self._flat(g) for g in side.gradients[:update]]
        self.parameters = [self._flat(p) for p in side.parameters[: update + 1]]
        self.before, self.after = self.parameters[-2], self.parameters[-1]
        self.rate, self.limit = side.learning_rates[update - 1], side.max_grad_norm
        self._directions: dict[_Recipe, Array] = {}

    def _flat(self, arrays: Arrays) -> Array:
        return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in self.names])

    def direction(self, recipe: _Recipe) -> Array:
        if recipe not in self._directions:
            clipped = [_clipped(g, recipe.clip) for g in self.gradients]
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

    def stepped(self, recipe: _Recipe, rates: tuple[float, float]) -> Array | None:
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


def _clipped(gradient: Array, clip: str) -> Array:
    kind, _, limit = clip.rpartition(" ")
    if kind == "norm":
        norm = float(np.sqrt((gradient**2).sum()))
        return gradient * min(1.0, float(limit) / norm)
    if kind == "norm + 1e-6":
        return gradient * min(1.0, float(limit) / (float(np.sqrt((gradient**2).sum())) + 1e-6))
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
    decays = (0.01, 0.1, 0.0001, 0.001, 0.05, 0.0005, 0.02, 0.2, 0.3, 0.03)
    changes: dict[str, Sequence[object]] = {
        "eps": (1e-8, 1e-6, 1e-7, 1e-5, 1e-3, 1e-10, 1e-4, 1e-16),
        "place": ("in the root",),
        "beta1": (0.95, 0.8, 0.99, 0.5, 0.98, 0.85, 0.0),
        "beta2": (0.95, 0.99, 0.98, 0.9, 0.9999, 0.995),
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
    return _Recipe(**{**recipe.__dict__, name: value})  # type: ignore[arg-type]
