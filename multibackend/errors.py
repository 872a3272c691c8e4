"""Every error the library raises on purpose, one tree.

MultibackendError
├── ConfigurationError          (ValueError)      an argument is wrong; lists every problem found
│   └── ConfigurationTypeError  (TypeError)       the same, when every problem is a wrong type
├── BackendNotFoundError        (ValueError)      no backend is registered under that name
├── BackendNotInstalledError    (ImportError)     the backend is known, its framework is not installed
├── PackageNotInstalledError    (ImportError)     an extra of this library is not installed
├── CapabilityError                               the backend says that it cannot do this
├── DataError                   (ValueError)      the data do not fit the experiment
├── UserCodeError               (RuntimeError)    a user's own function raised: a model, a loss, a metric
├── ParameterMatchError         (ValueError)      parameters of two models cannot be paired
├── ExperimentFileError         (ValueError)      a file does not define a usable `experiment` function
├── CheckpointError                               a checkpoint cannot be written, or cannot be trusted
│   └── ResumeError             (ValueError)      the experiment does not fit the checkpoint
├── FileError                   (OSError)         a log, weights or another file cannot be written or read
├── GoldenFileError             (ValueError)      a golden file is not there, or is none
├── NonFiniteError              (ArithmeticError) a loss or a gradient is NaN or infinite
├── TrainerInUseError           (RuntimeError)    a call of the same trainer has not returned
├── OutOfMemoryError            (MemoryError)     the device has no memory left
└── MatchError                  (AssertionError)  two things that should match do not

BatchStatisticsWarning          (UserWarning)     small micro-batches and BatchNorm
CheckpointWarning               (UserWarning)     a checkpoint was passed over because it is damaged
OutputsWarning                  (UserWarning)     outputs that are probabilities where the loss takes logits
Interrupted                     (SystemExit)      a signal ended the run, which was saved
KeyboardInterrupted             (KeyboardInterrupt)  the same by Ctrl-C
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BackendNotFoundError",
    "BackendNotInstalledError",
    "BatchStatisticsWarning",
    "CapabilityError",
    "CheckpointError",
    "CheckpointWarning",
    "ConfigurationError",
    "ConfigurationTypeError",
    "DataError",
    "ExperimentFileError",
    "FileError",
    "GoldenFileError",
    "Interrupted",
    "KeyboardInterrupted",
    "LogWarning",
    "MatchError",
    "MultibackendError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputsWarning",
    "PackageNotInstalledError",
    "ParameterMatchError",
    "ResumeError",
    "TrainerInUseError",
    "UserCodeError",
]


class MultibackendError(Exception):
    """Root of every error that this library raises on purpose."""


class ConfigurationError(MultibackendError, ValueError):
    """One or more arguments are wrong. `problems` holds one sentence for each."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        plural = "" if len(self.problems) == 1 else "s"
        super().__init__(f"{subject}: {len(self.problems)} problem{plural}{lines}")


class ConfigurationTypeError(ConfigurationError, TypeError):
    """Like `ConfigurationError`, where every problem is an argument of the wrong type."""


class BackendNotFoundError(MultibackendError, ValueError):
    """No backend is registered under the name that was asked for."""


class BackendNotInstalledError(MultibackendError, ImportError):
    """The backend is registered, but a framework that it needs is not installed."""


class PackageNotInstalledError(MultibackendError, ImportError):
    """A package is needed that is not installed; the message has the command that installs it."""


class CapabilityError(MultibackendError):
    """The backend declares that it cannot do what was asked of it."""


class DataError(MultibackendError, ValueError):
    """The data do not fit the experiment: a field is missing, a label is out of range, ..."""


class ParameterMatchError(MultibackendError, ValueError):
    """Parameters of two models, or of a model and a mapping, cannot be paired."""


class ExperimentFileError(MultibackendError, ValueError):
    """A file or object does not define a usable `experiment` function."""


class CheckpointError(MultibackendError):
    """A checkpoint could not be written; or one is damaged, hostile or of a newer format.

    `path` is the checkpoint or run directory, `file` the name of the file in it that is at fault,
    if one is. What was saved before is untouched.
    """

    def __init__(self, message: str, *, path: object = None, file: str | None = None) -> None:
        self.path = None if path is None else str(path)
        self.file = file
        super().__init__(message)


