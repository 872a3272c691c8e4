"""Step sizes from squared gradients, without Adam's momentum."""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.core.validation import Problems
from multibackend.optimizers.base import Optimizer, check_betas, check_decay_and_eps

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """RMSprop (Hinton 2012, lecture 6e; centered: Graves 2013); optional momentum, coupled decay.

        d = g + weight_decay * p
        v = beta2 * v + (1 - beta2) * d²
        a = beta2 * a + (1 - beta2) * d      if centered else   0
        s = d / (sqrt(max(v - a², 0)) + eps)
        b = momentum * b + s
        p = p - lr * b

    eps stands outside the root, as in torch; optax puts it inside unless told otherwise. The
    maximum with 0 is ours: v < a² comes of rounding alone, and its root would be NaN.

    torch: `torch.optim.RMSprop`, foreach; our own where centered. JAX: a transformation of our own.

    >>> RMSprop(learning_rate=1e-3, momentum=0.9).beta2
    0.99
    """

    beta2: float = 0.99  # torch's; optax has 0.9
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "beta2", "momentum")
        check_decay_and_eps(problems, self)
        problems.boolean("centered", self.centered)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011), with optional coupled weight decay.

        d = g + weight_decay * p
        s = s + d²                           (s starts at initial_accumulator)
        p = p - lr * d / (sqrt(s) + eps)

    The accumulator starts at 0 as in torch; optax starts it at 0.1 and adds eps inside the root.

    torch: `torch.optim.Adagrad`, foreach. JAX: a transformation of our own.
    """

    eps: float = 1e-10  # torch's; optax has 1e-7, inside the root
    initial_accumulator: float = 0.0
    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        check_decay_and_eps(problems, self)
        problems.number("initial_accumulator", self.initial_accumulator, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012), with optional coupled weight decay.

        d = g + weight_decay * p
        v = rho * v + (1 - rho) * d²
        s = sqrt(a + eps) / sqrt(v + eps) * d
        a = rho * a + (1 - rho) * s²
        p = p - lr * s

    The paper has no learning rate: lr = 1.

    torch: `torch.optim.Adadelta`, foreach. JAX: a transformation of our own.
    """

    rho: float = 0.9  # torch's and optax's; the paper has 0.95
    eps: float = 1e-6
    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "rho")
        check_decay_and_eps(problems, self)
