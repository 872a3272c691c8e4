"""What a run shows: plain lines where nobody has a terminal, a bar that is given back where somebody has."""

import io
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support.variants import STUB

import multibackend as mb
from multibackend import events
from multibackend.core.history import SkippedWindow, UpdateRecord
from multibackend.errors import ConfigurationError, NonFiniteError
from multibackend.loggers import progress, screens
from multibackend.loggers.progress import ProgressBar
from multibackend.loggers.screens import NotebookScreen, PlainScreen, TerminalScreen, open_screen
from multibackend.testing.conformance.problems import START, regression
from multibackend.testing.conformance.skipping import poisoned

COMMON = {"experiment": "a [very] long name of an experiment, longer than most of them", "backend": "stub"}
SHOW_CURSOR = "\x1b[?25h"
NAME = f"{COMMON['experiment']} on stub"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))


def record(number: int, examples: int = 20) -> UpdateRecord:
    return UpdateRecord(number, 1 / number, 0.5, 0.01, float(examples), examples, 0)


def made(first: int, last: int | None = None) -> events.UpdatesFinished:
    last = last or first
    return events.UpdatesFinished(**COMMON, first=record(first), last=record(last), examples=20 * (last - first + 1))


def play(bar: ProgressBar, clock: Clock) -> None:
    """Half a minute of compiling, then ten of 20 updates, two seconds each, an evaluation, and an early end."""
    bar(events.FitStarted(**COMMON, update=0, updates=20, device="cpu", execution="plain"))
    clock.now += 30.0
    for number in range(1, 11):
        bar(made(number))
        clock.now += 2.0
    bar(events.EvaluationFinished(**COMMON, update=10, metrics={"loss": 0.25}, ema=True, scheduled=True))
    bar(events.WindowSkipped(**COMMON, skipped=SkippedWindow(11, 0, 5, "nonfinite")))
    bar(events.FitFinished(**COMMON, update=10, seconds=50.0, stopped="enough", saved="runs/x"))


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update, total, loss, rate and, once there is something to measure, speed and the time left; one last line."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    play(ProgressBar(PlainScreen(stream)), clock)
    assert stream.getvalue().splitlines() == [
        f"{NAME} (cpu, plain), 20 updates",
        "update 1/20  loss 1.0000  lr 1.00e-02",  # nothing but compiling was before it: no estimate
        "update 6/20  loss 0.1667  lr 1.00e-02  10 examples/s  0:00:28 left",
        "update 10: held-out (average) loss 0.2500",
        "window of update 11 skipped: nonfinite",
        f"{NAME}: 10 updates, loss 1.0000 to 0.1000, 50.0 s, saved in runs/x; stopped: enough",
    ]


def test_plain_lines_come_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a day has some hundred and fifty lines and not seventeen thousand."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    bar = ProgressBar(PlainScreen(stream))
    bar(events.FitStarted(**COMMON, update=0, updates=86400, device="cpu", execution="plain"))
    seconds = []
    for second in range(1, 86401, 5):
        clock.now += 5.0
        before = len(stream.getvalue())
        bar(made(second))
        if len(stream.getvalue()) > before:
            seconds.append(clock.now - 1000)
    assert seconds[:6] == [5, 15, 35, 75, 155, 315]
    assert len(seconds) < 160


def test_many_skipped_windows_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five are told one by one, the others together."""
    stream = io.StringIO()
    bar = ProgressBar(PlainScreen(stream))
    bar(events.FitStarted(**COMMON, update=0, updates=9, device="cpu", execution="plain"))
    for number in range(1000):
        bar(events.WindowSkipped(**COMMON, skipped=SkippedWindow(1, 0, number, "nonfinite")))
    bar(events.FitFinished(**COMMON, update=0, seconds=1.0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 8
    assert lines[-2:] == [
        "995 more windows were skipped, 1000 in all",
        f"{NAME}: no update made, at update 0, 1.0 s",
    ]


def text_of(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def frames(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    """The lines that are drawn in a terminal of that width, and the last one that stays."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    play(ProgressBar(TerminalScreen(Console(file=stream, force_terminal=True, width=width, height=20))), clock)
    return [line for line in re.split(r"[\r\n]+", text_of(stream.getvalue())) if line]


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar with the same numbers, drawn again and again in place; the cursor comes back; one line stays."""
    stream, clock = io.StringIO(), Clock(monkeypatch)
    play(ProgressBar(TerminalScreen(Console(file=stream, force_terminal=True, width=180))), clock)
    shown = stream.getvalue()
    assert shown.rfind(SHOW_CURSOR) > shown.find("\x1b[?25l") >= 0
    text = text_of(shown)
    assert re.search(r"━+─+ +a \[very\].*10/20 +loss 0\.1000  lr 1\.00e-02  10 examples/s  0:00:20 left", text)
    assert "held-out (average) loss 0.2500" in text
    assert text.count("saved in runs/x; stopped: enough") == 1


@pytest.mark.parametrize("width", [20, 40, 50, 60, 80])
def test_narrow_terminals_stay_readable(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut: the counter is always whole, then comes the loss, then the time left; names go first."""
    drawn = [frame for frame in frames(monkeypatch, width) if "/20" in frame]
    assert drawn
    for frame in drawn:
        assert len(frame) < width
        assert "…" not in frame
        assert re.search(r"\b\d+/20\b", frame)
    assert drawn[-1].split("  ")[-1] in ("loss 0.1000", "0:00:20 left", "10/20  loss 0.1000")
    assert ("━" in drawn[-1]) == (width >= 50)
    assert ("left" in drawn[-1]) == (width >= 40)