class ResumeError(CheckpointError, ValueError):
    """An experiment does not fit its checkpoint. `differences` has a sentence for each difference."""

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        super().__init__(message)


class Interrupted(SystemExit):
    """A signal ended `fit` of a run with a directory, after a window, everything saved.

    Uncaught it ends the process with a shell's code, 143 for SIGTERM. Ctrl-C raises
    `KeyboardInterrupted`, a `KeyboardInterrupt` as well. `message` says how to go on.
    """

    # No `Exception`, so that no `except Exception` of a user's swallows it. SystemExit gives the
    # exit code and keeps the interpreter from printing a traceback.
    def __init__(self, message: str, code: int) -> None:
        self.message = message
        super().__init__(message)  # what a notebook shows
        self.code = code


class KeyboardInterrupted(Interrupted, KeyboardInterrupt):
    """Ctrl-C ended `fit` of a run with a directory, everything saved; exit code 130 where nobody catches it.

    >>> try:                                                                    # doctest: +SKIP
    ...     trainer.fit(epochs=100)
    ... except KeyboardInterrupt:
    ...     print(trainer)
    """


class FileError(MultibackendError, OSError):
    """A file that a run writes beside its checkpoints cannot be written or read: its log, weights, ...

    `path` is the file or its directory. The training is not at fault: where a run's log could not
    be written, the run was still saved.
    """

    def __init__(self, message: str, *, path: object = None) -> None:
        self.path = None if path is None else str(path)
        super().__init__(message)


class GoldenFileError(MultibackendError, ValueError):
    """A golden file is missing, or holds what `multibackend.golden.record` does not write."""


class NonFiniteError(MultibackendError, ArithmeticError):
    """A window's loss or gradient is NaN or infinite, and `on_nonfinite="raise"`.

    The training state is what it was before that window. `update` is the number (from 1) of the
    update that the window would have made, `terms` the names of the loss terms that are not finite
    ("loss" where there is one), `parameters` the canonical names whose gradient is not finite,
    `epoch` and `offset` the place of its first example in the data. Either of the two may be empty:
    a loss may be infinite though its gradient is finite, and the other way round.
    """

    def __init__(
        self,
        message: str,
        *,
        update: int,
        terms: Sequence[str] = (),
        parameters: Sequence[str] = (),
        epoch: int = 0,
        offset: int = 0,
    ) -> None:
        self.update = update
        self.terms = tuple(terms)
        self.parameters = tuple(parameters)
        self.epoch = epoch
        self.offset = offset
        super().__init__(message)


class TrainerInUseError(MultibackendError, RuntimeError):
    """A trainer was asked for something while another thread uses it, or to `fit` inside `fit`.

    Nothing was changed by what was refused.
    """


class OutOfMemoryError(MultibackendError, MemoryError):
    """The device has no memory left, and the run has ended, perhaps half-way through a window.

    `micro_batch_size` and `precision` are those it ran with; the message lists the ways out.
    """

    def __init__(self, message: str, *, micro_batch_size: int, precision: str) -> None:
        self.micro_batch_size = micro_batch_size
        self.precision = precision
        super().__init__(message)


class UserCodeError(MultibackendError, RuntimeError):
    """A user's own function raised while the library ran it: a builder, a model, a loss, a metric, a schedule.

    It is raised from the function's own error, which is its `__cause__`. `role` says which function
    it was, `layer` the path of the model's layer in which it happened ("" for the model itself),
    None where it was in none. What listeners and data raise is not wrapped: it passes on as it is,
    with a note that says whose it is, so that `except` finds a class of the user's own.

    >>> try:                                               # doctest: +SKIP
    ...     trainer.fit(updates=10)
    ... except UserCodeError as error:
    ...     print(error.role, error.layer, repr(error.__cause__))
    """

    def __init__(self, message: str, *, role: str, layer: str | None = None) -> None:
        self.role = role
        self.layer = layer
        super().__init__(message)


class MatchError(MultibackendError, AssertionError):
    """Two things that were asserted to match do not."""


class BatchStatisticsWarning(UserWarning):
    """A model takes batch statistics from small micro-batches; given at a run's first `fit`."""


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over because it is damaged, or an old one could not be removed."""


class OutputsWarning(UserWarning):
    """A model's outputs look like probabilities where the loss takes logits; given at a run's first `fit`."""


class LogWarning(UserWarning):
    """Lines of a run's log cannot be written for now, or were passed over because they are none."""
