"""What a torch model returned, on the host."""

from __future__ import annotations

from typing import Any

import torch

from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend_torch.model.observe import is_tensor

__all__ = ["host_outputs"]


def host_outputs(outputs: Any, dtype: torch.dtype) -> Any:
    """Copy the tensors of nested outputs to the host, floats in `dtype`; the structure stays."""
    arrays = []
    for tensor in arrays_in(outputs, is_tensor):
        wide = tensor.to(dtype) if tensor.is_floating_point() else tensor
        # a copy: an output may be a view of a parameter or of a buffer, which training goes on to change
        arrays.append(wide.detach().cpu().numpy().copy())
    return with_arrays(outputs, arrays, is_tensor)
