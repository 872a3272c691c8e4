"""A module that leaves the library: what a run put into its layers is taken out again."""

from __future__ import annotations

from torch import nn

from multibackend_torch.model.dropout import Dropout
from multibackend_torch.model.norm import without_hooks
from multibackend_torch.model.rematerialize import without_rematerialization

__all__ = ["released"]


def released(module: nn.Module) -> nn.Module:
    """Return a prepared module as its user would have it, changed in place.

    Its layers keep their activations, BatchNorm its own momentum and mode. A portable dropout layer
    stays one, but knows no run: in training it says so, where else it would draw one mask for ever.
    """
    without_rematerialization(module)
    without_hooks(module)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.draws = None
    return module
