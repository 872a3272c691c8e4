"""The words about the first divergence: where the runs part, how far, and what that means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from multibackend.pages.words import relative
from multibackend.parity.findings import Cause, Divergence
from multibackend.parity.result import ComparisonResult

__all__ = ["DivergenceWords", "divergence_words", "verdict_figures", "verdict_sentence"]

# what a divergence can name that is no layer, parameter or statistic
_FIGURES = ("loss", "grad_norm", "clip factor", "number of skipped windows")
_OUTPUTS = "the model's outputs"
_MEANINGS = {
    "data order": "The two runs did not see the same examples.",
    "initial parameters": "The two models did not start from the same numbers.",
    "activations": "The forward pass is where they part: from equal parameters and equal inputs, this layer's outputs "
    "differ.",
    "loss": "The losses differ.",
    "gradients": "The backward pass is where they part.",
    "clip": "Gradients agree; clipping them to their global norm is where the runs part.",
    "update": "The optimizer's step is where the runs part, or what led to it.",
    "model state": "Parameters agree; what the model keeps beside them, such as running statistics, differs.",
    "next update": "The update itself agreed; the one after it does not.",
}


@dataclass(frozen=True)
class DivergenceWords:
    """What the page says of a divergence beside its own fields.

    Attributes:
        sentence: the first line of the divergence as text.
        meaning: of its stage.
        subject: what kind of thing it names, the term beside the name.
        rounding: its size against rounding alone.
        proofs: for each of its causes, what undoing it measured.
    """

    sentence: str
    meaning: str
    subject: str
    rounding: str
    proofs: tuple[str, ...]


def verdict_sentence(divergence: Divergence | None) -> str:
    """Say whether the runs match, and if not, where they part."""
    if divergence is None:
        return "✓ The runs match."
    return f"✗ The runs part at update {divergence.update}: {divergence.stage}{_place(divergence)}."


def _place(divergence: Divergence) -> str:
    """Continue the verdict behind the name of the stage."""
    if divergence.place.startswith("between"):
        return f" {divergence.place}"
    if divergence.what == divergence.stage:
        return ""
    if _names_a_figure(divergence):
        return f" ({divergence.what})"
    return f" of {divergence.what or _OUTPUTS}"


def verdict_figures(result: ComparisonResult) -> str:
    """Give the largest differences beside their tolerances, on which the verdict rests."""
    loss = f"Largest relative difference of a loss: {relative(result.max_loss_difference)}"
    parameters = f"of a parameter at the end: {relative(result.max_relative_difference)}"
    tolerance = result.tolerance
    return f"{loss} ({_bound(tolerance.loss)}); {parameters} ({_bound(tolerance.parameters)})."


def _bound(tolerance: float) -> str:
    # half precision bounds no single parameter: "tolerance infinite" would read like a fault
    if not math.isfinite(tolerance):
        return "no tolerance"
    return f"tolerance {relative(tolerance)}"


def divergence_words(divergence: Divergence) -> DivergenceWords:
    """Put into words what a reader of a divergence asks for."""
    return DivergenceWords(
        sentence=str(divergence).splitlines()[0],
        meaning=_MEANINGS.get(divergence.stage, ""),
        subject="What" if _names_a_figure(divergence) else "Layer or parameter",
        rounding=_rounding(divergence),
        proofs=tuple(_proof(cause) for cause in divergence.causes),
    )


def _names_a_figure(divergence: Divergence) -> bool:
    """Whether it names a number of the run or a field of the data, and not a part of the model."""
    name = divergence.what
    return name in _FIGURES or name.startswith("loss/") or divergence.stage == "data order"


def _rounding(divergence: Divergence) -> str:
    """Compare a divergence with what rounding alone makes."""
    if divergence.rounding is None:
        return "not measured"
    if divergence.rounding == 0:
        return "none, so this is a real difference"
    factor = divergence.difference / divergence.rounding
    # from a million on the digits say nothing, and a dozen of them are hard to read
    times = relative(factor)
    if factor < 1e6:
        times = f"{factor:,.0f}"
    return f"{relative(divergence.rounding)}; what was found is {times} times that"


def _proof(cause: Cause) -> str:
    """Say what undoing a cause measured."""
    if cause.after is None:
        return f"It could not be tried. The difference is {relative(cause.before)}."
    return f"Proof: with that undone, the difference of {relative(cause.before)} falls to {relative(cause.after)}."
