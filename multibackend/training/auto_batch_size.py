"""`micro_batch_size="auto"`: the largest that fits in memory, the effective batch unchanged.

The sizes that come into question divide `EffectiveBatch(n)`, so that every window has n examples
whatever is chosen. The backend says how many bytes a size needs; how it knows is its own affair:
JAX asks the compiler, torch runs a micro-batch on a fresh program. Memory grows with the size, so
halving finds the largest that fits in at most 1 + log2(number of divisors) trials: 5 for n = 4096.
No trial touches the state of a run, which is made afterwards.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from multibackend.core.bytesize import format_bytes, parse_bytes
from multibackend.errors import CapabilityError, ConfigurationError, MultibackendError, OutOfMemoryError, UserCodeError
from multibackend.experiment import AUTO, PRECISIONS, Experiment
from multibackend.experiment.accumulation import EffectiveBatch
from multibackend.protocol import Backend, Execution, MemoryAware
from multibackend.training.input.order import order_of

__all__ = [
    "MemoryTrial",
    "MicroBatchChoice",
    "divisors",
    "largest_that_fits",
    "memory_errors",
    "resolve",
    "resolve_together",
]


@dataclass(frozen=True)
class MemoryTrial:
    """One size that was tried.

    `bytes` is what it needs at its peak; None where the device refused, or the trial was broken off
    at the limit.
    """

    micro_batch_size: int
    bytes: int | None


@dataclass(frozen=True)
class MicroBatchChoice:
    """What `micro_batch_size="auto"` became.

    Attributes:
        micro_batch_size: chosen; `steps` of them make the effective batch.
        steps: micro-batches per update.
        limit: bytes that it had to fit into: the `memory_budget`, or what the device has.
        trials: in order; those of the first search where the answer was known already.
        known: whether an earlier search in this process gave the answer.
    """

    micro_batch_size: int
    steps: int
    limit: int
    trials: tuple[MemoryTrial, ...]
    known: bool = False

    def as_event(self) -> dict[str, Any]:
        """The fields of `events.MicroBatchChosen`."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "steps": self.steps,
            "limit": self.limit,
            "trials": 0 if self.known else len(self.trials),
        }


# choices that were made in this process, each with the experiment, which must live as long as its
# id is part of a key
_known: dict[tuple[Any, ...], tuple[MicroBatchChoice, object]] = {}


