"""Optimizers that torch.optim lacks or defines otherwise, with foreach kernels.

Each has its equations in the docstring of its spec in `multibackend.optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from multibackend.optimizers import Muon as spec_of_muon  # noqa: N813 - the class here has the same name

__all__ = ["CenteredRMSprop", "DirectionOptimizer", "Lion", "Muon", "NAdam"]

Tensors = list[torch.Tensor]
Slots = Mapping[str, Tensors]
_foreach_add = cast(Callable[..., Tensors], torch._foreach_add)  # pyright: ignore[reportPrivateImportUsage]
_foreach_add_ = cast(Callable[..., None], torch._foreach_add_)  # pyright: ignore[reportPrivateImportUsage]
_foreach_mul = cast(Callable[..., Tensors], torch._foreach_mul)  # pyright: ignore[reportPrivateImportUsage]
_foreach_mul_ = cast(Callable[..., None], torch._foreach_mul_)  # pyright: ignore[reportPrivateImportUsage]
_foreach_div = cast(Callable[..., Tensors], torch._foreach_div)  # pyright: ignore[reportPrivateImportUsage]
_foreach_sqrt = cast(Callable[..., Tensors], torch._foreach_sqrt)  # pyright: ignore[reportPrivateImportUsage]
_foreach_sqrt_ = cast(Callable[..., None], torch._foreach_sqrt_)  # pyright: ignore[reportPrivateImportUsage]
_foreach_sign_ = cast(Callable[..., None], torch._foreach_sign_)  # pyright: ignore[reportPrivateImportUsage]
_foreach_addcmul_ = cast(Callable[..., None], torch._foreach_addcmul_)  # pyright: ignore[reportPrivateImportUsage]
_foreach_clamp_min_ = cast(Callable[..., None], torch._foreach_clamp_min_)  # pyright: ignore[reportPrivateImportUsage]


class DirectionOptimizer(torch.optim.Optimizer):
    """p = p - lr * d, where a subclass computes the directions d of a group of parameters.

    Attributes:
        slots: the names of the per-parameter tensors; they start at 0.
        count: updates made. Python's integer: what depends on it is computed on the host, in float64.
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
            if parameters:
                gradients: Tensors = [p.grad for p in parameters]
                slots = self._slots(parameters, self.slots_of(group))
                directions = self.directions(group, parameters, gradients, slots)
                _foreach_add_(parameters, directions, alpha=-group["lr"])

    def slots_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the per-parameter tensors of a group."""
        return self.slots

    def directions(self, group: dict[str, Any], parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        """d for each parameter; slots are updated in place, gradients are left alone."""
        raise NotImplementedError

    def _slots(self, parameters: Sequence[torch.Tensor], names: tuple[str, ...]) -> Slots:
        for parameter in parameters:
            state = self.state[parameter]
            for slot in names:
                if slot not in state:
                    state[slot] = torch.zeros_like(parameter)
        return {slot: [self.state[p][slot] for p in parameters] for slot in names}


def _with_decay(gradients: Tensors, parameters: Tensors, weight_decay: float) -> Tensors:
    """g + weight_decay * p."""
    return _foreach_add(gradients, parameters, alpha=weight_decay) if weight_decay else gradients


def _average_(averages: Tensors, values: Tensors, beta: float) -> None:
    """a = beta * a + (1 - beta) * x."""
    _foreach_mul_(averages, beta)
    _foreach_add_(averages, values, alpha=1 - beta)


def _average_square_(averages: Tensors, values: Tensors, beta: float) -> None:
    """a = beta * a + (1 - beta) * x²."""
    _foreach_mul_(averages, beta)
    _foreach_addcmul_(averages, values, values, 1 - beta)


class CenteredRMSprop(DirectionOptimizer):
    """See `multibackend.optimizers.RMSprop` with centered=True: torch's lacks the maximum with 0."""

    def __init__(self, parameters: Iterable[Any], **options: float) -> None:
        super().__init__(parameters, **options)
        self.slots = ("square_avg", "grad_avg", *(("momentum_buffer",) if options["momentum"] else ()))

    def directions(self, group: dict[str, Any], parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        gradients = _with_decay(gradients, parameters, group["weight_decay"])
        _average_square_(slots["square_avg"], gradients, group["beta2"])
        _average_(slots["grad_avg"], gradients, group["beta2"])
        negative = _foreach_mul(slots["grad_avg"], -1.0)
        _foreach_mul_(negative, slots["grad_avg"])
        _foreach_add_(negative, slots["square_avg"])
        _foreach_clamp_min_(negative, 0.0)
        _foreach_sqrt_(negative)
        _foreach_add_(negative, group["eps"])
        steps = _foreach_div(gradients, negative)
        if not group["momentum"]:
            return steps
        _foreach_mul_(slots["momentum_buffer"], group["momentum"])
        _foreach_add_(slots["momentum_buffer"], steps)
        return slots["momentum_buffer"]


class NAdam(DirectionOptimizer):
    """See `multibackend.optimizers.NAdam`."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, parameters: Iterable[Any], **options: float) -> None:
        super().__init__(parameters, **options)
        self._product = (0, 1.0)  # (t, mu_1 ··· mu_t)

    def directions(self, group: dict[str, Any], parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        beta1, beta2, count = group["beta1"], group["beta2"], self.count
        mu, following = self._mu(group, count), self._mu(group, count + 1)
        product = self._product_until(group, count)
        gradients = _with_decay(gradients, parameters, group["weight_decay"])
        _average_(slots["exp_avg"], gradients, beta1)
        _average_square_(slots["exp_avg_sq"], gradients, beta2)
        roots = _foreach_sqrt(slots["exp_avg_sq"])
        _foreach_mul_(roots, 1 / math.sqrt(1 - beta2**count))
        _foreach_add_(roots, group["eps"])
        directions = _foreach_mul(gradients, (1 - mu) / (1 - product))
        _foreach_add_(directions, slots["exp_avg"], alpha=following / (1 - product * following))
        return _foreach_div(directions, roots)

    @staticmethod
    def _mu(group: Mapping[str, Any], count: int) -> float:
        return group["beta1"] * (1 - 0.5 * 0.96 ** (count * group["momentum_decay"]))

    def _product_until(self, group: Mapping[str, Any], count: int) -> float:
        """mu_1 ··· mu_count. The same for all groups, which differ in weight decay only."""
        done, product = self._product if self._product[0] <= count else (0, 1.0)
        while done < count and product > 0:
            done += 1
            product *= self._mu(group, done)
        self._product = (count, product)
        return product


class Lion(DirectionOptimizer):
    """See `multibackend.optimizers.Lion`."""

    slots = ("exp_avg",)

    def directions(self, group: dict[str, Any], parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        signs = _foreach_mul(slots["exp_avg"], group["beta1"])
        _foreach_add_(signs, gradients, alpha=1 - group["beta1"])
        _foreach_sign_(signs)
        _average_(slots["exp_avg"], gradients, group["beta2"])
        return _with_decay(signs, parameters, group["weight_decay"])


class Muon(DirectionOptimizer):
    """See `multibackend.optimizers.Muon`. Groups with "matrices": True are matrices, the others follow AdamW."""

    slots = ("momentum_buffer", "exp_avg", "exp_avg_sq")

    def slots_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.slots[:1] if group["matrices"] else self.slots[1:]

    def directions(self, group: dict[str, Any], parameters: Tensors, gradients: Tensors, slots: Slots) -> Tensors:
        directions = self._orthogonal if group["matrices"] else self._adam
        return _with_decay(directions(group, gradients, slots), parameters, group["weight_decay"])

    def _adam(self, group: dict[str, Any], gradients: Tensors, slots: Slots) -> Tensors:
        beta1, beta2 = group["beta1"], group["beta2"]
        _average_(slots["exp_avg"], gradients, beta1)
        _average_square_(slots["exp_avg_sq"], gradients, beta2)
        roots = _foreach_sqrt(slots["exp_avg_sq"])
        _foreach_mul_(roots, 1 / math.sqrt(1 - beta2**self.count))
        _foreach_add_(roots, group["eps"])
        directions = _foreach_div(slots["exp_avg"], roots)
        _foreach_mul_(directions, 1 / (1 - beta1**self.count))
        return directions

    def _orthogonal(self, group: dict[str, Any], gradients: Tensors, slots: Slots) -> Tensors:
        momenta = slots["momentum_buffer"]
        _foreach_mul_(momenta, group["momentum"])
        _foreach_add_(momenta, gradients)
        directions = _foreach_add(gradients, momenta, alpha=group["momentum"]) if group["nesterov"] else momenta
        return [orthogonalised(d) * spec_of_muon.step_size(*d.shape) for d in directions]


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """[rows, columns]: the iteration of `multibackend.optimizers.Muon`, on the side that has fewer rows."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    a, b, c = spec_of_muon.coefficients
    norm = torch.linalg.matrix_norm(matrix)
    x = matrix / torch.where(norm > 0, norm, 1)
    for _ in range(spec_of_muon.iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
