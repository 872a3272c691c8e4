"""What a torch model returned: on the host, and what it ends in."""

from __future__ import annotations

import re
from typing import Any

import torch

from multibackend.core.paths import arrays_by_path, pick
from multibackend.experiment import Experiment
from multibackend.protocol.tracing import arrays_in, with_arrays

__all__ = ["host_outputs", "nonlinear_outputs"]


def host_outputs(outputs: Any, dtype: torch.dtype) -> Any:
    """Copy the tensors of nested outputs to the host, floats in `dtype`; the structure stays."""
    arrays = []
    for tensor in arrays_in(outputs, _is_tensor):
        wide = tensor.to(dtype) if tensor.is_floating_point() else tensor
        # a copy: an output may be a view of a parameter or of a buffer, which training goes on to change
        arrays.append(wide.detach().cpu().numpy().copy())
    return with_arrays(outputs, arrays, _is_tensor)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


# what autograd calls operations that only move elements, and those that a linear layer may end in
_MOVES = re.compile(
    r"(Unsafe)?View|Reshape|Squeeze|Unsqueeze|Transpose|T|Permute|ToCopy|Clone|Alias|Select|Slice|Expand"
)
_SUMS_AND_PRODUCTS = re.compile(
    r"Add(mm|bmm|mv)?|Sub|R?Mm|Mv|Bmm|Baddbmm|Convolution|Linear|EinSum|Embedding|Cat|Stack|Index"
)


def nonlinear_outputs(outputs: Any, experiment: Experiment) -> tuple[str, ...]:
    """Return the paths of the outputs that end in an activation, read off the graph that autograd made."""
    arrays = arrays_by_path(outputs) | {path: pick(outputs, path) for path in experiment.picked_outputs}
    return tuple(path for path, array in arrays.items() if _is_tensor(array) and not _ends_linear(array.grad_fn))


def _ends_linear(node: Any) -> bool:
    """Tell whether the last operation that computes is a sum or product of matrices; True where nothing is known."""
    while node is not None:
        operation = re.sub(r"Backward\d*$", "", node.name())
        if not _MOVES.fullmatch(operation):
            return bool(_SUMS_AND_PRODUCTS.fullmatch(operation))
        node = node.next_functions[0][0] if node.next_functions else None
    return True
