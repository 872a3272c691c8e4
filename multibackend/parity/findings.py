"""What a comparison found: where two runs part, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multibackend.protocol.tracing import LayerCall

__all__ = ["STAGES", "Cause", "Divergence", "LayerFinding"]

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
        name: what the mistake is, for example "LayerNorm epsilon".
        explanation: a sentence with both values: "LayerNorm adds 1e-05 to the variance in torch,
            1e-06 in jax".
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
        proof = ""
        if self.after is not None:
            proof = f" With that undone, {self.before:.1e} falls to {self.after:.1e}."
        return f"{self.name}: {self.explanation}.{proof} Change: {self.repair}"


@dataclass(frozen=True)
class Divergence:
    """Where two runs first part beyond rounding.

    Attributes:
        stage: one of `STAGES`.
        update: the number of the update.
        what: the reference's name of a layer, a parameter or a statistic; "" for the whole model;
            or "loss", "loss/NAME", "grad_norm", "clip factor", "number of skipped windows", a field
            of the data.
        values: on the first and on the second backend, where they differ most.
        difference: the relative difference of the two.
        rounding: the relative difference of rounding alone there; None where it was not measured.
        partner: the name in the second model, where it is another.
        causes: what explains it, the surest first.
        place: of activations, where in the model: "between blocks.0.fc1 and blocks.0.fc2, inside
            blocks.0"; empty where the layer itself is wrong.
        remark: what else is known, a sentence.
    """

    stage: str
    update: int
    what: str
    values: tuple[float, float]
    difference: float
    rounding: float | None = None
    partner: str = ""
    causes: tuple[Cause, ...] = ()
    place: str = ""
    remark: str = ""

    def __str__(self) -> str:
        first, second = self.values
        rounding = ""
        if self.rounding is not None:
            rounding = f"; rounding alone makes {self.rounding:.1e}"
        sentence = (
            f"{self.stage}: {self._where()} at update {self.update}: {first:.9g} against {second:.9g} (relative "
            f"{self.difference:.1e}{rounding})"
        )
        remarks = [self.remark] if self.remark else []
        return "\n".join([sentence, *remarks, *(str(cause) for cause in self.causes)])

    def _where(self) -> str:
        """Name what differs, and where in the model."""
        name = self.what or "the model's outputs"
        if self.partner and self.partner != self.what:
            name += f" ({self.partner})"
        # between two layers nothing that has a name is wrong, only what arrives
        if self.place.startswith("between"):
            return f"what arrives at {name}, {self.place},"
        return f"{name} {self.place}" if self.place else name


@dataclass(frozen=True)
class LayerFinding:
    """A place in the second model that is wrong by itself: of the reference's arrays it made others.

    Attributes:
        kind: "layer" for wrong outputs from right inputs; "wiring" where something else arrives
            although all layers before were right, or leaves a container; "loss" for a term of the
            loss on right outputs.
        name: of the layer, the reference's; for "wiring" where the wrong array arrives, or the
            container that it leaves; for "loss" the term.
        partner: its name in the second model.
        container: the innermost paired module around the place, the reference's name;
            "" is the model.
        place: in words, "between blocks.0.fc1 and blocks.0.fc2, inside blocks.0".
        difference: the relative difference of the two arrays.
        rounding: what rounding alone makes there.
        values: on both sides, where they differ most.
        expected, found: the reference's array and the other's in the reference's layout.
        calls: the layer on both sides; what arrived at the other and left it when fed with the
            reference's arrays.
        before: the paired calls inside the container that had returned, in order, on both sides.
        update, micro_batch: which were traced.
        follows: the name of an earlier finding whose wrong array may be all that is wrong here,
            because it may reach this place by another way than through layers.
        causes: what explains it, the surest first.
    """

    kind: str
    name: str
    partner: str
    container: str
    place: str
    difference: float
    rounding: float | None
    values: tuple[float, float]
    expected: np.ndarray
    found: np.ndarray
    calls: tuple[LayerCall, LayerCall] | None
    before: tuple[tuple[LayerCall, LayerCall], ...] = ()
    update: int = 1
    micro_batch: int = 0
    follows: str = ""
    causes: tuple[Cause, ...] = ()

    def __str__(self) -> str:
        first, second = self.values
        where = self.place or self.name or "the model's outputs"
        follows = ""
        if self.follows:
            follows = f"; this may only follow from what is wrong at {self.follows}"
        text = f"{self.kind}: {where}: {first:.9g} against {second:.9g} (relative {self.difference:.1e}){follows}"
        return "\n".join([text, *(str(cause) for cause in self.causes)])