def test_without_rich_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal too."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert isinstance(open_screen(), TerminalScreen)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(open_screen(), PlainScreen)
    monkeypatch.undo()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_screen(), PlainScreen)


def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One output that is drawn again, markup in names escaped; at the end it holds the one last line."""
    outputs: list[str] = []
    handle = SimpleNamespace(update=outputs.append)

    def display(output: str, display_id: bool) -> Any:
        assert display_id
        outputs.append(output)
        return handle

    module = SimpleNamespace(HTML=lambda text: text, display=display)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", module)  # type: ignore[arg-type]
    screen = open_screen()
    assert isinstance(screen, NotebookScreen)
    monkeypatch.setitem(COMMON, "experiment", "<b>x")
    play(ProgressBar(screen), Clock(monkeypatch))
    assert re.search(r'<progress value="0\.5000".*10/20  loss 0\.1000.*0:00:20 left', outputs[-2])
    assert "&lt;b&gt;x on stub: 10 updates, loss 1.0000 to 0.1000" in outputs[-1]
    assert "<progress" not in outputs[-1]
    monkeypatch.setattr(shell, "kernel", None)
    assert not isinstance(open_screen(), NotebookScreen), "a shell in a terminal is a terminal"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_fails_gives_the_terminal_back(terminal: bool) -> None:
    """After an error the cursor is there again, and a second run of the same listener is shown too."""
    stream = io.StringIO()
    screen = PlainScreen(stream)
    if terminal:
        screen = TerminalScreen(Console(file=stream, force_terminal=True, width=120))
    experiment = STUB.experiment(poisoned(regression(36), 13), gradient_accumulation_steps=4)
    trainer = STUB.trainer(experiment, START, callbacks=[ProgressBar(screen)])
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            trainer.fit(updates=3)
    shown = stream.getvalue()
    assert shown.count("experiment on stub: failed after update 1") == 2
    if terminal:
        assert shown.count("\x1b[?25l") == shown.count(SHOW_CURSOR) == 2
    else:
        assert "\x1b" not in shown


def test_fit_shows_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """On the standard error: a first line and a last one; nothing with progress=False; once beside one's own bar."""
    trainer = STUB.trainer(STUB.experiment(regression(36)), START)
    trainer.fit(updates=4)
    shown = capsys.readouterr()
    assert shown.out == ""
    first, last = shown.err.splitlines()
    assert first == "experiment on stub (cpu, plain), 4 updates"
    assert re.fullmatch(r"experiment on stub: 4 updates, loss \d\.\d{4} to \d\.\d{4}, 0\.\d s", last)
    trainer.fit(updates=8, progress=False)
    assert capsys.readouterr().err == ""
    own = STUB.trainer(STUB.experiment(regression(36)), START, callbacks=[ProgressBar()])
    own.fit(updates=4)
    assert len(capsys.readouterr().err.splitlines()) == 2
    own.fit(updates=8, progress=True)
    assert len(capsys.readouterr().err.splitlines()) == 4
    with pytest.raises(ConfigurationError, match="progress must be"):
        trainer.fit(updates=4, progress="yes")  # type: ignore[arg-type]


