"""A framework's own names and layouts: what its users find in a file of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["NativeArrays"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class NativeArrays:
    """Translates between canonical arrays and those of one model's own framework. A program may offer it as `native`.

    Attributes:
        to_native: parameters and model state by canonical name as the framework's own arrays by its own names; one that
            the framework lists several times (tied weights) comes as often.
        to_canonical: the inverse. Names that the model does not have stay as they are, so that they are reported.
    """

    to_native: Callable[[Arrays], dict[str, np.ndarray]]
    to_canonical: Callable[[Arrays], dict[str, np.ndarray]]
