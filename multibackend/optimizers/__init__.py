"""Optimizers, each with one written definition that every backend realises.

In the equations g is the window's gradient after normalisation and clipping, p a parameter, lr the
learning rate of this update and t the number of the update, 1 for the first. Every state starts at
0 unless a definition says more. No default below is borrowed from a framework: where torch.optim
and optax disagree, the value here is the one that counts on both.

`groups=` gives some parameters another learning rate or weight decay, or freezes them: see `Group`.

Specs become native optimizers by `functools.singledispatch` in each backend's `optimizers.py`.
"""

from multibackend.optimizers.adam import Adam, Adamax, AdamW, NAdam, RAdam
from multibackend.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from multibackend.optimizers.base import Optimizer
from multibackend.optimizers.groups import Group, GroupedParameters, is_vector, resolve_groups
from multibackend.optimizers.momentum import SGD, Lion
from multibackend.optimizers.muon import Muon, is_matrix
from multibackend.optimizers.native import Native

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Group",
    "GroupedParameters",
    "Lion",
    "Muon",
    "NAdam",
    "Native",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "is_matrix",
    "is_vector",
    "resolve_groups",
]
