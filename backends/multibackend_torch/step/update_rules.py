"""Optimizers that torch.optim lacks or defines otherwise, with foreach kernels.

Each has its equations in the docstring of its spec in `multibackend.optimizers`. A foreach kernel
takes all parameters in one call: for a small model the calls cost more than the arithmetic.
"""

# pyright: reportPrivateImportUsage=false
# (the foreach functions that torch.optim is written with have no public names)

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from multibackend.optimizers import Muon as MuonSpec

__all__ = ["CenteredRMSprop", "DirectionOptimizer", "Lion", "Muon", "NAdam"]

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]
Slots = Mapping[str, Tensors]
Group = Mapping[str, Any]


class DirectionOptimizer(torch.optim.Optimizer):
    """p = p - lr * d, where a subclass computes the directions d of a group of parameters.

    Attributes:
        slots: the names of the per-parameter tensors; they start at 0.
        count: updates made; what depends on it is computed on the host, in float64.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Any], **options: float) -> None:
        super().__init__(parameters, {"lr": 0.0, **options})
        self.count = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        self.count += 1
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:  # foreach kernels refuse empty lists
                continue
            gradients: Tensors = [p.grad for p in parameters]
            slots = self._slots(parameters, self.slots_of(group))
            directions = self.directions(group, parameters, gradients, slots)
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def slots_of(self, group: Group) -> tuple[str, ...]:
        """Return the names of the per-parameter tensors of a group."""
        return self.slots

    def directions(self, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        """Compute d for each parameter; update slots in place, leave gradients alone."""
        raise NotImplementedError

    def _slots(self, parameters: Sequence[torch.Tensor], names: tuple[str, ...]) -> Slots:
        """Return the per-parameter tensors by slot, made at the first step."""
        slots: dict[str, list[torch.Tensor]] = {slot: [] for slot in names}
        for parameter in parameters:
            state = self.state[parameter]
            for slot, tensors in slots.items():
                if slot not in state:
                    state[slot] = torch.zeros_like(parameter)
                tensors.append(state[slot])
        return slots


def _with_decay(gradients: Tensors, parameters: Tensors, weight_decay: float) -> Tensors:
    """Return g + weight_decay * p."""
    if not weight_decay:
        return gradients
    return torch._foreach_add(gradients, parameters, alpha=weight_decay)


def _average_(averages: Tensors, values: Tensors, beta: float) -> None:
    """Update a = beta * a + (1 - beta) * x."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_add_(averages, values, alpha=1 - beta)


def _average_square_(averages: Tensors, values: Tensors, beta: float) -> None:
    """Update a = beta * a + (1 - beta) * x²."""
    torch._foreach_mul_(averages, beta)
    torch._foreach_addcmul_(averages, values, values, 1 - beta)


def _corrected_roots(square_averages: Tensors, group: Group, count: int) -> Tensors:
    """Return sqrt(v / (1 - beta2^t)) + eps, by one factor that is computed in float64."""
    roots = torch._foreach_sqrt(square_averages)
    torch._foreach_mul_(roots, 1 / math.sqrt(1 - group["beta2"] ** count))
    torch._foreach_add_(roots, group["eps"])
    return roots


