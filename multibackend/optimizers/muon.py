"""Muon: orthogonalised momentum for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from multibackend.core.validation import Problems
from multibackend.optimizers.adam import AdamW
from multibackend.optimizers.base import Group, Optimizer, Where, check_betas, check_decay_and_eps

__all__ = ["Muon", "is_matrix"]


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter has two axes in its canonical layout, as a Linear's weight and an embedding have.

    >>> is_matrix("0.weight", (10, 4)), is_matrix("conv.weight", (8, 3, 3, 3))
    (True, False)
    """
    return len(shape) == 2


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024) with the step size of Liu et al. 2025, and AdamW for what is no matrix.

    A matrix p [rows, columns]:

        b = momentum * b + g
        d = g + momentum * b   if nesterov else   b
        X = d / |d|                          (Frobenius norm; X = 0 where d = 0)
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A²) X,  A = X Xᵀ        five times
        p = p - lr * (0.2 * sqrt(max(rows, columns)) * X + weight_decay * p)

    The iteration (Newton-Schulz) brings every singular value near 1. With the factor, steps of a matrix are about as
    large as AdamW's, so one learning rate serves both; the original has another factor and two rates. Every other
    parameter follows `AdamW` with `beta1`, `beta2`, `eps` and the same `weight_decay`. All of it is computed in the
    precision of the run; torch.optim's Muon iterates in bfloat16.

    Args:
        matrices: which parameters are treated as matrices: a function `(name, shape) -> bool` or a pattern, as in
            `Group`. They must have two axes. Its authors leave embeddings and the last layer to AdamW.

    torch: an optimizer of our own. JAX: a transformation of our own; it need not transpose a Flax kernel, because the
    law is the same for the transpose.

    >>> Muon(learning_rate=1e-3, matrices=lambda name, shape: is_matrix(name, shape) and "head" not in name).momentum
    0.95
    """

    coefficients: ClassVar[tuple[float, float, float]] = (3.4445, -4.7750, 2.0315)
    iterations: ClassVar[int] = 5

    matrices: Where = is_matrix
    momentum: float = 0.95
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "momentum", "beta1", "beta2")
        check_decay_and_eps(problems, self)
        problems.boolean("nesterov", self.nesterov)
        if not callable(self.matrices) and not (isinstance(self.matrices, str) and self.matrices):
            problems.add(
                f"matrices must be a function (name, shape) -> bool or a pattern, got {self.matrices!r}",
                wrong_type=True,
            )

    @staticmethod
    def step_size(rows: int, columns: int) -> float:
        """0.2 * sqrt(max(rows, columns)): the factor of an orthogonalised matrix."""
        return 0.2 * max(rows, columns) ** 0.5

    def split(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[tuple[str, ...], Optimizer]]:
        chosen = Group(self.matrices)
        matrices = tuple(name for name, shape in shapes.items() if chosen.matches(name, shape))
        others = tuple(name for name in shapes if name not in matrices)
        options: dict[str, Any] = {name: getattr(self, name) for name in ("beta1", "beta2", "eps", "weight_decay")}
        adamw = AdamW(learning_rate=self.learning_rate, **options)
        return [(names, spec) for names, spec in ((matrices, self), (others, adamw)) if names]

    def check_shapes(self, problems: Problems, shapes: Mapping[str, tuple[int, ...]]) -> None:
        chosen = Group(self.matrices)
        matched = [name for name, shape in shapes.items() if chosen.matches(name, shape)]
        if not matched:
            problems.add(f"matrices={self.matrices!r} matches no parameter; there are {', '.join(list(shapes)[:5])}")
        for name in matched:
            if len(shapes[name]) != 2:
                problems.add(f"matrices={self.matrices!r} matches {name}, whose shape {shapes[name]} has no two axes")
