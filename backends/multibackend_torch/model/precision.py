"""Number formats of a run, without touching the settings of the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from multibackend.core.precision import PRECISIONS, NumberFormat
from multibackend.protocol.tracing import arrays_in, with_arrays
from multibackend_torch.model.calls import Call

__all__ = ["Precision"]


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run: that of its parameters and that of the model's arithmetic."""

    name: str

    @property
    def format(self) -> NumberFormat:
        return PRECISIONS[self.name]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.format.parameters)

    def mixed(self, call: Call, device: torch.device) -> Call:
        """Put a call under autocast, its inputs in the arithmetic's dtype, its outputs in `dtype`."""
        if not self.format.mixed:
            return call
        low = getattr(torch, self.format.arithmetic)

        def mixed(module: torch.nn.Module, batch: Mapping[str, torch.Tensor], train: bool) -> Any:
            with torch.autocast(device.type, low):
                outputs = call(module, _cast(batch, low), train)
            return _cast(outputs, self.dtype)  # losses are computed in float32, outside autocast

        return mixed

    @contextlib.contextmanager
    def scope(self, device: torch.device) -> Iterator[None]:
        """Switch tf32 off, whatever the process has set; put its settings back afterwards."""
        if device.type != "cuda":  # nothing else has tf32
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def to_device(self, array: np.ndarray, device: torch.device) -> torch.Tensor:
        """Make a tensor: of floats in this precision, of integers of more than 8 bits as int64."""
        if array.dtype.kind == "f":
            array = array.astype(self.format.parameters, copy=False)
        elif array.dtype.kind in "iu" and array.dtype.itemsize > 1:  # images stay bytes
            array = array.astype(np.int64, copy=False)
        return torch.from_numpy(np.asarray(array, order="C")).to(device, non_blocking=True)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors of a tree, also inside dataclasses of which torch's trees know nothing."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def cast_leaf(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return cast(leaf)
        return with_arrays(leaf, [cast(tensor) for tensor in arrays_in(leaf, _is_tensor)], _is_tensor)

    return tree_map(cast_leaf, tree)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)
