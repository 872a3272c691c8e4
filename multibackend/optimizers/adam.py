"""Adam and what grew out of it."""

from __future__ import annotations

from dataclasses import dataclass

from multibackend.core.validation import Problems
from multibackend.optimizers.base import Optimizer, check_betas, check_decay_and_eps

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


@dataclass(frozen=True, kw_only=True)
class _AdamMoments(Optimizer):
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8  # with the betas the paper's, and one of the few defaults on which all agree
    weight_decay: float = 0.0

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "beta1", "beta2")
        check_decay_and_eps(problems, self)


@dataclass(frozen=True, kw_only=True)
class Adam(_AdamMoments):
    """Adam (Kingma & Ba 2015), with optional coupled weight decay and AMSGrad (Reddi et al. 2018).

        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d²
        u = max(u, v)                        if amsgrad else   v
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(u / (1 - beta2^t)) + eps)

    `weight_decay` goes into the gradient, as `torch.optim.Adam` has it; for decoupled decay take
    `AdamW`. `amsgrad=True` takes the maximum before the bias correction, as torch; optax after it.

    torch: `torch.optim.Adam`, fused. JAX: an optax transformation whose bias correction is
    `-expm1(t * log(beta))`, because `1 - beta**t` in float32 loses five digits at small t.

    >>> Adam(learning_rate=1e-3, amsgrad=True).amsgrad
    True
    """

    amsgrad: bool = False

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.boolean("amsgrad", self.amsgrad)


@dataclass(frozen=True, kw_only=True)
class AdamW(_AdamMoments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

        m, v, u as in `Adam`, with d = g
        p = p - lr * ((m / (1 - beta1^t)) / (sqrt(u / (1 - beta2^t)) + eps) + weight_decay * p)

    The decay is scaled by the learning rate of the update. Its default, 0.01, is stated here
    because the frameworks disagree (0.01 in torch, 0.0001 in optax).

    torch: `torch.optim.AdamW`, fused. JAX: as `Adam`, then `optax.add_decayed_weights`.
    """

    weight_decay: float = 0.01  # torch's; optax has 1e-4
    amsgrad: bool = False

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.boolean("amsgrad", self.amsgrad)


@dataclass(frozen=True, kw_only=True)
class Adamax(_AdamMoments):
    """Adamax (Kingma & Ba 2015, section 7.1), Adam with the infinity norm; optional coupled decay.

        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        u = max(beta2 * u, |d| + eps)
        p = p - lr * (m / (1 - beta1^t)) / u

    The paper has no eps, and divides 0 by 0 where a gradient has always been 0; here it stands
    inside the maximum, as in torch and optax.

    torch: `torch.optim.Adamax`, foreach. JAX: an optax transformation of our own (see `Adam`).
    """


@dataclass(frozen=True, kw_only=True)
class NAdam(_AdamMoments):
    """Adam with Nesterov momentum and its schedule (Dozat 2016), optional coupled weight decay.

        mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)
        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d²
        n = (1 - mu_t) * d / (1 - mu_1 ··· mu_t)  +  mu_{t+1} * m / (1 - mu_1 ··· mu_{t+1})
        p = p - lr * n / (sqrt(v / (1 - beta2^t)) + eps)

    As in `torch.optim.NAdam`, m decays with beta1 itself; optax has no schedule of the momentum.
    The product of the mu is a pure function of t, so no state is kept for it.

    torch: an optimizer of our own with foreach kernels, because torch's keeps the product in
    float32. JAX: a transformation of our own, the product in closed form.
    """

    momentum_decay: float = 0.004  # the paper's and torch's

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.number("momentum_decay", self.momentum_decay, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class RAdam(_AdamMoments):
    """Rectified Adam (Liu et al. 2020), with optional coupled weight decay.

        d = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d²
        rho = 2 / (1 - beta2) - 1
        rho_t = rho - 2 * t * beta2^t / (1 - beta2^t)
        r = sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))
        s = r * sqrt(1 - beta2^t) / (sqrt(v) + eps)      if rho_t > 5 else   1
        p = p - lr * (m / (1 - beta1^t)) * s

    The paper rectifies from rho_t > 4 on; 5, as in its authors' code, in torch and (as >= 5) in
    optax, leaves the first rectified step less extreme. eps is added to the uncorrected root, as in
    torch; optax adds it to the corrected one.

    torch: `torch.optim.RAdam`, foreach. JAX: a transformation of our own, with rho_t from a series
    where the difference would lose its digits in float32.
    """
