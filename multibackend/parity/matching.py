"""Match the parameters of two trainers' models: by names and shapes, and where these leave something open by running
both models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from multibackend.core.arrays import Arrays
from multibackend.errors import MultibackendError, ParameterMatchError
from multibackend.experiment import Experiment
from multibackend.matching import Link, Matching, Side, finish, propose, settle
from multibackend.matching.arrays import given_matching, side_of
from multibackend.matching.by_gradients import agreement
from multibackend.matching.sides import Proposal
from multibackend.matching.stacks import unstack
from multibackend.matching.symmetry import draw
from multibackend.optimizers import SGD
from multibackend.protocol import Execution, Position, Rates, Snapshot
from multibackend.protocol.registry import load_backend
from multibackend.training.input.feed import Feed
from multibackend.training.trainer import Trainer

__all__ = ["Probe", "match_models"]


_RATE = 2.0**20  # of the update that shows the gradient: an exact power of two, so large that no digit is lost
_CHECK = 99  # the seed of the values at which the result is checked


def match_models(reference: Trainer, other: Trainer) -> Matching:
    """Which array of one model is which of the other, and the changes of layout between them.

    `Model(matching=...)` is reused after a check; else names, shapes, kinds and order decide, `rename` and `transform`
    first, and what they leave open is settled by running both models on one micro-batch in float64.

    Raises:
        ParameterMatchError: an array has no partner; the nearest candidates are named.
    """
    snapshots = reference.snapshot(), other.snapshot()
    sides = side_of(snapshots[0], reference.program), side_of(snapshots[1], other.program)
    model = reference.experiment.model
    given = given_matching(reference.experiment.model)
    if given is not None:
        return _checked(given, sides)
    sides = unstack(*sides), unstack(*reversed(sides))
    proposal = propose(*sides, rename=model.rename, transform=model.transform)
    left = [
        name in side.parameters
        for side, names in zip(sides, (proposal.reference_left, proposal.other_left), strict=True)
        for name in names
    ]
    if proposal.plain or not (proposal.open or any(left) or _by_likeness(proposal)):
        return finish(proposal, *sides)
    return _settled(proposal, sides, {**snapshots[0].parameters, **snapshots[0].model_state}, Probe(reference, other))


def _checked(given: Matching, sides: tuple[Side, Side]) -> Matching:
    """A given matching, turned round where it was found with the backends the other way round."""
    shapes = sides[0].shapes, sides[1].shapes
    try:
        given.check(*shapes)
    except ParameterMatchError as error:
        try:
            given.reversed().check(*shapes)
        except ParameterMatchError:
            raise error from None
        return given.reversed()
    return given


def _by_likeness(proposal: Proposal) -> bool:
    return any(pair.evidence not in ("name", "rename", "transform") for pair in proposal.pairs)


def _settled(proposal: Proposal, sides: tuple[Side, Side], initial: Arrays, probe: Probe) -> Matching:
    """What running both models says about a proposal."""
    settled = settle(proposal, *sides, initial, probe)
    values = sides[0].joined(draw(settled, *sides, sides[0].sliced(initial), seed=_CHECK))
    links = settled.links(*sides)
    ours, theirs = probe(values, Matching(links))
    idle = _idle(ours), _idle(theirs)
    found = agreement(links, ours, theirs)
    matching = finish(settled, *sides, idle=idle)
    return replace(matching, links=tuple(_with_agreement(link, found) for link in matching.links))


def _idle(answers: Arrays) -> frozenset[str]:
    """The parameters whose gradient is exactly 0."""
    return frozenset(name for name, array in answers.items() if not np.any(array))


def _with_agreement(link: Link, found: Mapping[Link, float]) -> Link:
    """With what the check at random values says of it."""
    difference = found.get(link)
    if difference is None or not link.evidence:
        return link
    return replace(link, evidence=f"{link.evidence}; gradients then differ by {difference:.0e}")


class Probe:
    """Runs both models on one micro-batch, in float64 where they can: from values of the reference to gradients."""

    def __init__(self, reference: Trainer, other: Trainer) -> None:
        trainers = reference, other
        try:
            self._build(trainers, "float64")
        except MultibackendError:
            raise
        except Exception:  # a model that insists on float32 somewhere; it may still tell the choices apart
            self._build(trainers, "float32")

    def _build(self, trainers: tuple[Trainer, Trainer], precision: str) -> None:
        experiments = [_plain(trainer.experiment, precision) for trainer in trainers]
        feed = Feed(experiments[0], read_ahead=False)
        example = feed.example()
        self._programs = [
            load_backend(trainer.backend).compile(experiment, example=example, execution=Execution(trainer.device))
            for trainer, experiment in zip(trainers, experiments, strict=True)
        ]
        self._stack = feed.next(Position(), 0, 1, self._programs[0].info.output_shape, most=1, epochs=None)
        self._initial = [program.snapshot(program.init()) for program in self._programs]

    def __call__(self, values: Arrays, matching: Matching) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        ours, theirs = self._answer(0, values), self._answer(1, matching.to_other(values))
        return ours, theirs

    def _answer(self, index: int, values: Arrays) -> dict[str, np.ndarray]:
        """The gradient of each parameter, and by how much each array of model state moved."""
        program, base = self._programs[index], self._initial[index]

        def filled(arrays: Arrays) -> dict[str, np.ndarray]:
            return {n: np.asarray(values.get(n, a)).astype(a.dtype).reshape(a.shape) for n, a in arrays.items()}

        start = Snapshot(parameters=filled(base.parameters), model_state=filled(base.model_state))
        state, results = program.run(program.restore(start), program.place(self._stack), Rates(0, np.full(64, _RATE)))
        program.read(results)
        end = program.snapshot(state)
        answer = {n: (start.parameters[n] - array) / _RATE for n, array in end.parameters.items()}
        moved = {n: np.asarray(array - start.model_state[n], np.float64) for n, array in end.model_state.items()}
        return {**answer, **{n: array for n, array in moved.items() if np.any(array)}}


def _plain(experiment: Experiment, precision: str) -> Experiment:
    """One micro-batch and plain gradient descent, which shows the gradient."""
    return experiment.replace(
        optimizer=SGD(learning_rate=1.0),
        precision=precision,
        gradient_accumulation_steps=1,
        max_grad_norm=None,
        lr_scaling=None,
        base_batch_size=None,
        ema_decay=None,
        ema_warmup=False,
        memory_budget=None,
        rematerialize=False,
        drop_last=False,
        on_nonfinite="skip",
        metrics=(),
        eval_data=None,
    )
