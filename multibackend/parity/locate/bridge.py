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
        """Return the other's name of a parameter or statistic of the reference; "" where it has none."""
        links = (*self.parameters.links, *self.state.links)
        return ", ".join(dict.fromkeys(link.other for link in links if link.reference == name))

    def to_other(self, snapshot: Snapshot, like: Snapshot) -> Snapshot:
        """Return the reference's state as the other's; what has no partner is taken from `like`."""
        linked_state = {link.reference: snapshot.model_state[link.reference] for link in self.state.links}
        moved = self.parameters.to_other(snapshot.parameters) | self.state.to_other(linked_state)
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
        """[parameters] of the other's gradient norms, in the reference's order; 0 where there is no partner.

        Where several arrays make one their squares add up; of an array that is cut each part counts
        as the whole.
        """
        place = {name: index for index, name in enumerate(other)}
        result = np.zeros(len(reference))
        for index, name in enumerate(reference):
            partners = {link.other for link in self.parameters.links if link.reference == name} & place.keys()
            result[index] = np.sqrt(sum(norms[place[partner]] ** 2 for partner in partners))
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
    return {name: moved[name].astype(array.dtype) if name in moved else array for name, array in arrays.items()}


def _like_parameters(slot: Arrays, snapshot: Snapshot) -> bool:
    """Whether a slot has one array like each parameter: only then do the links hold for it."""
    shapes = {name: array.shape for name, array in slot.items()}
    return shapes == {name: array.shape for name, array in snapshot.parameters.items()}


def _linked(matching: Matching, arrays: Arrays, *, gradients: bool = False) -> dict[str, np.ndarray]:
    """Name the other's arrays as the reference does: those that make an array of it as a whole."""
    missing = {link.reference for link in matching.links if link.other not in arrays}
    whole = Matching(tuple(link for link in matching.links if link.reference not in missing))
    return whole.to_reference(arrays, gradients=gradients)
