"""The search for a micro-batch, on a backend that only claims to need memory, and amounts of memory as written."""

from __future__ import annotations

import math
from typing import Any

import pytest
from multibackend_stub.backend import Linear, StubBackend

import multibackend as mb
from multibackend.core.bytesize import format_bytes, parse_bytes
from multibackend.errors import CapabilityError, ConfigurationError, OutOfMemoryError
from multibackend.protocol import Execution, MemoryAware
from multibackend.testing import assert_raises
from multibackend.testing.conformance.problems import regression
from multibackend.training.auto_batch_size import divisors, largest_that_fits, memory_errors, resolve


class Claiming(StubBackend):
    """The stub, saying that a micro-batch of b examples needs 1000 + 100 b bytes, and that it refuses above `most`."""

    def __init__(self, most: int = 10**9, own: int | None = None) -> None:
        self.most, self.own, self.asked = most, own, []

    def memory_of(self, experiment: mb.Experiment, *, example: Any, limit: int | None = None, **_: Any) -> int:
        size = int(experiment.micro_batch_size)
        assert size == len(next(iter(example.values())))
        self.asked.append(size)
        if size > self.most:
            raise OutOfMemoryError("refused", micro_batch_size=size, precision="float64")
        return 1000 + 100 * size

    def device_memory(self, device: str | None = None) -> int | None:
        return self.own

    def is_out_of_memory(self, error: BaseException) -> bool:
        return "no room" in str(error)


def experiment(examples: int = 96, *, data: int = 300, **options: Any) -> mb.Experiment:
    defaults: dict[str, Any] = {"memory_budget": 3500, "micro_batch_size": "auto"}
    return mb.Experiment(
        model=mb.Model(stub=lambda: Linear(3, 2), inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=0.1),
        train_data=regression(data),
        gradient_accumulation_steps=mb.EffectiveBatch(examples),
        **{**defaults, **options},
    )


@pytest.mark.parametrize("number", [1, 2, 12, 49, 96, 97, 360, 4096])
def test_divisors(number: int) -> None:
    """All of them, in order."""
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_a_smallest_size_that_the_model_refuses() -> None:
    """The next one takes its place; an error of that one too is the user's to see."""

    def measure(size: int) -> int:
        if size < refused:
            raise ValueError(f"more than {size}")
        return size

    refused = 2
    assert largest_that_fits([1, 2, 4, 8], measure, 5)[0] == 4
    assert largest_that_fits([1, 2, 4, 8], measure, 1)[0] is None
    refused = 4
    assert_raises(ValueError, lambda: largest_that_fits([1, 2, 4, 8], measure, 5), "more than 2")
    assert_raises(ValueError, lambda: largest_that_fits([1], measure, 5), "more than 1")


@pytest.mark.parametrize("examples", [1, 2, 96, 97, 4096, 5040])
def test_every_limit(examples: int) -> None:
    """The largest divisor that fits, whatever the limit, in at most 1 + log2(divisors) trials: 8 or less up to 4096."""
    sizes = divisors(examples)
    bound = 1 + math.ceil(math.log2(len(sizes))) if len(sizes) > 1 else 1
    assert bound <= 8
    for limit in {size + offset for size in sizes for offset in (-1, 0, 1)}:
        found, trials = largest_that_fits(sizes, lambda size: size, limit)
        assert found == max((size for size in sizes if size <= limit), default=None)
        assert len(trials) <= bound
        assert len({trial.micro_batch_size for trial in trials}) == len(trials)


def test_effective_batch_is_kept() -> None:
    """96 examples, room for 25 of them: 24 divides 96, four times; the next divisor, 32, was tried and is too large."""
    backend = Claiming()
    resolved, choice = resolve(experiment(), backend)
    assert (resolved.micro_batch_size, resolved.accumulation.steps(0), resolved.memory_budget) == (24, 4, None)
    assert choice is not None
    assert (choice.micro_batch_size, choice.steps, choice.limit, choice.known) == (24, 4, 3500, False)
    assert {(t.micro_batch_size, t.bytes) for t in choice.trials} >= {(1, 1100), (24, 3400), (32, 4200)}
    assert backend.asked == [trial.micro_batch_size for trial in choice.trials]


def test_a_device_that_refuses() -> None:
    """Where the device itself says no, that counts as too large; its own memory is the limit without a budget."""
    resolved, choice = resolve(experiment(memory_budget=None), Claiming(most=7, own=10**6))
    assert resolved.micro_batch_size == 6
    assert choice is not None
    assert choice.limit == 10**6
    assert None in {trial.bytes for trial in choice.trials}


def test_never_more_than_the_data() -> None:
    """A micro-batch is not larger than an epoch."""
    assert resolve(experiment(4096, data=100, memory_budget="1GiB"), Claiming())[0].micro_batch_size == 64


