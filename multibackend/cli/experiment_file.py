"""Experiment files: Python files whose function `experiment(...)` has keyword arguments for flags.

    def experiment(*, learning_rate: float = 1e-3, width: int = 64) -> mb.Experiment: ...

Two more names are read where the file defines them: `UPDATES`, the number of updates that a run
makes unless told otherwise, and `after(trainer)`, which `multibackend train` calls at its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from multibackend.cli.early import check_file
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

        experiment = tyro.cli(self.function, args=list(arguments), prog=self.path.name, description=None)
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
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise ExperimentFileError(f"{path} defines no function experiment(...) that returns a multibackend.Experiment")
    updates = int(getattr(module, "UPDATES", _DEFAULT_UPDATES))
    return ExperimentFile(path, digest, function, updates, after=getattr(module, "after", None))


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
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
