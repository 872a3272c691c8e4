"""Optimizers whose only state is a momentum."""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.core.validation import Problems
from multibackend.optimizers.base import Optimizer, check_betas, check_decay_and_eps

__all__ = ["SGD", "Lion"]


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """SGD with momentum (Polyak 1964; Nesterov as in Sutskever et al. 2013).

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
class Lion(Optimizer):
    """Lion (Chen et al. 2023), with decoupled weight decay.

        d = sign(beta1 * m + (1 - beta1) * g)        (sign(0) = 0)
        m = beta2 * m + (1 - beta2) * g
        p = p - lr * (d + weight_decay * p)

    Where beta1 * m and (1 - beta1) * g all but cancel, rounding decides the sign: two correct
    implementations then part by 2 * lr in that element.

    torch: an optimizer of our own with foreach kernels. JAX: a transformation of our own, of the
    same law as `optax.scale_by_lion`.

    >>> Lion(learning_rate=1e-4, weight_decay=0.1).beta2
    0.99
    """

    beta1: float = 0.9
    beta2: float = 0.99  # the paper's
    weight_decay: float = 0.0  # optax has 1e-3

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "beta1", "beta2")
        check_decay_and_eps(problems, self)
