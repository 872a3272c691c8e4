"""What a comparison found: where two runs part, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STAGES", "Cause", "Divergence"]

STAGES = (
    "data order",
    "initial parameters",
    "activations",
    "loss",
    "gradients",
    "clip",
    "update",
    "model state",
    "next update",
)
"""The stages of an update in the order in which they are held against each other."""


@dataclass(frozen=True)
class Cause:
    """Why two runs part, found by trying it.

    Attributes:
        name: of the mistake, for example "LayerNorm epsilon".
        explanation: a sentence with both values: "LayerNorm adds 1e-05 to the variance in torch, 1e-06 in jax".
        repair: the line to change, for example "nnx.LayerNorm(..., epsilon=1e-05)".
        before: the relative difference as it is.
        after: the relative difference with the mistake undone; None where it could not be tried.
    """

    name: str
    explanation: str
    repair: str
    before: float
    after: float | None

    def __str__(self) -> str:
        proof = "" if self.after is None else f" With that undone, {self.before:.1e} falls to {self.after:.1e}."
        return f"{self.name}: {self.explanation}.{proof} Change: {self.repair}"


@dataclass(frozen=True)
class Divergence:
    """Where two runs first part beyond the tolerance.

    Attributes:
        stage: one of `STAGES`.
        update: the number of the update.
        what: "loss", "grad_norm", "number of skipped windows", or the canonical name of a layer or a parameter.
        values: on the first and on the second backend, where they differ most; of a parameter its largest elements.
        difference: relative.
        rounding: the relative difference that rounding alone makes there; None where it was not measured.
        partner: the name in the second model, where it is another.
        causes: what explains it, the surest first.
    """

    stage: str
    update: int
    what: str
    values: tuple[float, float]
    difference: float
    rounding: float | None = None
    partner: str = ""
    causes: tuple[Cause, ...] = ()

    def __str__(self) -> str:
        first, second = self.values
        text = f"{self.what} at update {self.update}: {first:.9g} against {second:.9g} (relative {self.difference:.1e})"
        return "\n".join([text, *(str(cause) for cause in self.causes)])
