"""The same dropout masks for two runs that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from multibackend.experiment import Experiment
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.training.trainer import Trainer

__all__ = ["dropout_layers", "with_same_dropout"]


def dropout_layers(trainer: Trainer) -> tuple[str, ...]:
    """Return the names of the dropout layers whose rate is not 0."""
    return trainer.program.info.dropout_layers


def with_same_dropout(
    trainers: Sequence[Trainer], build: Callable[[Experiment, str], Trainer]
) -> tuple[list[Trainer], tuple[str, ...]]:
    """Let the dropout layers of two trainers draw the same masks; returns both, and what was done.

    The same trainers where at most one of the models has dropout. Otherwise both experiments are
    given `dropout="portable"`, and the second's layers the names of their partners.
    """
    first, second = trainers
    layers = dropout_layers(first)
    if not layers or not dropout_layers(second):
        return [first, second], ()
    notes = [f"dropout: both backends draw the same portable masks in {len(layers)} layers"]
    new_names = _names_to_change(layers, dropout_layers(second), second.experiment.model.rename)
    if new_names:
        partners = ", ".join(f"{name!r} is {partner!r}" for name, partner in new_names.items())
        notes.append(f"dropout: layers were paired by their order, {second.backend}'s by {first.backend}'s: {partners}")
    # a trainer is made anew only where it must be: its program has been compiled
    if new_names or second.experiment.dropout != "portable":
        model = second.experiment.model.renamed(new_names)
        second = build(second.experiment.replace(model=model, dropout="portable"), second.backend)
    if first.experiment.dropout != "portable":
        first = build(first.experiment.replace(dropout="portable"), first.backend)
    return [first, second], tuple(notes)


def _names_to_change(reference: Sequence[str], other: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Pair dropout layers: {name in the other: its partner}, but for those in `rename`.

    The name of a layer enters its masks, so that partners must go by one name.
    """
    pairs = pair_layers(reference, other, rename)
    return {name: partner for name, partner in pairs.items() if layer_name(name, rename) != partner}