def test_the_answer_is_kept() -> None:
    """A second search of the same experiment asks nothing; another budget, device or shape asks anew."""
    one, backend = experiment(), Claiming()
    first = resolve(one, backend)
    asked = len(backend.asked)
    again = resolve(one, backend)
    assert len(backend.asked) == asked
    assert again[0].micro_batch_size == first[0].micro_batch_size
    assert again[1] is not None
    assert again[1].known
    assert again[1].as_event()["trials"] == 0
    for other in (one.replace(memory_budget=9000), one.replace(rematerialize=True), one.replace(precision="float64")):
        asked = len(backend.asked)
        resolve(other, backend)
        assert len(backend.asked) > asked
    asked = len(backend.asked)
    resolve(one, backend, Execution(device="cpu"))
    assert len(backend.asked) > asked


def test_too_small_for_one_example() -> None:
    """Both numbers and the ways out."""
    mentions = ("1.074 KiB (1100 bytes)", "(1000 bytes)", "raise memory_budget", "rematerialize=True")
    assert_raises(ConfigurationError, lambda: resolve(experiment(memory_budget=1000), Claiming()), *mentions)
    without = experiment(memory_budget=None)
    assert_raises(ConfigurationError, lambda: resolve(without, Claiming(own=1000)), "device with more memory")


def test_a_cpu_without_a_budget() -> None:
    """It does not say what it has."""
    call = lambda: resolve(experiment(memory_budget=None), Claiming())  # noqa: E731
    assert_raises(ConfigurationError, call, "memory_budget='4GiB'")


def test_a_backend_that_knows_nothing_of_memory() -> None:
    """A stranger's backend without the capability is told apart, with the repair."""
    assert not isinstance(StubBackend(), MemoryAware)
    assert_raises(CapabilityError, lambda: mb.Trainer(experiment(), "stub"), "'stub'", "micro_batch_size=32")


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"gradient_accumulation_steps": 4}, ("EffectiveBatch(n)", "got 4")),
        ({"micro_batch_size": "automatic"}, ("'automatic'",)),
        ({"micro_batch_size": 8}, ("memory_budget", "'auto' only", "got 8")),
        ({"memory_budget": "2GB!"}, ("'2GB!'", "GiB")),
        ({"memory_budget": 0}, ("memory_budget must be >= 1, got 0",)),
        ({"memory_budget": 2.5}, ("got 2.5", "'2GiB'")),
        ({"memory_budget": "0GiB"}, ("'0GiB'",)),
        ({"drop_last": True, "gradient_accumulation_steps": mb.EffectiveBatch(1000)}, ("drop_last", "1000", "300")),
    ],
)
def test_wrong_options(options: dict[str, Any], mentions: tuple[str, ...]) -> None:
    """Told when the experiment is made."""
    arguments = {"memory_budget": "1GiB", **options}
    steps = arguments.pop("gradient_accumulation_steps", mb.EffectiveBatch(96))
    assert_raises(
        ConfigurationError, lambda: experiment().replace(gradient_accumulation_steps=steps, **arguments), *mentions
    )


def test_unresolved() -> None:
    """What needs the number says who decides it."""
    assert_raises(ConfigurationError, lambda: experiment().accumulation, "trainer.experiment")
    assert experiment().effective_examples == 96


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1B", 1), ("2GiB", 2**31), ("2 GB", 2 * 10**9), ("1.5KiB", 1536), ("3TiB", 3 * 2**40), (17, 17), ("10MB", 10**7)],
)
def test_amounts(written: int | str, expected: int) -> None:
    """Binary and decimal units."""
    assert parse_bytes(written) == expected


def test_amounts_are_shown_in_the_largest_unit() -> None:
    """At least 1 of it."""
    shown = [format_bytes(value) for value in (0, 1023, 1024, 3 * 2**30, 5 * 2**60)]
    assert shown == ["0 B", "1023 B", "1 KiB", "3 GiB", "5.243e+06 TiB"]


def failing(message: str, size: int = 12, **options: Any) -> OutOfMemoryError:
    one = experiment(micro_batch_size=size, memory_budget=None, **options)

    def run() -> None:
        with memory_errors(Claiming(), one):
            raise RuntimeError(message)

    return assert_raises(OutOfMemoryError, run, message)


def test_running_out_names_the_ways_out() -> None:
    """Size, precision and remedies, those in use left out."""
    error = failing("no room for 3 bytes", precision="float64")
    assert (error.micro_batch_size, error.precision) == (12, "float64")
    assert isinstance(error, MemoryError)
    text = str(error)
    for words in (
        "micro_batch_size=12",
        "example 6 with 2 times",
        '"auto"',
        "rematerialize=True",
        'precision="float32"',
    ):
        assert words in text
    assert "rematerialize" not in str(failing("no room", rematerialize=True))
    assert "times the steps" not in str(failing("no room", size=1))


def test_other_errors_pass() -> None:
    """What is not about memory, and what is the library's own, stays what it is; a stranger's backend is not asked."""
    one = experiment(micro_batch_size=12, memory_budget=None)
    for backend, error in (
        (Claiming(), RuntimeError("shapes differ")),
        (Claiming(), CapabilityError("no room")),
        (StubBackend(), RuntimeError("no room")),
    ):
        with pytest.raises(type(error)) as caught, memory_errors(backend, one):
            raise error
        assert caught.value is error
