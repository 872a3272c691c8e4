"""How a torch model is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["Batch", "Call"]

Batch = Mapping[str, torch.Tensor]
Call = Callable[[torch.nn.Module, Batch, bool], Any]
"""The user's function from (module, batch, train) to outputs."""
