"""Experiment files: Python files whose function `experiment(...)` has keyword arguments for flags.

    def experiment(*, learning_rate: float = 1e-3, width: int = 64) -> mb.Experiment: ...

A file may also hold the experiment itself, `experiment = mb.Experiment(...)`; it then has no flags, and what it trains
of its own accord belongs under `if __name__ == "__main__":`, because commands run the file.

Two more names are read where the file defines them: `UPDATES`, the number of updates that a run
makes unless told otherwise, and `after(trainer)`, which `multibackend train` calls at its end.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from multibackend.cli.early import check_file
from multibackend.core.extras import told_missing
from multibackend.core.user_code import user_code
from multibackend.core.validation import is_integer, shown
from multibackend.errors import ExperimentFileError
from multibackend.experiment import Experiment
from multibackend.training.trainer import Trainer

__all__ = ["ExperimentFile", "digest_of", "load_experiment_file"]

_DEFAULT_UPDATES = 100


@dataclass(frozen=True)
class ExperimentFile:
    """What an experiment file defines, and `digest_of` the file that defined it."""

    path: Path
    digest: str
    function: Callable[..., Any]
    updates: int
    after: Callable[[Trainer], None] | None

    @property
    def flags(self) -> frozenset[str]:
        """The names of the function's keyword arguments."""
        return frozenset(inspect.signature(self.function).parameters)

    def build(self, arguments: Sequence[str]) -> Experiment:
        """Call the function with arguments parsed from flags such as `--learning-rate 1e-3`."""
        import tyro  # noqa: PLC0415 - only where flags are parsed

        def build(*args: Any, **kwargs: Any) -> Any:
            with user_code(f"{self.path}: experiment()"), told_missing(self.path):
                return self.function(*args, **kwargs)

        # with its own signature and docstring, which decide the flags
        told = functools.wraps(self.function)(build)
        experiment = tyro.cli(told, args=list(arguments), prog=self.path.name, description=None)
        if not isinstance(experiment, Experiment):
            kind = type(experiment).__name__
            raise ExperimentFileError(f"{self.path}: experiment() must return a multibackend.Experiment, got {kind}")
        return experiment

    def print_flags(self) -> None:
        """Print the help of the function's flags, without a usage of their own: the command's stands above it."""
        help_text = io.StringIO()
        with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
            self.build(["--help"])
        # paragraphs: the usage, what the function says of itself, the flags
        _, _, flags = help_text.getvalue().partition("\n\n")
        print(f"\n{self.path} is run with flags of its own:\n{flags.rstrip()}")


def load_experiment_file(path: str | Path) -> ExperimentFile:
    """Run an experiment file and find its function; raises `ExperimentFileError`."""
    path = Path(path)
    check_file(path)
    digest = digest_of(path)  # before it runs, which may take as long as it takes to edit it
    module = _run(path)
    function = _function_of(path, module)
    updates = getattr(module, "UPDATES", _DEFAULT_UPDATES)
    if not is_integer(updates) or updates < 0:
        raise ExperimentFileError(f"{path}: UPDATES must be an integer >= 0, got {shown(updates)}")
    after: Any = getattr(module, "after", None)
    if not (after is None or callable(after)):
        raise ExperimentFileError(f"{path}: after must be a function of the trainer, got {shown(after)}")
    return ExperimentFile(path, digest, function, int(updates), cast("Callable[[Trainer], None] | None", after))


def _function_of(path: Path, module: ModuleType) -> Callable[..., Any]:
    """Return the file's function, or one that returns the experiment that the file holds."""
    value = getattr(module, "experiment", None)
    if callable(value):
        return value
    if isinstance(value, Experiment):

        def experiment() -> Experiment:
            return value

        return experiment
    named = [name for name, other in vars(module).items() if isinstance(other, Experiment)]
    slip = f"; it has an Experiment called {named[0]!r}: call it experiment" if named else ""
    raise ExperimentFileError(
        f"{path} defines no function experiment(...) that returns a multibackend.Experiment, nor a variable "
        f"experiment that is one{slip}"
    )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal; raises `ExperimentFileError`."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ExperimentFileError(f"{path} cannot be read: {error}") from error


def _run(path: Path) -> ModuleType:
    # a prefix, so that a file named as a library, say torch.py, is not taken for it
    name = f"multibackend_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentFileError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and pickles in the file find their module
    sys.path.insert(0, str(path.resolve().parent))  # so that it may import its neighbours
    try:
        with user_code(str(path)), told_missing(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
