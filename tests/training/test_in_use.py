"""A trainer is used by one thread at a time, and `fit` is not called inside `fit`; who asks is refused, and nothing
changes."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.variants import SCAN, STUB, TORCH, Variant

import multibackend as mb
from multibackend.errors import TrainerInUseError
from multibackend.testing import assert_bit_identical, assert_raises, assert_snapshots_identical
from multibackend.testing.conformance.problems import START, regression

variants = pytest.mark.parametrize("variant", [TORCH, SCAN, STUB], ids=str)

# all that reads or changes the state
CALLS: dict[str, Callable[[mb.Trainer], Any]] = {
    "fit": lambda trainer: trainer.fit(updates=9),
    "evaluate": lambda trainer: trainer.evaluate(regression(5)),
    "parameters": lambda trainer: trainer.parameters(),
    "ema_parameters": lambda trainer: trainer.ema_parameters(),
    "load_parameters": lambda trainer: trainer.load_parameters(START),
    "recompute_statistics": lambda trainer: trainer.recompute_statistics(),
    "gradient_shares": lambda trainer: trainer.gradient_shares(),
    "gradient_norms": lambda trainer: trainer.gradient_norms(),
    "snapshot": lambda trainer: trainer.snapshot(),
    "restore": lambda trainer: trainer.restore(trainer.snapshot()),
    "save": lambda trainer: trainer.save("never"),
}


def described(variant: Variant) -> mb.Experiment:
    return variant.experiment(regression(12), ema_decay=0.9)


def in_another_thread(function: Callable[[], Any]) -> BaseException | None:
    """What the function raised in a thread of its own."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def at_update(number: int, function: Callable[[], Any]) -> Callable[[mb.events.Event], None]:
    """A listener that calls a function after one update."""

    def listen(event: mb.events.Event) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == number:
            function()

    return listen


@variants
def test_other_threads_are_refused(variant: Variant) -> None:
    """Each call, while `fit` runs in this thread; the run is that of a trainer which nobody asked."""
    refused: dict[str, BaseException | None] = {}

    def ask() -> None:
        for name, call in CALLS.items():
            refused[name] = in_another_thread(lambda call=call: call(trainer))

    trainer = variant.trainer(described(variant), START, callbacks=[at_update(3, ask)])
    history = trainer.fit(updates=6).history
    assert set(refused) == set(CALLS)
    for name, error in refused.items():
        assert isinstance(error, TrainerInUseError), (name, error)
        assert "another thread is in fit" in str(error)
    clean = variant.trainer(described(variant), START)
    assert_bit_identical(history["loss"], clean.fit(updates=6).history["loss"])
    assert_snapshots_identical(trainer.snapshot(), clean.snapshot())


@variants
def test_fit_inside_fit_is_refused(variant: Variant) -> None:
    """A listener may read and evaluate, and may not train; the outer call goes on as if nothing had been asked."""
    seen: list[Any] = []

    def ask() -> None:
        assert_raises(TrainerInUseError, lambda: trainer.fit(updates=9), "inside a call of fit", "second Trainer")
        seen.append(trainer.evaluate(regression(5))["loss"])
        seen.append(trainer.parameters()["bias"])

    trainer = variant.trainer(described(variant), START, callbacks=[at_update(3, ask)], windows_per_dispatch=1)
    result = trainer.fit(updates=6)
    clean = variant.trainer(described(variant), START, windows_per_dispatch=1)
    assert_bit_identical(result.history["loss"], clean.fit(updates=6).history["loss"])
    assert result.updates == 6
    assert len(seen) == 2
    assert np.isfinite(seen[0])
    assert trainer.fit(updates=7).updates == 7


def test_fit_while_another_thread_reads() -> None:
    """The other way round: the reader is not disturbed, and afterwards `fit` trains."""
    reading = threading.Event()
    refused = threading.Event()

    def slow(epoch: int) -> Any:
        reading.set()
        assert refused.wait(60)
        data = regression(4)
        return iter([{name: array[index] for name, array in data.items()} for index in range(4)])

    trainer = STUB.trainer(described(STUB), START)
    other = threading.Thread(target=lambda: trainer.evaluate(slow))
    other.start()
    assert reading.wait(60)
    try:
        assert_raises(TrainerInUseError, lambda: trainer.fit(updates=1), "evaluate")
    finally:
        refused.set()
        other.join()
    assert trainer.fit(updates=1).updates == 1