def test_nothing_to_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A call that ends where the run stands says so and which one goes on; the result says it as well."""
    trainer = STUB.trainer(STUB.experiment(regression(36)), START)
    trainer.fit(updates=8)
    capsys.readouterr()
    for limit, words in (
        ({"updates": 8}, "stands at update 8, and fit(updates=8) counts from the run's beginning; fit(updates=16)"),
        ({"updates": 5}, "stands at update 8, and fit(updates=5) counts from the run's beginning; fit(updates=13)"),
        ({"micro_batches": 4}, "has 8 micro-batches behind it, and fit(micro_batches=4)"),
    ):
        result = trainer.fit(**limit)  # type: ignore[arg-type]
        assert capsys.readouterr().err.splitlines()[1].startswith(f"nothing to do: the run already {words}")
        assert words in str(result)
        assert result.updates == 8
    trainer.fit(epochs=1)
    assert "fit(epochs=1) counts" in trainer.fit(epochs=1).remarks[0]


def schedules() -> list[tuple[Callable[[int], float], int | None]]:
    made_schedules = mb.schedules
    own = SimpleNamespace(length=70)
    return [
        (made_schedules.Cosine(peak=0.1, total=150), 150),
        (made_schedules.WarmupCosine(peak=0.1, warmup=5, total=40), 40),
        (made_schedules.Polynomial(peak=0.1, total=30), 30),
        (made_schedules.WarmupStableDecay(peak=0.1, warmup=5, decay=5, total=60), 60),
        (made_schedules.LinearWarmup(peak=0.1, warmup=20), 20),
        (made_schedules.Step(initial=0.1, boundaries={10: 0.1, 25: 0.1}), 25),
        (made_schedules.Constant(value=0.1), None),
        (made_schedules.Step(initial=0.1, boundaries={3: 0.1}), None),
        (Own(own.length), 70),
        (lambda update: 0.1, None),
    ]


class Own:
    """A user's schedule that tells its length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, update: int) -> float:
        return 0.1


@pytest.mark.parametrize(("schedule", "length"), schedules())
def test_a_schedule_longer_than_the_run_is_said(schedule: Callable[[int], float], length: int | None) -> None:
    """With its length, the run's end and the rate there; every schedule tells its length, a user's may."""
    experiment = STUB.experiment(regression(36), optimizer=mb.optimizers.SGD(learning_rate=schedule))
    result = STUB.trainer(experiment, START).fit(updates=10, progress=False)
    if length is None:
        assert result.remarks == ()
    else:
        rate = result.history[-1].learning_rate
        sentence = f"the schedule is {length} updates long, the run ends at 10: the rate ends at {rate:.1e}"
        assert result.remarks == (sentence,)


def test_watchers_hear_of_updates_in_bulk() -> None:
    """One event for what the device was asked for at once; a listener beside it hears each update."""
    heard: list[events.Event] = []
    each: list[events.Event] = []

    class Watch(events.Watcher):
        def __call__(self, event: events.Event) -> None:
            heard.append(event)

    experiment = STUB.experiment(poisoned(regression(36), 13), on_nonfinite="skip")
    STUB.trainer(experiment, START, callbacks=[Watch(), each.append]).fit(updates=10, progress=False)
    bulk = [event for event in heard if isinstance(event, events.UpdatesFinished)]
    single = [event.record for event in each if isinstance(event, events.UpdateFinished)]
    assert not any(isinstance(event, events.UpdateFinished) for event in heard)
    assert len(bulk) < len(single) == 10
    assert [bulk[0].first, bulk[-1].last] == [single[0], single[-1]]
    assert sum(event.examples for event in bulk) == sum(update.examples for update in single)
    skipped = [[event for event in events_ if isinstance(event, events.WindowSkipped)] for events_ in (heard, each)]
    assert skipped[0] == skipped[1] != []


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), ValueError("I/O operation on closed file")])
def test_a_run_outlives_the_window_that_shows_it(error: Exception) -> None:
    """A closed terminal or a full disk ends the showing, not the run."""

    class Broken(PlainScreen):
        lines = 0

        def print(self, line: str) -> None:
            self.lines += 1
            raise error

    screen = Broken()
    trainer = STUB.trainer(STUB.experiment(regression(36)), START, callbacks=[ProgressBar(screen)])
    assert trainer.fit(updates=4).updates == 4
    assert screen.lines == 1


def test_without_a_standard_error_a_run_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without a console."""
    monkeypatch.setattr(sys, "stderr", None)
    assert STUB.trainer(STUB.experiment(regression(36)), START).fit(updates=4).updates == 4


def test_screens_say_what_they_lack() -> None:
    """The base class names its own gaps."""
    with pytest.raises(NotImplementedError, match="Screen must show a line"):
        screens.Screen().print("x")
