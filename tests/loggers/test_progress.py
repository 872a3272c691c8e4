"""What a run shows: plain lines where nobody has a terminal, a bar that is given back where somebody has."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.variants import STUB

from multibackend import events
from multibackend.core.history import SkippedWindow, UpdateRecord
from multibackend.errors import NonFiniteError
from multibackend.loggers import progress
from multibackend.loggers.progress import ProgressBar
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.conformance.skipping import poisoned

COMMON = {"experiment": "a [very] long name of an experiment, longer than most of them", "backend": "stub"}
SHOW_CURSOR = "\x1b[?25h"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))


def update(number: int, examples: int = 20) -> events.UpdateFinished:
    record = UpdateRecord(number, 1 / number, 0.5, 0.01, float(examples), examples, 0)
    return events.UpdateFinished(**COMMON, record=record)


def play(bar: ProgressBar, clock: Clock) -> None:
    """Ten of 20 updates, two seconds each, an evaluation, a skipped window, and an early end."""
    bar(events.FitStarted(**COMMON, update=0, updates=20, device="cpu", execution="plain"))
    for number in range(1, 11):
        clock.now += 2.0
        bar(update(number))
    bar(events.EvaluationFinished(**COMMON, update=10, metrics={"loss": 0.25}, ema=True, scheduled=True))
    bar(events.WindowSkipped(**COMMON, skipped=SkippedWindow(11, 0, 5, "nonfinite")))
    bar(events.FitFinished(**COMMON, update=10, seconds=20.0, stopped="enough"))


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update, total, loss, rate, speed and the time left, every five seconds and at the end; whole lines of text."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    play(ProgressBar(Console(file=stream)), clock)
    name = f"{COMMON['experiment']} on stub"
    assert stream.getvalue().splitlines() == [
        f"{name} (cpu, plain), 20 updates",
        "update 1/20  loss 1.0000  lr 1.00e-02  10 examples/s  0:00:38 left",
        "update 4/20  loss 0.2500  lr 1.00e-02  10 examples/s  0:00:32 left",
        "update 7/20  loss 0.1429  lr 1.00e-02  10 examples/s  0:00:26 left",
        "update 10/20  loss 0.1000  lr 1.00e-02  10 examples/s  0:00:20 left",
        "update 10: held-out (average) loss 0.2500",
        "window of update 11 skipped: nonfinite",
        f"{name}: 10 updates in 20.0 s; stopped: enough",
    ]


def test_the_last_update_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast a run is, its first and its last update have a line."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    bar = ProgressBar(Console(file=stream))
    bar(events.FitStarted(**COMMON, update=4, updates=7, device="cpu", execution="plain"))
    for number in (5, 6, 7):
        clock.now += 0.01
        bar(update(number))
    bar(events.FitFinished(**COMMON, update=7, seconds=0.03))
    shown = [line.split()[1] for line in stream.getvalue().splitlines() if line.startswith("update")]
    assert shown == ["5/7", "7/7"]


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar with the same numbers, drawn again and again in place; the cursor comes back."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    play(ProgressBar(Console(file=stream, force_terminal=True, width=180)), clock)
    shown = stream.getvalue()
    assert shown.rfind(SHOW_CURSOR) > shown.find("\x1b[?25l") >= 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"10/20 +loss 0\.1000  lr 1\.00e-02  10 examples/s", text)
    assert "held-out (average) loss 0.2500" in text
    assert "10 updates in 20.0 s; stopped: enough" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_fails_gives_the_terminal_back(terminal: bool) -> None:
    """After an error the cursor is there again, and a second run of the same listener is shown too."""
    stream = io.StringIO()
    bar = ProgressBar(Console(file=stream, force_terminal=terminal, width=120))
    experiment = STUB.experiment(poisoned(regression(36), 13), gradient_accumulation_steps=4)
    trainer = STUB.trainer(experiment, START, callbacks=[bar])
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            trainer.fit(updates=3)
    shown = stream.getvalue()
    assert shown.count("experiment on stub: failed after update 1") == 2
    if terminal:
        assert shown.count("\x1b[?25l") == shown.count(SHOW_CURSOR) == 2
    else:
        assert "\x1b" not in shown
