"""Two runs of one experiment, window by window, with the states between; and a third one rounding error away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.experiment import Experiment
from multibackend.matching import Matching
from multibackend.protocol import Position, Program, Rates, Snapshot, Traceable, WindowResults, WindowStack
from multibackend.training.input.feed import Feed
from multibackend.training.results import MOST_UNREAD
from multibackend.training.trainer import Trainer

__all__ = ["Bridge", "Runner", "Step", "nudged"]


@dataclass(frozen=True)
class Step:
    """One window of one side.

    Attributes:
        stack: its data.
        results: what it measured.
        rate: the learning rate.
        before, after: the states, by the side's own names.
    """

    stack: WindowStack
    results: WindowResults
    rate: float
    before: Snapshot
    after: Snapshot

    def micro_batches(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Its micro-batches with their factors."""
        return self.stack.micro_batches(0)


class Runner:
    """Runs an experiment window by window from a state, on a program that was compiled for it."""

    def __init__(self, trainer: Trainer, start: Snapshot) -> None:
        self.experiment: Experiment = trainer.experiment
        self.backend, self.program = trainer.backend, trainer.program
        self._rates = trainer._results.rates
        self._room = trainer.program.windows_per_dispatch
        self._feed = Feed(trainer.experiment, read_ahead=False)
        self._position = Position()
        self._state = self.program.restore(start)
        self.snapshot = start
        self.update = start.update

    def step(self) -> Step:
        """The next window."""
        program: Program = self.program
        # room and rates as a trainer hands them over, so that the program that it compiled serves
        shape = program.info.output_shape
        stack = self._feed.next(self._position, self.update, self._room, shape, most=1, epochs=None)
        self._position = stack.stop
        before, rates = self.snapshot, self._table(self._rates.between(self.update, self.update + 1)[0])
        self._state, unread = program.run(self._state, program.place(stack), Rates(self.update, rates))
        results = program.read(unread)
        self.snapshot = program.snapshot(self._state)
        self.update += int(results.applied.sum())
        return Step(stack, results, float(rates[0]), before, self.snapshot)

    def again(self, step: Step, start: Snapshot) -> Step:
        """The window of a step from another state."""
        program: Program = self.program
        rates = Rates(start.update, self._table(step.rate))
        state, unread = program.run(program.restore(start), program.place(step.stack), rates)
        results = program.read(unread)
        return Step(step.stack, results, step.rate, start, program.snapshot(state))

    def _table(self, rate: float) -> np.ndarray:
        return np.full(2 * self._room + MOST_UNREAD, rate)

    @property
    def traceable(self) -> bool:
        """Whether the program tells what its layers do."""
        return isinstance(self.program, Traceable)

    def trace(self, start: Snapshot, step: Step, micro_batch: int, **options: Any) -> Any:
        """One of a step's micro-batches, from a state."""
        program: Any = self.program
        found = list(step.micro_batches())
        batch, factors = found[micro_batch]
        stamp = (start.update, micro_batch, len(found))
        return program.trace(program.restore(start), batch, factors, stamp=stamp, **options)


