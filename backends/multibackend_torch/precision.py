"""Number formats of a run, without touching the settings of the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Precision"]


@dataclass(frozen=True)
class Precision:
    """The dtype of parameters and floating-point inputs."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)

    @contextlib.contextmanager
    def scope(self, device: torch.device) -> Iterator[None]:
        """Where this precision holds: tf32 is off, whatever the process says."""
        if device.type != "cuda":
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
        """A host array as a tensor: floats in this precision, integers of more than 8 bits as int64."""
        if array.dtype.kind == "f":
            array = array.astype(self.name, copy=False)
        elif array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            array = array.astype(np.int64, copy=False)
        return torch.from_numpy(np.asarray(array, order="C")).to(device, non_blocking=True)
