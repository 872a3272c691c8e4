"""`run.json`: how a run was started, so that its directory is all that `resume` must be told."""

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
    """What was typed after `multibackend train`.

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
        fields = {
            "format": _FORMAT,
            "version": _VERSION,
            "file": os.fspath(self.file),
            # a second way to the file, for runs that are moved or mounted together with it
            "file_from_here": os.path.relpath(self.file, run_dir),
            "flags": list(self.flags),
            "options": dict(self.options),
        }
        temporary = run_dir / f".{RUN_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
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
            fields = json.loads(path.read_text(encoding="utf-8"))
            options = dict(fields["options"])
            flags = tuple(str(flag) for flag in fields["flags"])
            candidates = [Path(fields["file"]), run_dir / fields["file_from_here"]]
            known = fields["format"] == _FORMAT and fields["version"] == _VERSION
        except (OSError, ValueError, KeyError, TypeError) as error:  # other fields than ours too
            raise ExperimentFileError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        if not known:
            raise ExperimentFileError(f"{path} is of version {fields['version']!r}, this library reads {_VERSION}")
        if file is not None:
            candidates = [Path(file)]
        return cls(_existing(candidates, path), flags, options)


def _existing(candidates: Sequence[Path], path: Path) -> Path:
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    listed = " nor ".join(repr(os.fspath(candidate)) for candidate in candidates)
    raise ExperimentFileError(
        f"the experiment file of {path.parent} is gone: there is neither {listed}; tell where it is: "
        f"`multibackend resume {path.parent} --file FILE`"
    )
