"""The update rules of optimizers in numpy, and those that are tried on recorded updates.

Every rule gives a direction u; the step is p' - p = -a u - b p, with learning rate a and decay b.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Array

__all__ = ["UpdateRule", "candidate_rules", "clipped", "direction"]

_ADAPTIVE = ("Adam", "NAdam", "RMSprop", "Adagrad")
_WITH_MOMENTUM = ("momentum", "Nesterov", "Lion", "dampened momentum")
_LIMITS = (1.0, 0.5, 5.0, 0.1, 0.25, 10.0, 2.0, 0.01)
_DECAYS = (0.01, 0.1, 0.0001, 0.001, 0.05, 0.0005, 0.02, 0.2, 0.3, 0.03)
_EPSILONS = (1e-8, 1e-6, 1e-7, 1e-5, 1e-3, 1e-10, 1e-4, 1e-16)
_BETA1 = (0.95, 0.8, 0.99, 0.5, 0.98, 0.85, 0.0)
_BETA2 = (0.95, 0.99, 0.98, 0.9, 0.9999, 0.995)


@dataclass(frozen=True)
class UpdateRule:
    """The traits of an update but for learning rate and decay, which are fitted."""

    optimizer: str = "Adam"
    eps: float = 1e-8
    place: str = "outside the root"
    beta1: float = 0.9
    beta2: float = 0.999
    corrected: bool = True
    coupled: float = 0.0
    clip: str = "none"

    def traits(self) -> dict[str, object]:
        """Those that this optimizer has."""
        traits: dict[str, object] = {"optimizer": self.optimizer, "clipping": self.clip}
        if self.optimizer in _ADAPTIVE:
            traits |= {"epsilon": self.eps, "epsilon's place": self.place}
        if self.optimizer in ("Adam", "NAdam"):
            traits |= {"beta1": self.beta1, "beta2": self.beta2}
            traits["bias correction"] = "on" if self.corrected else "off"
        elif self.optimizer in _WITH_MOMENTUM:
            traits["momentum"] = self.beta1
        elif self.optimizer == "RMSprop":
            traits["beta2"] = self.beta2
        return traits


def candidate_rules(limits: Sequence[float | None], settings: Sequence[Mapping[str, Any]]) -> Iterator[UpdateRule]:
    """Each optimizer with its usual numbers, then with one changed, then with two.

    Args:
        limits: of the gradient's norm, as the experiments say.
        settings: of the experiments' optimizers, whose numbers are tried first.
    """
    known = dict.fromkeys(limit for limit in limits if limit)
    clips = ["none", *(f"norm {limit:g}" for limit in known)]
    starts = [replace(rule, clip=clip) for rule, clip in itertools.product(_plain_rules(), clips)]
    changes: dict[str, Sequence[Any]] = {
        "eps": (*_numbers(settings, "eps"), *_EPSILONS),
        "place": ("in the root",),
        "beta1": (*_numbers(settings, "beta1", "momentum"), *_BETA1),
        "beta2": (*_numbers(settings, "beta2"), *_BETA2),
        "corrected": (False,),
        "coupled": (*_numbers(settings, "weight_decay"), *_DECAYS),
        "clip": _other_clips(known, clips),
    }
    # thousands of rules: whoever asks stops at the first that fits
    yield from starts
    for rule, (name, values) in itertools.product(starts, changes.items()):
        for value in values:
            yield replace(rule, **{name: value})
    for rule, (first, second) in itertools.product(starts, itertools.combinations(changes, 2)):
        for value, other in itertools.product(changes[first], changes[second]):
            yield replace(rule, **{first: value, second: other})


def _plain_rules() -> list[UpdateRule]:
    """The optimizers with their usual numbers: both frameworks' where they differ."""
    return [
        UpdateRule("Adam"),
        UpdateRule("SGD"),
        UpdateRule("momentum"),
        UpdateRule("Nesterov"),
        UpdateRule("RMSprop", beta2=0.99),
        UpdateRule("RMSprop", beta2=0.9),
        UpdateRule("Adagrad", 1e-10),
        UpdateRule("NAdam"),
        UpdateRule("Lion", beta2=0.99),
        UpdateRule("dampened momentum"),
    ]


def _numbers(settings: Sequence[Mapping[str, Any]], *names: str) -> list[float]:
    """The numbers that the experiments' optimizers have under some names; schedules are none."""
    values = [options.get(name) for options, name in itertools.product(settings, names)]
    return [value for value in values if isinstance(value, float)]


def _other_clips(limits: Mapping[float, None], clips: Sequence[str]) -> list[str]:
    """Ways to clip that are not among some already tried."""
    numbers = dict.fromkeys([*limits, *_LIMITS])
    names = [f"{kind} {number:g}" for kind, number in itertools.product(("norm", "value"), numbers)]
    return [name for name in names if name not in clips]


def clipped(gradient: Array, norm: float, clip: str) -> Array:
    """A part of a gradient whose norm is known, clipped as `UpdateRule.clip` says."""
    kind, _, limit = clip.rpartition(" ")
    if kind == "norm":
        # a gradient of zeros is not scaled, whatever the limit
        return gradient * min(1.0, float(limit) / norm) if norm else gradient
    if kind == "value":
        return np.clip(gradient, -float(limit), float(limit))
    return gradient


def direction(gradients: Sequence[Array], rule: UpdateRule) -> Array:
    """u after the last of several gradients."""
    gradient = gradients[-1]
    if rule.optimizer == "SGD":
        return gradient
    if rule.optimizer == "Lion":
        m = np.zeros_like(gradient)
        for earlier in gradients[:-1]:
            m = rule.beta2 * m + (1 - rule.beta2) * earlier
        return np.sign(rule.beta1 * m + (1 - rule.beta1) * gradient)
    if rule.optimizer in _WITH_MOMENTUM:
        weight = 1 - rule.beta1 if rule.optimizer == "dampened momentum" else 1.0
        m = weight * gradients[0]
        for later in gradients[1:]:
            m = rule.beta1 * m + weight * later
        return gradient + rule.beta1 * m if rule.optimizer == "Nesterov" else m
    return _adaptive(gradients, rule)


def _adaptive(gradients: Sequence[Array], rule: UpdateRule) -> Array:
    """m / (sqrt(v) + epsilon), with m and v of each optimizer."""
    m = np.zeros_like(gradients[-1])
    v = np.zeros_like(gradients[-1])
    decay = rule.beta2
    weight = 1 - rule.beta2
    # the sum of all squares, not their average
    if rule.optimizer == "Adagrad":
        decay = weight = 1.0
    for gradient in gradients:
        m = rule.beta1 * m + (1 - rule.beta1) * gradient
        v = decay * v + weight * gradient**2
    count = len(gradients)
    # RMSprop and Adagrad have no first moment and never correct the second
    if rule.optimizer in ("RMSprop", "Adagrad"):
        m = gradients[-1]
    elif rule.corrected:
        m = m / (1 - rule.beta1**count)
        v = v / (1 - rule.beta2**count)
    if rule.optimizer == "NAdam":
        m = rule.beta1 * m + (1 - rule.beta1) * gradients[-1] / (1 - rule.beta1**count)
    if rule.place == "in the root":
        return m / np.sqrt(v + rule.eps)
    return m / (np.sqrt(v) + rule.eps)
