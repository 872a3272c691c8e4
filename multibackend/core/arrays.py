"""What arrays are called throughout."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["Array", "Arrays", "Fields"]

Array = np.ndarray
Arrays = Mapping[str, np.ndarray]
"""Arrays by name: parameters, model state, optimizer slots."""
Fields = dict[str, np.ndarray]
"""Examples by field, the first axis of each counting them."""
