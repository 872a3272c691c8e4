"""Match the parameters of two built models by names and shapes, else by running both."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

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
from multibackend.protocol import Execution, Position, Program, Rates, Snapshot
from multibackend.protocol.registry import load_backend
from multibackend.training.input.feed import Feed

__all__ = ["BuiltModel", "Probe", "alike", "match_models", "plain_experiment"]

# of the update that shows the gradient: an exact power of two, so large that no digit is lost
_RATE = 2.0**20
_CHECK = 99  # the seed of the values at which the result is checked


class BuiltModel(Protocol):
    """A model on its backend, as far as matching asks; a `Trainer` is one."""

    @property
    def experiment(self) -> Experiment: ...
    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str | None: ...
    @property
    def program(self) -> Program: ...

    def snapshot(self) -> Snapshot:
        """Its state on the host."""
        ...


def alike(matching: Matching, source: Snapshot, target: Snapshot) -> Snapshot:
    """The state `target` with the parameters and the model state of `source`, where they have a partner in it.

    Nothing of the optimizer: the state is one to begin with.
    """
    arrays = matching.to_other({**source.model_state, **source.parameters})
    parameters = _with_partners(target.parameters, arrays)
    return Snapshot(parameters, _with_partners(target.model_state, arrays), update=target.update)


def _with_partners(target: Arrays, arrays: Arrays) -> dict[str, np.ndarray]:
    """Replace the arrays of `target` that have a partner, in the dtype of the target."""
    filled = dict(target)
    for name in target.keys() & arrays.keys():
        filled[name] = arrays[name].astype(target[name].dtype, copy=False)
    return filled


def match_models(reference: BuiltModel, other: BuiltModel) -> Matching:
    """Find which array of one model is which of the other, and the changes of layout between them.

    `Model(matching=...)` is reused after a check; else names, shapes, kinds and order decide,
    `rename` and `transform` first, and what they leave open is settled by running both models on
    one micro-batch in float64.

    Raises:
        ParameterMatchError: an array has no partner; the nearest candidates are named.
    """
    start = reference.snapshot()
    reference_side = side_of(start, reference.program)
    other_side = side_of(other.snapshot(), other.program)
    model = reference.experiment.model
    given = given_matching(model)
    if given is not None:
        return _checked(given, reference_side, other_side)
    sides = (unstack(reference_side, other_side), unstack(other_side, reference_side))
    proposal = propose(*sides, rename=model.rename, transform=model.transform)
    if proposal.plain or not _needs_a_run(proposal, *sides):
        return finish(proposal, *sides)
    return _settled(proposal, sides, {**start.parameters, **start.model_state}, Probe(reference, other))


def _checked(matching: Matching, reference: Side, other: Side) -> Matching:
    """Check a matching that was given; turn it round where its backends are the other way round."""
    try:
        matching.check(reference.shapes, other.shapes)
    except ParameterMatchError as error:
        try:
            matching.reversed().check(reference.shapes, other.shapes)
        except ParameterMatchError:
            # the first error names what is wrong as the caller wrote it
            raise error from None
        return matching.reversed()
    return matching


def _needs_a_run(proposal: Proposal, reference: Side, other: Side) -> bool:
    """Whether something is open, a parameter has no partner, or a pair rests on likeness alone."""
    if proposal.open or any(pair.evidence not in ("name", "rename", "transform") for pair in proposal.pairs):
        return True
    # model state without a partner is no reason: a counter of one framework is nothing in the other
    left_in_reference = reference.parameters.intersection(proposal.reference_left)
    left_in_other = other.parameters.intersection(proposal.other_left)
    return bool(left_in_reference or left_in_other)


def _settled(proposal: Proposal, sides: tuple[Side, Side], initial: Arrays, probe: Probe) -> Matching:
    """Settle a proposal by running both models, then check the result at random values."""
    settled = settle(proposal, *sides, initial, probe)
    values = sides[0].joined(draw(settled, *sides, sides[0].sliced(initial), seed=_CHECK))
    links = settled.links(*sides)
    answers = probe(values, Matching(links))
    idle = (_idle(answers[0]), _idle(answers[1]))
    differences = agreement(links, *answers)
    matching = finish(settled, *sides, idle=idle)
    return replace(matching, links=tuple(_with_agreement(link, differences.get(link)) for link in matching.links))


def _idle(answers: Arrays) -> frozenset[str]:
    """Names of the parameters whose gradient is exactly 0."""
    return frozenset(name for name, array in answers.items() if not np.any(array))


def _with_agreement(link: Link, difference: float | None) -> Link:
    """Add to a link's evidence what the check at random values says of it."""
    if difference is None or not link.evidence:
        return link
    return replace(link, evidence=f"{link.evidence}; gradients then differ by {difference:.0e}")


class Probe:
    """A run of both models on one micro-batch, in float64 if possible: from values to gradients."""

    def __init__(self, reference: BuiltModel, other: BuiltModel) -> None:
        models = (reference, other)
        try:
            self._build(models, "float64")
        except MultibackendError:
            raise
        except Exception:  # a model that insists on float32 somewhere; it may still tell the choices apart
            self._build(models, "float32")

    def _build(self, models: tuple[BuiltModel, BuiltModel], precision: str) -> None:
        experiments = [plain_experiment(model.experiment, precision) for model in models]
        # one feed, the reference's, so that both see the same micro-batch whatever their own
        # data are
        feed = Feed(experiments[0], read_ahead=False)
        example = feed.example()
        self._programs = []
        for model, experiment in zip(models, experiments, strict=True):
            backend = load_backend(model.backend)
            program = backend.compile(experiment, example=example, execution=Execution(model.device))
            self._programs.append(program)
        self._stack = feed.next(Position(), 0, 1, self._programs[0].info, most=1, epochs=None)
        self._initial = [program.snapshot(program.init()) for program in self._programs]

    def __call__(self, values: Arrays, matching: Matching) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return self._answer(0, values), self._answer(1, matching.to_other(values))

    def _answer(self, index: int, values: Arrays) -> dict[str, np.ndarray]:
        """Return each parameter's gradient, and by how much each array of model state moved."""
        program = self._programs[index]
        initial = self._initial[index]
        start = Snapshot(
            parameters=_filled(initial.parameters, values),
            model_state=_filled(initial.model_state, values),
        )
        state, results = program.run(program.restore(start), program.place(self._stack), Rates(0, np.full(64, _RATE)))
        program.read(results)
        end = program.snapshot(state)
        # p' = p - rate * g
        answer = {name: (start.parameters[name] - array) / _RATE for name, array in end.parameters.items()}
        for name, array in end.model_state.items():
            moved = np.asarray(array - start.model_state[name], np.float64)
            if np.any(moved):
                answer[name] = moved
        return answer


def _filled(target: Arrays, values: Arrays) -> dict[str, np.ndarray]:
    """Replace the arrays of `target` for which there are values, in the target's dtype and shape."""
    filled = {}
    for name, array in target.items():
        value = np.asarray(values.get(name, array))
        filled[name] = value.astype(array.dtype).reshape(array.shape)
    return filled


def plain_experiment(experiment: Experiment, precision: str) -> Experiment:
    """Reduce an experiment to one micro-batch and plain descent, which shows the gradient."""
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
        on_nonfinite="skip",  # at values drawn at random a gradient may overflow
        metrics=(),
        eval_data=None,
        initial="native",
    )
