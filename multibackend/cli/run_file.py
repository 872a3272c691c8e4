"""`run.json`: how a run was started, so that its directory is all that `resume` must be told.

It names the experiment file, which is code, and a run's directory may come from anywhere: what is
named is run only where it lies outside the directory and is what it was when the run began.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibackend.cli.experiment_file import digest_of
from multibackend.core.files import cause_of, replace_file
from multibackend.core.json_text import JSONTextError, read_file
from multibackend.errors import ExperimentFileError
from multibackend.training.saving.interrupts import RUN_FILE

__all__ = ["RunFile"]

_FORMAT = "multibackend run"
_VERSION = 1


@dataclass(frozen=True)
class RunFile:
    """What was typed after `multibackend train`.

    Attributes:
        file: the experiment file, absolute.
        digest: the SHA-256 of its bytes, hexadecimal; "" where none was written.
        flags: of the file's own function, as they were typed.
        options: of the command, by name; those that were not given are left out.
    """

    file: Path
    digest: str
    flags: tuple[str, ...]
    options: Mapping[str, Any]

    def write(self, run_dir: Path) -> None:
        """Put it into the run's directory; it appears whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        fields = {
            "format": _FORMAT,
            "version": _VERSION,
            "file": os.fspath(self.file),
            # a second way to the file, for runs that are moved or mounted together with it
            "file_from_here": os.path.relpath(self.file, run_dir),
            "digest": self.digest,
            "flags": list(self.flags),
            "options": dict(self.options),
        }
        replace_file(run_dir / RUN_FILE, [(json.dumps(fields, indent=1) + "\n").encode("ascii")])

    @classmethod
    def read(cls, run_dir: Path, file: str | None = None, *, trust: bool = False) -> RunFile:
        """Read it back.

        Args:
            run_dir: of the run.
            file: typed by the user, in place of the experiment file that is named.
            trust: run what is named, wherever it lies and whatever is in it now.

        Raises:
            ExperimentFileError: there is none, it is damaged, the experiment file is gone, lies in
                the directory or has changed.
        """
        path = run_dir / RUN_FILE
        try:
            fields = read_file(path)
        except FileNotFoundError as error:
            raise ExperimentFileError(
                f"{str(run_dir)!r} has no {RUN_FILE}, in which `multibackend train FILE --run-dir DIR` remembers a "
                f"run; go on with `multibackend train FILE --run-dir {run_dir} --resume must`"
            ) from error
        except JSONTextError as error:
            raise ExperimentFileError(f"{path} is damaged: {error}") from error
        except (OSError, ValueError) as error:  # a ValueError: the path has a null character
            raise ExperimentFileError(f"{path} cannot be read: {cause_of(error)}") from error
        try:
            run, candidates = _read(fields, run_dir)
        except (ValueError, KeyError, TypeError) as error:  # other fields than ours
            raise ExperimentFileError(f"{path} is no run file: {type(error).__name__}: {error}") from error
        if file is not None:
            return cls(_existing([Path(file)], path), run.digest, run.flags, run.options)
        named = _existing(candidates, path)
        if not trust:
            _check_trust(named, run.digest, run_dir)
        return cls(named.resolve(), run.digest, run.flags, run.options)


def _read(fields: Any, run_dir: Path) -> tuple[RunFile, list[Path]]:
    """Return what a run file says, and where the experiment file may be."""
    if (fields["format"], fields["version"]) != (_FORMAT, _VERSION):
        raise ValueError(f"it is of version {fields['version']!r:.40}, this library reads {_VERSION}")
    candidates = [Path(fields["file"]), run_dir / fields["file_from_here"]]
    flags = tuple(str(flag) for flag in fields["flags"])
    options = dict(fields["options"])
    for name, value in options.items():
        if not isinstance(value, str | int | float):
            raise TypeError(f"the option {name!r:.40} is {value!r:.40}")
    return RunFile(candidates[0], str(fields.get("digest", "")), flags, options), candidates


def _existing(candidates: Sequence[Path], path: Path) -> Path:
    for candidate in candidates:
        if _is_file(candidate):
            return Path(os.path.abspath(candidate))
    listed = " nor ".join(repr(os.fspath(candidate)) for candidate in candidates)
    raise ExperimentFileError(
        f"the experiment file of {path.parent} is gone: there is neither {listed}; tell where it is: "
        f"`multibackend resume {path.parent} --file FILE`"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # whatever was written in place of a path
        return False


def _check_trust(file: Path, digest: str, run_dir: Path) -> None:
    """Raise `ExperimentFileError` unless a file that a run file names may be run unasked."""
    directory = run_dir.resolve()
    problem = None
    # as it is named and as it is found: a link may lead in or out
    if any(place.is_relative_to(directory) for place in (file, file.resolve(), _under_real_parent(file))):
        problem = "lies in the run's own directory, which may come from anywhere"
    elif not digest:
        problem = "may have changed since the run began: its digest was not kept"
    elif digest_of(file) != digest:
        problem = f"has changed since the run began: its SHA-256 was {digest[:16]}, and is {digest_of(file)[:16]}"
    if problem is None:
        return
    here = shlex.quote(os.fspath(run_dir))
    raise ExperimentFileError(
        f"{run_dir} names {file}, which would be run, for an experiment file is code; but it {problem}. Look into it; "
        f"if it is what you want to run:\n  multibackend resume {here} --trust"
    )


def _under_real_parent(file: Path) -> Path:
    return file.parent.resolve() / file.name
