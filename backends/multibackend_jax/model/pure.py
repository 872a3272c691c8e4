"""A Flax module as a pure function.

`FlaxModel.apply(parameters, state, batch, stamp, train) -> (outputs, state)` works on flat dicts
keyed by canonical name, the arrays in their native layout. State is whatever a module keeps that is
no parameter: BatchNorm statistics and other mutable collections. Random streams are no state: they
are a pure function of the seed and of a stamp (update, micro-batch), so that a window that was
skipped leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from multibackend.experiment.rematerialization import Rematerialize
from multibackend_jax.model.names import Layout

__all__ = ["Arrays", "Batch", "FlaxModel", "ModelOptions", "Stamp"]

Arrays = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Stamp:
    """When a micro-batch runs: two integers that, with the seed, decide every random number in it.

    `size` is the number of micro-batches in the window, and decides none.
    """

    update: jax.Array
    micro_batch: jax.Array
    size: jax.Array

    def fold_into(self, key: jax.Array) -> jax.Array:
        # one after the other: folded in as a sum, micro-batch 1 of one update would be 0 of
        # the next
        key = jax.random.fold_in(key, self.update)
        return jax.random.fold_in(key, self.micro_batch)


@dataclass(frozen=True)
class ModelOptions:
    """What an experiment asks of its model."""

    seed: int
    portable_dropout: bool
    frozen_statistics: bool  # whether BatchNorm layers normalise by their running statistics in training too
    rematerialize: Rematerialize


@dataclass(frozen=True)
class FlaxModel:
    """A Flax module as a pure function.

    Attributes:
        parameters, state: initial values by canonical name, in native layout.
        layouts: how each parameter and state array becomes its canonical one.
        apply: `(parameters, state, batch, stamp, train) -> (outputs, state)`; `stamp` is
            None in evaluation.
        bind: `(parameters, state) -> module`, what the user's builder returns with these values,
            in evaluation mode.
        dropout_layers: their names, portable or not; those of rate 0 aside.
        statistics: by path of each layer with running statistics: the weight of a statistic's old
            value, by its name.
        kinds: for each array, in order of definition, the sort of Flax layer it belongs to; "" for
            a user's module.
        paths: where flax keeps each parameter and state array; in linen with the collection first.
        native: for each array the dotted path under which users of the framework store it.
    """

    parameters: Arrays
    state: Arrays
    layouts: Mapping[str, Layout]
    apply: Callable[[Arrays, Arrays, Batch, Stamp | None, bool], tuple[Any, Arrays]]
    bind: Callable[[Arrays, Arrays], Any]
    dropout_layers: tuple[str, ...] = ()
    statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    native: Mapping[str, str] = field(default_factory=dict)
