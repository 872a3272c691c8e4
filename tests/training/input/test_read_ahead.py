"""Reading in the background: the same bits, errors of their own type, a thread that ends with `fit`."""

import _thread
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from multibackend_stub.backend import StubProgram
from support.examples import examples, experiment

import multibackend as mb
from multibackend.data import ArraySource, IterableSource, pad_to_buckets
from multibackend.errors import ConfigurationTypeError, NonFiniteError
from multibackend.losses import MeanSquaredError
from multibackend.testing import assert_bit_identical, assert_raises
from multibackend.testing.conformance.problems import START, regression
from multibackend.training.input.read_ahead import ReadAhead


class LostError(Exception):
    """What a dataset raises."""


class Recorded:
    """A map-style dataset that notes which thread reads it, and fails at one example."""

    def __init__(self, count: int, *, fails_at: int = -1) -> None:
        self.items, self.fails_at, self.threads = examples(count), fails_at, []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.threads.append(threading.current_thread().name)
        if index == self.fails_at:
            raise LostError(f"example {index} is gone")
        return self.items[index]


def trainer(data: Any, *, read_ahead: bool | None = True, windows: int = 2, **options: Any) -> mb.Trainer:
    made = mb.Trainer(experiment(data, **options), "stub", windows_per_dispatch=windows, read_ahead=read_ahead)
    made.load_parameters(START)
    return made


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read ahead"]


