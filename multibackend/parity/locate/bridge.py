"""States and gradients of one model as those of another, through the matching of their arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.matching import Matching
from multibackend.protocol import Snapshot

__all__ = ["Bridge"]


@dataclass(frozen=True)
class Bridge:
    """Carries states between two models.

    A link may lead from a parameter to model state, for example where one side trains what the
    other keeps fixed.

    Attributes:
        parameters: the links of the reference's parameters.
        state: those of its model state.
    """

    parameters: Matching
    state: Matching

    @classmethod
    def of(cls, matching: Matching, reference: Snapshot) -> Bridge:
        """Divide a matching of both models by what a state of the reference says is a parameter."""
        parameters = tuple(link for link in matching.links if link.reference in reference.parameters)
        state = tuple(link for link in matching.links if link.reference in reference.model_state)
        return cls(Matching(parameters), Matching(state))

    @property
    def links(self) -> list[tuple[str, str]]:
        """(parameter of the reference, parameter of the other), for every link."""
        return [(link.reference, link.other) for link in self.parameters.links]

    def partner(self, name: str) -> str:
        """Return the other's name of a parameter or statistic of the reference, "" without any."""
        links = (*self.parameters.links, *self.state.links)
        return ", ".join(dict.fromkeys(link.other for link in links if link.reference == name))

    def to_other(self, snapshot: Snapshot, like: Snapshot) -> Snapshot:
        """Return the reference's state as the other's; what has no partner is taken from `like`."""
        linked = [link.reference for link in self.state.links]
        statistics = {name: snapshot.model_state[name] for name in linked}
        moved = self.parameters.to_other(snapshot.parameters) | self.state.to_other(statistics)
        averages = self.parameters.to_other(snapshot.ema) if snapshot.ema and like.ema else {}
        return replace(
            like,
            parameters=_filled(like.parameters, moved),
            model_state=_filled(like.model_state, moved),
            optimizer=self._slots_to_other(snapshot, like),
            update=snapshot.update,
            ema=_filled(like.ema, averages),
        )

    def to_reference(self, snapshot: Snapshot) -> Snapshot:
        """Return the other's state by the reference's names, as far as it has partners."""
        arrays = {**snapshot.model_state, **snapshot.parameters}
        slots = {}
        for slot, values in snapshot.optimizer.items():
            if _like_parameters(values, snapshot):
                slots[slot] = _linked(self.parameters, values)
        return replace(
            snapshot,
            parameters=_linked(self.parameters, arrays),
            model_state=_linked(self.state, arrays),
            optimizer=slots,
            ema=_linked(self.parameters, snapshot.ema),
        )

    def gradients(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Return the other's gradients by the reference's names; frozen parameters have none."""
        return _linked(self.parameters, arrays, gradients=True)

    def norms(self, other: Sequence[str], norms: np.ndarray, reference: Sequence[str]) -> np.ndarray:
        """[parameters] of the other's gradient norms, in the reference's order; 0 without partner.

        Where several arrays make one their squares add up; of an array that is cut each part counts
        as the whole.
        """
        norm_of = dict(zip(other, norms, strict=False))
        result = np.zeros(len(reference))
        for index, name in enumerate(reference):
            partners = {partner for parameter, partner in self.links if parameter == name}
            result[index] = np.sqrt(sum(norm_of[partner] ** 2 for partner in partners & norm_of.keys()))
        return result

    def _slots_to_other(self, snapshot: Snapshot, like: Snapshot) -> dict[str, Arrays]:
        """Carry the optimizer's slots across; where the two keep others, each keeps its own."""
        slots = snapshot.optimizer
        if slots.keys() != like.optimizer.keys():
            return dict(like.optimizer)
        if not all(_like_parameters(arrays, snapshot) for arrays in slots.values()):
            return dict(like.optimizer)
        return {slot: _filled(like.optimizer[slot], self.parameters.to_other(slots[slot])) for slot in slots}


def _filled(arrays: Arrays, moved: Arrays) -> dict[str, np.ndarray]:
    """Return `arrays` with those that were moved in their places."""
    filled = dict(arrays)
    for name in arrays.keys() & moved.keys():
        filled[name] = moved[name].astype(arrays[name].dtype)
    return filled


def _like_parameters(slot: Arrays, snapshot: Snapshot) -> bool:
    """Whether a slot has one array like each parameter: only then do the links hold for it."""
    if slot.keys() != snapshot.parameters.keys():
        return False
    return all(array.shape == snapshot.parameters[name].shape for name, array in slot.items())


def _linked(matching: Matching, arrays: Arrays, *, gradients: bool = False) -> dict[str, np.ndarray]:
    """Name the other's arrays as the reference does: those that make an array of it as a whole."""
    missing = {link.reference for link in matching.links if link.other not in arrays}
    whole = Matching(tuple(link for link in matching.links if link.reference not in missing))
    return whole.to_reference(arrays, gradients=gradients)
