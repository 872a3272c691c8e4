"""A case of the table: what is done, and what a user must be told; and what really happened."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bad_input.setting import Setting
from multibackend.cli.main import main
from multibackend.errors import MultibackendError

__all__ = ["ALL", "ANY", "BOTH", "SECONDS", "Case", "Outcome", "accepted", "command", "outcome_of"]

ANY = ("any",)  # nothing is run on a backend, so once is enough
BOTH = ("torch", "jax")
ALL = ("torch", "jax", "stub")

SECONDS = 30.0  # more is a hang; the slowest case takes about 2
BYTES = 4 * 2**30  # besides what the process has; what asks for more asks for too much


@dataclass(frozen=True)
class Case:
    """What is done with a `Setting`, and what it must end in.

    Attributes:
        name: unique in the table.
        run: what the user does.
        error: the type of the error; None where the input is sensible after all.
        words: what the message must mention: the cause, and the way out. Case does not matter.
        backends: where it is run.
        gives: for a sensible input, whether what `run` returned is right.
        own: the error is the user's own class, which passes on as it is.
    """

    name: str
    run: Callable[[Setting], Any]
    error: type[BaseException] | None
    words: tuple[str, ...] = ()
    backends: tuple[str, ...] = ANY
    gives: Callable[[Any], bool] | None = None
    own: bool = False


def accepted(
    name: str, run: Callable[[Setting], Any], gives: Callable[[Any], bool], backends: tuple[str, ...] = BOTH
) -> Case:
    """Make a case of an input that looks wrong and is sensible."""
    return Case(name, run, None, (), backends, gives)


class CommandError(Exception):
    """A command ended with code 2 and said why: what a mistake on the command line must end in."""


def command(name: str, arguments: Callable[[Setting], list[str]], *words: str, backends: tuple[str, ...] = ANY) -> Case:
    """Make a case of a command that must end with code 2 and a message, and without a traceback."""

    def run(setting: Setting) -> None:
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(arguments(setting))
            except SystemExit as end:  # argparse's, and the parser's of the file's own flags
                code = end.code
        if code == 2:
            raise CommandError(told.getvalue())

    return Case(f"cli: {name}", run, CommandError, words, backends)


@dataclass(frozen=True)
class Outcome:
    """What happened to a case.

    `verdict` is "told" (the right type, every word), "type" (an error of the library's of another
    type), "words" (a word is missing), "raw" (an error that is none of the library's), "silent" (no
    error), "hang", or "right" for a sensible input that gave what it must.
    """

    verdict: str
    kind: str
    text: str
    seconds: float


class _TookTooLong(BaseException):
    """Not an `Exception`, so that no `except` on the way swallows it."""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Let a hang be an exception, and so much memory a MemoryError, instead of the end of the process."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _data_bytes() -> int:
    """What the process has now; other tests may have left much behind in it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def outcome_of(case: Case, backend: str, directory: Path) -> Outcome:
    """Run a case on a backend and judge how it ended."""
    started = time.perf_counter()
    setting = Setting(backend, directory)
    try:
        # a warning is no refusal, and must not become one here
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = case.run(setting)
    except _TookTooLong:
        return Outcome("hang", "hang", f"longer than {SECONDS} s", time.perf_counter() - started)
    except BaseException as error:
        return Outcome(*_judge(case, error), time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if case.error is not None:
        return Outcome("silent", "none", f"no error; returned {value!r:.200}", seconds)
    is_right = case.gives is None or case.gives(value)
    return Outcome("right" if is_right else "silent", "none", f"returned {value!r:.200}", seconds)


def _judge(case: Case, error: BaseException) -> tuple[str, str, str]:
    kind = type(error).__name__
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    if not isinstance(error, MultibackendError | CommandError) and not case.own:
        return "raw", kind, text
    if case.error is None or not isinstance(error, case.error):
        return ("raw" if case.own and not isinstance(error, MultibackendError) else "type"), kind, text
    missing = [word for word in case.words if word.lower() not in text.lower()]
    if missing:
        return "words", kind, f"lacks {missing}: {text}"
    return "told", kind, text