def poisoned(count: int, *bad: int) -> list[dict[str, Any]]:
    return [{**item, "x": item["x"] * np.nan if i in bad else item["x"]} for i, item in enumerate(examples(count))]


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shuffled": {"shuffle": True},
    "accumulated": {"gradient_accumulation_steps": 3},
    "drop_last": {"gradient_accumulation_steps": 3, "drop_last": True},
    "schedule": {"gradient_accumulation_steps": {0: 1, 3: 3, 7: 2}},
    "skips": {"data": poisoned(29, 4, 13, 28), "on_nonfinite": "skip"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_same_bits(name: str, stream: bool) -> None:
    """Histories and parameters do not depend on it, whatever is skipped, dropped or called in parts."""
    options = {"data": examples(29), **RUNS[name]}
    data = options.pop("data")
    runs = []
    for read_ahead in (False, True):
        made = trainer((lambda: iter(data)) if stream else data, read_ahead=read_ahead, **options)
        for updates in (1, 4, 5, 19):
            made.fit(updates=updates)
        result = made.fit(epochs=8)
        history = {name: result.history[name] for name in ("loss", "grad_norm", "epoch", "examples")}
        runs.append({**history, **made.parameters(), "skipped": np.array([s.offset for s in result.skipped])})
        assert not readers()
    assert_bit_identical(runs[0], runs[1])


def test_reading_overlaps_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the device has one stack of windows the next is read, by the other thread, and not the one after it."""
    data, seen = Recorded(24), []
    run = StubProgram.run

    def slow(self: StubProgram, *arguments: Any) -> Any:
        deadline = time.monotonic() + 5
        due = min(24, 6 * (len(seen) + 2))  # the stack that runs, and the next
        while len(data.threads) < due and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(len(data.threads))
        return run(self, *arguments)

    made = trainer(data)
    data.threads.clear()
    monkeypatch.setattr(StubProgram, "run", slow)
    made.fit(epochs=1)
    assert seen == [12, 18, 24, 24]
    assert data.threads == ["MainThread"] * 6 + ["read ahead"] * 18


def test_epochs_are_opened_by_the_trainer() -> None:
    """Iterators begin in the trainer's thread, where a loader may draw random numbers and fork; then they are read."""
    opened, read = [], []

    def items(epoch: int) -> Iterator[dict[str, Any]]:
        opened.append((epoch, threading.current_thread().name))
        return ((read.append(threading.current_thread().name), item)[1] for item in examples(9))

    trainer(items).fit(epochs=4)
    assert opened == [(epoch, "MainThread") for epoch in (0, 0, 1, 2, 3)]
    assert read.count("read ahead") == 4 * 9 - 7  # but for the first stack and the example that follows it


@pytest.mark.parametrize("read_ahead", [False, True])
def test_errors_keep_their_type(read_ahead: bool) -> None:
    """What a dataset raises is raised by `fit`, after the updates of everything before it; the thread has ended."""
    made = trainer(Recorded(24, fails_at=14), read_ahead=read_ahead)
    error = assert_raises(LostError, lambda: made.fit(epochs=1), "example 14 is gone")
    assert error.__traceback__ is not None
    assert made.snapshot().update == 4
    assert not readers()
    assert_raises(LostError, lambda: made.fit(epochs=1))
    assert made.snapshot().update == 4


def test_a_stream_that_raised_is_read_again() -> None:
    """A generator that raised has ended; the epoch has not. The next `fit` goes on where the run stood."""
    broken = [True]

    def shaky() -> Iterator[dict[str, Any]]:
        for index, item in enumerate(examples(29)):
            if index == 14 and broken[0]:
                raise LostError("the line is down")
            yield item

    for read_ahead in (False, True):
        broken[0], made = True, trainer(shaky, read_ahead=read_ahead)
        assert_raises(LostError, lambda made=made: made.fit(epochs=1))
        broken[0] = False
        result, wanted = made.fit(epochs=1), trainer(examples(29)).fit(epochs=1)
        assert_bit_identical(result.history["loss"], wanted.history["loss"])


def test_a_gradient_that_is_not_finite() -> None:
    """The run stands where the failed window begins, and the windows that were read ahead are read again."""
    for data in (poisoned(29, 13), lambda: iter(poisoned(29, 13))):
        made = trainer(data)
        error = assert_raises(NonFiniteError, lambda made=made: made.fit(epochs=1), "example 12")
        assert (error.update, made.snapshot().update) == (5, 4)
        assert not readers()
        assert_raises(NonFiniteError, lambda made=made: made.fit(epochs=1), "example 12")


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the trainer waits for a read ends `fit` and the thread; the run can go on."""
    items, interrupted = examples(24), []
    waiting, claimed = threading.Event(), threading.Event()
    wait = ReadAhead._wait

    def observed(self: ReadAhead) -> None:
        """Say that the trainer is about to wait, and when it no longer does."""
        waiting.set()
        try:
            wait(self)
        finally:
            claimed.set()

    def slow() -> Iterator[dict[str, Any]]:
        for index, item in enumerate(items):
            if index == 12 and not interrupted:
                waiting.clear()  # of the reads before this one
                claimed.clear()
            if index == 14 and not interrupted:
                interrupted.append(threading.current_thread().name)
                assert waiting.wait(60)  # the trainer has run what it had
                _thread.interrupt_main()
                assert claimed.wait(60)  # the read has not ended when it is interrupted
            yield item

    monkeypatch.setattr(ReadAhead, "_wait", observed)
    made = trainer(slow)
    with pytest.raises(KeyboardInterrupt):
        made.fit(epochs=1)
    assert interrupted == ["read ahead"]
    assert not readers()
    result, wanted = made.fit(epochs=1), trainer(items).fit(epochs=1)
    assert_bit_identical(result.history["loss"], wanted.history["loss"])


def test_a_listener_that_raises() -> None:
    """The thread ends with `fit`, whoever raised."""

    def stop(event: object) -> None:
        if isinstance(event, mb.events.UpdateFinished):
            raise LostError("enough")

    made = mb.Trainer(experiment(examples(24)), "stub", callbacks=[stop], read_ahead=True)
    assert_raises(LostError, lambda: made.fit(epochs=1))
    assert not readers()


class Random(Recorded):
    """Examples with noise: another one each time."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "x": np.random.default_rng().normal(size=3)}


class Loader:
    """As much of a torch DataLoader as is asked for."""

    dataset, batch_sampler = (), None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(examples(6))


def test_where_it_is_the_default() -> None:
    """For what is no memory and reads the same twice; not for arrays, random data, or loaders with workers."""
    used = {
        "arrays": (regression(6), False),
        "array source": (ArraySource(regression(6)), False),
        "dataset": (Recorded(6), True),
        "random dataset": (Random(6), False),
        "stream": (lambda: iter(examples(6)), True),
        "loader": (Loader(), False),
        "padded loader": (pad_to_buckets(IterableSource(Loader()), fields={"x": 0}, lengths=[3]), False),
    }
    for name, (data, expected) in used.items():
        assert mb.Trainer(experiment(data), "stub")._run.plan.feed.read_ahead is expected, name
    schedule = experiment(Recorded(6), gradient_accumulation_steps={0: 1, 2: 2})
    assert not mb.Trainer(schedule, "stub", read_ahead=True)._run.plan.feed.read_ahead
    assert_raises(
        ConfigurationTypeError, lambda: mb.Trainer(experiment(Recorded(6)), "stub", read_ahead=1), "read_ahead", "1"
    )


def test_weights_are_checked_in_the_thread() -> None:
    """Data that the loss refuses are a DataError, at their window."""
    items = [{**item, "w": -1.0 if index == 20 else 1.0} for index, item in enumerate(examples(24))]
    for read_ahead in (False, True):
        made = trainer(items, loss=MeanSquaredError(target="y", weights="w"), read_ahead=read_ahead)
        assert_raises(mb.errors.DataError, lambda made=made: made.fit(epochs=1), "'w'", "-1.0")
        assert made.snapshot().update == 6


def test_claims_by_key() -> None:
    """A read of another key is dropped, its error too; a thread that rested starts again."""
    ahead = ReadAhead()
    ahead.submit("a", lambda: 1)
    assert ahead.claim("b") is None
    ahead.submit("a", lambda: 1 / 0)
    assert ahead.claim("b") is None
    ahead.submit("c", lambda: 3)
    ahead.end_thread()
    ahead.end_thread()
    assert ahead.claim("c") == 3
    assert ahead.claim("c") is None
    ahead.submit("d", lambda: 4)
    assert ahead.claim("d") == 4
    ahead.end_thread()
    assert not readers()
