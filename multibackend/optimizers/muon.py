"""Muon: orthogonalised momentum for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from multibackend.core.validation import Problems
from multibackend.optimizers.adam import AdamW
from multibackend.optimizers.base import Group, Optimizer, Where, check_betas, check_decay_and_eps, is_rule

__all__ = ["Muon", "is_matrix"]


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a parameter has two axes in its canonical layout, as a Linear's weight has.

    >>> is_matrix("0.weight", (10, 4)), is_matrix("conv.weight", (8, 3, 3, 3))
    (True, False)
    """
    return len(shape) == 2


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024), step size of Liu et al. 2025; AdamW for what is no matrix.

    A matrix p [rows, columns]:

        b = momentum * b + g
        d = g + momentum * b   if nesterov else   b
        X = d / |d|                          (Frobenius norm; X = 0 where d = 0)
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A²) X,  A = X Xᵀ        five times
        p = p - lr * (0.2 * sqrt(max(rows, columns)) * X + weight_decay * p)

    The iteration (Newton-Schulz) brings every singular value near 1. With the factor, steps of a
    matrix are about as large as AdamW's, so one learning rate serves both; the original has another
    factor and two rates. Every other parameter follows `AdamW` with `beta1`, `beta2`, `eps` and the
    same `weight_decay`. All is computed in the run's precision; torch.optim's iterates in bfloat16.

    Args:
        matrices: which parameters are treated as matrices: a function `(name, shape) -> bool` or a
            pattern, as in `Group`, of two axes. Its authors leave embeddings and heads to AdamW.

    torch: an optimizer of our own. JAX: a transformation of our own; it need not transpose a Flax
    kernel, because the law is the same for the transpose.

    >>> matrices = lambda name, shape: is_matrix(name, shape) and "head" not in name
    >>> Muon(learning_rate=1e-3, matrices=matrices).momentum
    0.95
    """

    coefficients: ClassVar[tuple[float, float, float]] = (3.4445, -4.7750, 2.0315)
    iterations: ClassVar[int] = 5  # X of singular values from 2e-3 on is then within [0.68, 1.21]

    matrices: Where = is_matrix
    momentum: float = 0.95
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8  # AdamW's, as the betas are
    weight_decay: float = 0.01  # AdamW's here; torch.optim.Muon has 0.1

    def _check(self, problems: Problems) -> None:
        check_betas(problems, self, "momentum", "beta1", "beta2")
        check_decay_and_eps(problems, self)
        problems.boolean("nesterov", self.nesterov)
        if not is_rule(self.matrices):
            what = "matrices must be a function (name, shape) -> bool or a pattern"
            problems.add(f"{what}, got {self.matrices!r}", wrong_type=True)

    @staticmethod
    def step_size(rows: int, columns: int) -> float:
        """Return 0.2 * sqrt(max(rows, columns)), the factor of an orthogonalised matrix."""
        return 0.2 * max(rows, columns) ** 0.5

    def split(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[tuple[str, ...], Optimizer]]:
        matrices = self._matrices(shapes)
        others = tuple(name for name in shapes if name not in matrices)
        adamw = AdamW(
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        # A part without parameters is left out: torch's optimizers refuse an empty list.
        return [(names, spec) for names, spec in ((matrices, self), (others, adamw)) if names]

    def check_shapes(self, problems: Problems, shapes: Mapping[str, tuple[int, ...]]) -> None:
        rule = f"matrices={self.matrices!r}"
        matrices = self._matrices(shapes)
        if not matrices:
            names = ", ".join(list(shapes)[:5])
            problems.add(f"{rule} matches no parameter; there are {names}")
        for name in matrices:
            if len(shapes[name]) != 2:
                problems.add(f"{rule} matches {name}, whose shape {shapes[name]} has no two axes")

    def _matrices(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        rule = Group(self.matrices)  # which knows patterns, and refuses an answer that is no bool
        return tuple(name for name, shape in shapes.items() if rule.matches(name, shape))
