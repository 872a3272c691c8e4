"""The same dropout masks for two runs that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from multibackend.experiment import Experiment
from multibackend.protocol.dropout_masks import layer_name, pair_layers
from multibackend.training.trainer import Trainer

__all__ = ["dropout_layers", "with_same_dropout"]


def dropout_layers(trainer: Trainer) -> tuple[str, ...]:
    """The names of the dropout layers whose rate is not 0; none where the backend does not tell."""
    return trainer.program.info.dropout_layers


def with_same_dropout(
    trainers: Sequence[Trainer], build: Callable[[Experiment, str], Trainer]
) -> tuple[list[Trainer], tuple[str, ...]]:
    """Two trainers whose dropout layers draw the same masks, and sentences that say what was done for it.

    The same trainers where at most one of the models has dropout. Otherwise both experiments are given
    `dropout="portable"`, and the second's layers the names of their partners.
    """
    first, second = trainers
    here, there = dropout_layers(first), dropout_layers(second)
    if not here or not there:
        return [first, second], ()
    model, portable = second.experiment.model, {"dropout": "portable"}
    pairs = pair_layers(here, there, model.rename)
    new = {name: partner for name, partner in pairs.items() if layer_name(name, model.rename) != partner}
    partners = ", ".join(f"{name!r} is {partner!r}" for name, partner in new.items())
    notes = [f"dropout: both backends draw the same portable masks in {len(here)} layers"]
    if new:
        notes.append(f"dropout: layers were paired by their order, {second.backend}'s by {first.backend}'s: {partners}")
    if new or second.experiment.dropout != "portable":
        second = build(second.experiment.replace(model=model.renamed(new), **portable), second.backend)
    if first.experiment.dropout != "portable":
        first = build(first.experiment.replace(**portable), first.backend)
    return [first, second], tuple(notes)