@dataclass(frozen=True)
class Bridge:
    """Carries states between two models.

    A link may lead from a parameter to model state, for example where one side trains what the other keeps fixed.

    Attributes:
        parameters: the links of the reference's parameters.
        state: those of its model state.
    """

    parameters: Matching
    state: Matching

    @classmethod
    def of(cls, matching: Matching, reference: Snapshot) -> Bridge:
        """From a matching of both, and a state of the reference."""
        parameters, state = (
            Matching(tuple(link for link in matching.links if link.reference in names))
            for names in (reference.parameters, reference.model_state)
        )
        return cls(parameters, state)

    @property
    def links(self) -> list[tuple[str, str]]:
        """(parameter of the reference, parameter of the other), for every link."""
        return [(link.reference, link.other) for link in self.parameters.links]

    def partner(self, name: str) -> str:
        """The other's name of one of the reference's parameters or statistics; "" where it has none."""
        links = (*self.parameters.links, *self.state.links)
        return ", ".join(dict.fromkeys(link.other for link in links if link.reference == name))

    def to_other(self, snapshot: Snapshot, like: Snapshot) -> Snapshot:
        """The reference's state as the other's; what has no partner is taken from `like`."""
        moved = self.parameters.to_other(snapshot.parameters)
        moved |= self.state.to_other(
            {link.reference: snapshot.model_state[link.reference] for link in self.state.links}
        )

        def filled(own: Arrays, arrays: Arrays) -> dict[str, np.ndarray]:
            return {n: arrays[n].astype(array.dtype) if n in arrays else array for n, array in own.items()}

        slots = {slot: self._slot(arrays, snapshot, there=True) for slot, arrays in snapshot.optimizer.items()}
        fitting = slots.keys() == like.optimizer.keys() and None not in slots.values()
        averages = self.parameters.to_other(snapshot.ema) if snapshot.ema and like.ema else {}
        return replace(
            like,
            parameters=filled(like.parameters, moved),
            model_state=filled(like.model_state, moved),
            optimizer={s: filled(like.optimizer[s], slots[s] or {}) for s in slots} if fitting else like.optimizer,
            update=snapshot.update,
            ema=filled(like.ema, averages),
        )

    def to_reference(self, snapshot: Snapshot) -> Snapshot:
        """The other's state by the reference's names, as far as it has partners."""
        arrays = {**snapshot.model_state, **snapshot.parameters}
        slots = {slot: self._slot(values, snapshot, there=False) for slot, values in snapshot.optimizer.items()}
        return replace(
            snapshot,
            parameters=_linked(self.parameters, arrays),
            model_state=_linked(self.state, arrays),
            optimizer={slot: values for slot, values in slots.items() if values is not None},
            ema=_linked(self.parameters, snapshot.ema),
        )

    def gradients(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The other's gradients by the reference's names; frozen parameters have none."""
        return _linked(self.parameters, arrays, gradients=True)

    def norms(self, other: Sequence[str], norms: np.ndarray, reference: Sequence[str]) -> np.ndarray:
        """[parameters] of the other's gradient norms, in the reference's order; 0 where there is no partner.

        Where several arrays make one their squares add up; of an array that is cut each part counts as the whole.
        """
        place = {name: index for index, name in enumerate(other)}
        found = np.zeros(len(reference))
        for index, name in enumerate(reference):
            partners = {link.other for link in self.parameters.links if link.reference == name} & place.keys()
            found[index] = np.sqrt(sum(norms[place[partner]] ** 2 for partner in partners))
        return found

    def _slot(self, arrays: Arrays, snapshot: Snapshot, *, there: bool) -> dict[str, np.ndarray] | None:
        """A slot of the optimizer; None where it is not one array like each parameter."""
        like = arrays.keys() == snapshot.parameters.keys() and all(
            array.shape == snapshot.parameters[name].shape for name, array in arrays.items()
        )
        if not like:
            return None
        return self.parameters.to_other(arrays) if there else _linked(self.parameters, arrays)


def _linked(matching: Matching, arrays: Arrays, **how: Any) -> dict[str, np.ndarray]:
    """Arrays of the other by the reference's names: only those of the reference's arrays that are there as a whole."""
    missing = {link.reference for link in matching.links if link.other not in arrays}
    known = Matching(tuple(link for link in matching.links if link.reference not in missing))
    return known.to_reference(arrays, **how)


def nudged(snapshot: Snapshot, seed: int = 0) -> Snapshot:
    """The state with every parameter one rounding error larger or smaller, by chance."""
    random = np.random.default_rng(seed)

    def nudge(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        sign = random.integers(0, 2, array.shape) * 2 - 1
        return (array * (1 + sign * np.finfo(array.dtype).eps)).astype(array.dtype)

    return replace(snapshot, parameters={name: nudge(array) for name, array in snapshot.parameters.items()})