def resolve(
    experiment: Experiment,
    backend: Backend,
    execution: Execution = Execution(),  # noqa: B008 - frozen
) -> tuple[Experiment, MicroBatchChoice | None]:
    """The experiment with a number for its micro-batch size, and how that was found, if it was.

    Args:
        experiment: with `micro_batch_size="auto"`, or any other, which comes back as it is.
        backend: must know about memory, see `MemoryAware`.
        execution: the device, and how windows are executed on it.

    Raises:
        CapabilityError: the backend cannot say how much memory a micro-batch takes.
        ConfigurationError: not even one example fits, or the device has no memory of its own and no
            `memory_budget` was given.
    """
    if experiment.micro_batch_size != AUTO:
        return experiment, None
    if not isinstance(backend, MemoryAware):
        raise CapabilityError(
            f"the backend {backend.name!r} cannot tell how much memory a micro-batch takes, which "
            f"micro_batch_size='auto' asks; give a number, micro_batch_size=32"
        )
    accumulation = experiment.gradient_accumulation_steps
    examples = 0
    if isinstance(accumulation, EffectiveBatch):
        examples = int(accumulation.examples)
    limit = _limit(experiment, backend, execution.device)
    key = _key(experiment, backend.name, (execution, limit))
    if key in _known:
        choice = replace(_known[key][0], known=True)
        return _with_size(experiment, choice.micro_batch_size), choice
    # a size that no micro-batch of the data could fill is not tried
    order = order_of(experiment.train_data, seed=0, shuffle=False)
    most = order.available(0, 0, examples)
    candidates = [size for size in divisors(examples) if size <= most]

    def measure(size: int) -> int:
        sized = _with_size(experiment, size)
        example = order.take(0, 0, size)
        return backend.memory_of(sized, example=example, execution=execution, limit=limit)

    size, trials = largest_that_fits(candidates, measure, limit)
    if size is None:
        problem = _too_small(experiment, trials[0], limit)
        raise ConfigurationError("micro_batch_size='auto'", [problem])
    choice = MicroBatchChoice(size, examples // size, limit, trials)
    _known[key] = choice, experiment
    return _with_size(experiment, size), choice


def resolve_together(
    experiment: Experiment, backends: Sequence[Backend], executions: Mapping[str, Execution]
) -> Experiment:
    """The experiment with a size that fits on every backend, so that all run the same micro-batches."""
    # the smallest of all fits everywhere, and every window keeps its examples
    resolved = [resolve(experiment, backend, executions[backend.name])[0] for backend in backends]
    return min(resolved, key=lambda sized: int(sized.micro_batch_size))


def divisors(number: int) -> list[int]:
    """In ascending order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def largest_that_fits(
    candidates: Sequence[int], measure: Callable[[int], int], limit: int
) -> tuple[int | None, tuple[MemoryTrial, ...]]:
    """The largest of ascending `candidates` whose `measure` is at most `limit`; None if none is.

    `measure` may raise `OutOfMemoryError` instead. The smallest is tried first, then the range is
    halved: at most 1 + ceil(log2(len(candidates))) trials. What is returned was itself tried, and
    the next larger one too. Where the smallest fails for another reason, as a batch normalisation
    does on a single example, the next one takes its place.

    >>> largest_that_fits([1, 2, 4, 8, 16], lambda size: 100 + 10 * size, 150)[0]
    4
    """
    trials: list[MemoryTrial] = []

    def fits(size: int) -> bool:
        try:
            needed = measure(size)
        except OutOfMemoryError:
            needed = None
        trials.append(MemoryTrial(size, needed))
        return needed is not None and needed <= limit

    try:
        enough = fits(candidates[0])
    except Exception:
        if len(candidates) == 1:
            raise
        candidates = candidates[1:]
        enough = fits(candidates[0])
    if not enough:
        return None, tuple(trials)
    largest = 0
    too_large = len(candidates)
    while too_large - largest > 1:
        middle = (largest + too_large) // 2
        if fits(candidates[middle]):
            largest = middle
        else:
            too_large = middle
    return candidates[largest], tuple(trials)


@contextlib.contextmanager
def memory_errors(backend: Backend, experiment: Experiment, examples: int | None = None) -> Iterator[None]:
    """Turn a backend's own words for "no memory left" into `OutOfMemoryError` and its ways out.

    `examples` went through the model at once; the micro-batch size unless given.
    """
    try:
        yield
    except Exception as error:
        # a model's own code may have asked for the memory
        is_ours = isinstance(error, MultibackendError) and not isinstance(error, UserCodeError)
        if is_ours or not isinstance(backend, MemoryAware) or not backend.is_out_of_memory(error):
            raise
        raise _out_of_memory(experiment, examples, error) from error


def _out_of_memory(experiment: Experiment, examples: int | None, error: Exception) -> OutOfMemoryError:
    size = int(experiment.micro_batch_size)
    if examples is None:
        subject = f"micro_batch_size={size}"
        remedies = _training_remedies(experiment)
    else:
        subject = f"an evaluation batch of {examples} examples"
        remedies = [f"a smaller eval_batch_size or batch_size= than {examples}"]
    lines = "\n  - ".join(["Ways out:", *remedies])
    message = [*str(error).strip().splitlines(), type(error).__name__][0]
    return OutOfMemoryError(
        f"the device has no memory left with {subject} and precision={experiment.precision!r}. "
        f"{lines}\nThe framework said: {message}",
        micro_batch_size=size,
        precision=experiment.precision,
    )


def _training_remedies(experiment: Experiment) -> list[str]:
    """What makes a micro-batch need less, the way that changes nothing else first."""
    size = int(experiment.micro_batch_size)
    remedies = []
    if size > 1:
        half = divisors(size)[-2]
        remedies = [
            f"a smaller micro_batch_size, for example {half} with {size // half} times the steps: the same updates",
            'micro_batch_size="auto" with gradient_accumulation_steps=EffectiveBatch(n): the largest that fits',
        ]
    if not experiment.rematerialize:
        remedies.append("rematerialize=True, which keeps less for the backward pass")
    lighter = {"float64": "float32", "float32": "bf16"}.get(experiment.precision)
    if lighter in PRECISIONS:
        remedies.append(f'precision="{lighter}", which takes half the bytes')
    return remedies


def _limit(experiment: Experiment, backend: MemoryAware, device: str | None) -> int:
    if experiment.memory_budget is not None:
        return parse_bytes(experiment.memory_budget)
    limit = backend.device_memory(device)
    if limit is None:
        problem = (
            "this device shares its memory with everything else, so say how much of it to use: memory_budget='4GiB'"
        )
        raise ConfigurationError("micro_batch_size='auto'", [problem])
    return limit


def _with_size(experiment: Experiment, size: int) -> Experiment:
    return experiment.replace(micro_batch_size=size, memory_budget=None)


def _key(experiment: Experiment, backend: str, where: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return all that memory depends on: backend, device, model, shapes, options."""
    order = order_of(experiment.train_data, seed=0, shuffle=False)
    first = order.take(0, 0, 1)
    shapes = [(name, array.shape[1:], array.dtype.str) for name, array in first.items()]
    terms = dict(experiment.loss_terms)
    options = (terms, experiment.optimizer, experiment.rematerialize, experiment.precision)
    window = experiment.effective_examples
    examples = order.available(0, 0, window)
    model = (id(experiment.model), int(experiment.seed))
    return backend, *where, *model, repr(options), repr(shapes), window, examples


def _too_small(experiment: Experiment, trial: MemoryTrial, limit: int) -> str:
    needs = "more than that"
    if trial.bytes is not None:
        needs = f"{format_bytes(trial.bytes)} ({trial.bytes} bytes)"
    remedies = ["raise memory_budget"]
    if experiment.memory_budget is None:
        remedies = ["take a device with more memory"]
    if not experiment.rematerialize:
        remedies.append("pass rematerialize=True")
    remedies.append("or use a smaller model")
    advice = ", ".join(remedies)
    available = f"{format_bytes(limit)} ({limit} bytes)"
    return f"one example does not fit: it needs {needs}, there are {available}; {advice}"
