"""What one forward and backward pass of a model did, layer by layer, as both backends tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Forced", "LayerCall", "Trace"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerCall:
    """One call of one module.

    Attributes:
        name: the module's dotted name in canonical style, "" for the whole model.
        call: 0 for its first call in this pass, 1 for the second, and so on.
        kind: the module's class, for example "Linear", "LayerNorm", "Block".
        inputs: the arrays that it was called with as they arrived, positional ones first, nested ones flattened;
            its own layout (torch's images are [n, c, h, w], Flax's [n, h, w, c]).
        outputs: the arrays that it returned, flattened.
        leaf: whether it called no other module.
        settings: its hyperparameters that are numbers, booleans, strings or tuples of them, by the framework's names,
            for example {"eps": 1e-05}; functions by their name.
        parameters: canonical names of the parameters that are its own, not those of its submodules.
        depth: how many modules it was called from.
    """

    name: str
    call: int
    kind: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    leaf: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    depth: int = 0


@dataclass(frozen=True)
class Forced:
    """What to put in place of a layer's inputs and of its outputs, in its own layout; None leaves what is there.

    Feeding every layer of one model what the other's layers got shows each wrong layer, not only the first.
    """

    inputs: tuple[np.ndarray | None, ...] | None = None
    outputs: tuple[np.ndarray | None, ...] | None = None


@dataclass(frozen=True)
class Trace:
    """One micro-batch, forward and backward.

    Attributes:
        layers: the calls in the order in which they began; the whole model is the first.
        outputs: the arrays of the model's outputs as the loss sees them, flattened.
        terms: float64 [terms], factor * sum(w * l) for each term of the loss.
        gradients: of their sum, by canonical name and in canonical layout; empty where not asked for.
        model_state: after the pass, by canonical name.
    """

    layers: tuple[LayerCall, ...]
    outputs: tuple[np.ndarray, ...]
    terms: np.ndarray
    gradients: Arrays = field(default_factory=dict)
    model_state: Arrays = field(default_factory=dict)
