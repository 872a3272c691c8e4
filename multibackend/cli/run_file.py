"""`run.json`: how a run was started on the command line, so that its directory is all that `resume` must be told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibackend.errors import ExperimentFileError
from multibackend.training.saving.interrupts import RUN_FILE

__all__ = ["RunFile"]

_FORMAT = "multibackend run"
_VERSION = 1


@dataclass(frozen=True)
class RunFile:
    """What `multibackend train` was given.

    Attributes:
        file: the experiment file, absolute.
        flags: of the file's own function, as they were typed.
        options: of the command, by name; those that were not given are left out.
    """

    file: Path
    flags: tuple[str, ...]
    options: Mapping[str, Any]

    def write(self, run_dir: Path) -> None:
        """Put it into the run's directory; it appears whole or not at all."""
        run_dir.mkdir(parents=True, exist_ok=True)
        told = {
            "format": _FORMAT,
            "version": _VERSION,
            "file": os.fspath(self.file),
            "file_from_here": os.path.relpath(self.file, run_dir),
            "flags": list(self.flags),
            "options": dict(self.options),
        }
        temporary = run_dir / f".{RUN_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        temporary.replace(run_dir / RUN_FILE)

    @classmethod
    def read(cls, run_dir: Path, file: str | None = None) -> RunFile:
        """Read it back; `file` in place of an experiment file that was moved.

        Raises:
            ExperimentFileError: there is none, it is damaged, or the experiment file is gone.
        """
        path = run_dir / RUN_FILE
        if not path.is_file():
            raise ExperimentFileError(
                f"{str(run_dir)!r} has no {RUN_FILE}, in which `multibackend train FILE --run-dir DIR` remembers a "
                f"run; go on with `multibackend train FILE --run-dir {run_dir} --resume must`"
            )
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            options, flags = dict(told["options"]), [str(flag) for flag in told["flags"]]
            known = [Path(told["file"]), run_dir / told["file_from_here"]]
            right = told["format"] == _FORMAT and told["version"] == _VERSION
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExperimentFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        if not right:
            raise ExperimentFileError(f"{path} is of version {told['version']!r}, this library reads {_VERSION}")
        return cls(_existing([Path(file)] if file is not None else known, path), tuple(flags), options)


def _existing(candidates: Sequence[Path], path: Path) -> Path:
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        listed = " nor ".join(repr(os.fspath(candidate)) for candidate in candidates)
        raise ExperimentFileError(
            f"the experiment file of {path.parent} is gone: there is neither {listed}; tell where it is: "
            f"`multibackend resume {path.parent} --file FILE`"
        )
    return found.resolve()