class CenteredRMSprop(DirectionOptimizer):
    """See `multibackend.optimizers.RMSprop`, centered=True: torch's lacks the maximum with 0."""

    slots = ("square_avg", "grad_avg")

    def __init__(self, parameters: Iterable[Any], **options: float) -> None:
        super().__init__(parameters, **options)
        if options["momentum"]:
            self.slots += ("momentum_buffer",)

    def directions(self, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        gradients = _with_decay(gradients, parameters, group["weight_decay"])
        _average_square_(slots["square_avg"], gradients, group["beta2"])
        _average_(slots["grad_avg"], gradients, group["beta2"])
        roots = torch._foreach_mul(slots["grad_avg"], -1.0)
        torch._foreach_mul_(roots, slots["grad_avg"])
        torch._foreach_add_(roots, slots["square_avg"])
        # rounding may make the variance of a constant gradient negative: its root would be NaN
        torch._foreach_clamp_min_(roots, 0.0)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        steps = torch._foreach_div(gradients, roots)
        if not group["momentum"]:
            return steps
        torch._foreach_mul_(slots["momentum_buffer"], group["momentum"])
        torch._foreach_add_(slots["momentum_buffer"], steps)
        return slots["momentum_buffer"]


class NAdam(DirectionOptimizer):
    """See `multibackend.optimizers.NAdam`: torch's keeps the product of the mu in float32."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, parameters: Iterable[Any], **options: float) -> None:
        super().__init__(parameters, **options)
        self._factors = 0  # t
        self._product = 1.0  # mu_1 ··· mu_t

    def directions(self, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        mu = self._mu(group, self.count)
        next_mu = self._mu(group, self.count + 1)
        product = self._product_until(group, self.count)
        gradients = _with_decay(gradients, parameters, group["weight_decay"])
        _average_(slots["exp_avg"], gradients, group["beta1"])
        _average_square_(slots["exp_avg_sq"], gradients, group["beta2"])
        roots = _corrected_roots(slots["exp_avg_sq"], group, self.count)
        directions = torch._foreach_mul(gradients, (1 - mu) / (1 - product))
        torch._foreach_add_(directions, slots["exp_avg"], alpha=next_mu / (1 - product * next_mu))
        return torch._foreach_div(directions, roots)

    @staticmethod
    def _mu(group: Group, count: int) -> float:
        return group["beta1"] * (1 - 0.5 * 0.96 ** (count * group["momentum_decay"]))

    def _product_until(self, group: Group, count: int) -> float:
        """Return mu_1 ··· mu_count. The same for all groups, which differ in weight decay only."""
        if self._factors > count:  # a snapshot of an earlier update was restored
            self._factors = 0
            self._product = 1.0
        # a product that has underflowed stays 0: to go on after a million updates costs no time
        while self._factors < count and self._product > 0:
            self._factors += 1
            self._product *= self._mu(group, self._factors)
        self._factors = count
        return self._product


class Lion(DirectionOptimizer):
    """See `multibackend.optimizers.Lion`, which torch.optim lacks."""

    slots = ("exp_avg",)

    def directions(self, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        signs = torch._foreach_mul(slots["exp_avg"], group["beta1"])
        torch._foreach_add_(signs, gradients, alpha=1 - group["beta1"])
        torch._foreach_sign_(signs)
        _average_(slots["exp_avg"], gradients, group["beta2"])
        return _with_decay(signs, parameters, group["weight_decay"])


class Muon(DirectionOptimizer):
    """See `multibackend.optimizers.Muon`; groups without "matrices" follow AdamW."""

    slots = ("momentum_buffer", "exp_avg", "exp_avg_sq")

    def slots_of(self, group: Group) -> tuple[str, ...]:
        return self.slots[:1] if group["matrices"] else self.slots[1:]

    def directions(self, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        if group["matrices"]:
            directions = self._orthogonal(group, gradients, slots)
        else:
            directions = self._adam(group, gradients, slots)
        return _with_decay(directions, parameters, group["weight_decay"])

    def _adam(self, group: Group, gradients: Tensors, slots: Slots) -> Tensors:
        _average_(slots["exp_avg"], gradients, group["beta1"])
        _average_square_(slots["exp_avg_sq"], gradients, group["beta2"])
        roots = _corrected_roots(slots["exp_avg_sq"], group, self.count)
        directions = torch._foreach_div(slots["exp_avg"], roots)
        torch._foreach_mul_(directions, 1 / (1 - group["beta1"] ** self.count))
        return directions

    def _orthogonal(self, group: Group, gradients: Tensors, slots: Slots) -> Tensors:
        momenta = slots["momentum_buffer"]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        directions = momenta
        if group["nesterov"]:
            directions = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        return [orthogonalised(d) * MuonSpec.step_size(*d.shape) for d in directions]


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Run the iteration of `multibackend.optimizers.Muon` on a matrix: [rows, columns]."""
    if matrix.shape[0] > matrix.shape[1]:  # the result's transpose, and a smaller gram matrix
        return orthogonalised(matrix.T).T
    a, b, c = MuonSpec.coefficients
    norm = torch.linalg.matrix_norm(matrix)
    x = matrix / torch.where(norm > 0, norm, 1)  # on the device, so that no step waits for it
    for _ in range(MuonSpec.iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
