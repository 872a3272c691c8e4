"""Optimizers, each with one written definition that every backend realises.

In the equations g is the window's gradient after normalisation and clipping, p a parameter, lr the learning rate of
this update and t the number of the update, 1 for the first. No default below is borrowed from a framework: where
torch.optim and optax disagree, the value here is the one that counts on both.

Specs become native optimizers by `functools.singledispatch` on the class, in each backend's `optimizers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.schedules import LearningRate, check_learning_rate
from multibackend.validation import Problems

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer has. `learning_rate` is a number or a function of the update index (0 for the first)."""

    learning_rate: LearningRate

    def __post_init__(self) -> None:
        problems = Problems(type(self).__name__)
        check_learning_rate(problems, self.learning_rate)
        self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Add the problems of a subclass's own arguments."""


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964; Nesterov as in Sutskever et al. 2013).

        d = g + weight_decay * p
        b = momentum * b + d                 (b starts at 0, so the first b is d: undamped)
        d = d + momentum * b   if nesterov else   b
        p = p - lr * d

    Weight decay is coupled: it is added to the gradient before the momentum.

    torch: `torch.optim.SGD` with dampening 0. JAX: `optax.add_decayed_weights` and `optax.trace`.

    >>> SGD(learning_rate=0.1, momentum=0.9, nesterov=True).momentum
    0.9
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        valid = problems.number("momentum", self.momentum, minimum=0.0, below=1.0)
        problems.boolean("nesterov", self.nesterov)
        problems.number("weight_decay", self.weight_decay, minimum=0.0)
        if valid and self.nesterov is True and self.momentum == 0:
            problems.add("nesterov=True needs momentum > 0, got momentum=0; set momentum=0.9 or nesterov=False")


@dataclass(frozen=True, kw_only=True)
class _AdamMoments(Optimizer):
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def _check(self, problems: Problems) -> None:
        problems.number("beta1", self.beta1, minimum=0.0, below=1.0)
        problems.number("beta2", self.beta2, minimum=0.0, below=1.0)
        problems.number("eps", self.eps, minimum=0.0, above_minimum=True)


@dataclass(frozen=True, kw_only=True)
class Adam(_AdamMoments):
    """Adam (Kingma & Ba 2015), with optional coupled weight decay.

        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d²
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    `weight_decay` goes into the gradient, as `torch.optim.Adam` has it; for decoupled decay take `AdamW`.

    torch: `torch.optim.Adam`. JAX: an optax transformation whose bias correction is `-expm1(t * log(beta))`, because
    `1 - beta**t` in float32 loses five digits at small t.
    """

    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.number("weight_decay", self.weight_decay, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class AdamW(_AdamMoments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

        m, v as in `Adam`, with d = g
        p = p - lr * ((m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p)

    The decay is scaled by the learning rate of the update. Its default, 0.01, is stated here because the frameworks
    disagree (0.01 in torch, 0.0001 in optax).

    torch: `torch.optim.AdamW`. JAX: as `Adam`, then `optax.add_decayed_weights`.
    """

    weight_decay: float = 0.01

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.number("weight_decay", self.weight_decay, minimum=0.0)
