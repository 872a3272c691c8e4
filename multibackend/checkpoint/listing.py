"""The checkpoints of a run's directory: listed by their names, and the newest valid one found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multibackend.checkpoint.contents import parse_name
from multibackend.checkpoint.disk import explain
from multibackend.checkpoint.reading import verify
from multibackend.errors import CheckpointError, CheckpointWarning

__all__ = ["CHECKPOINTS", "list_checkpoints", "newest_checkpoint", "newest_valid"]

CHECKPOINTS = "checkpoints"


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first, by name alone: nothing is verified."""
    folder = Path(run_dir) / CHECKPOINTS
    names = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                key = parse_name(entry.name)
                # a link is no checkpoint: what it leads to may be changed or removed by others
                if key is not None and entry.is_dir(follow_symlinks=False):
                    names[key] = entry.name
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # a ValueError: the path has a null character
        raise explain(error, "listing the checkpoints in", folder) from error
    # by key, since the alphabet puts update 10^8 before update 99999999
    return [folder / names[key] for key in sorted(names)]


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """Find the newest checkpoint of a run of which every byte is right; None if there is none.

    Damaged ones, and those of a newer format than this library reads, are passed over, each with a
    `CheckpointWarning` that names the file and the reason. No lock is taken.
    """
    return newest_valid(list_checkpoints(run_dir), lambda name: None)


def newest_valid(paths: list[Path], note_damaged: Callable[[str], Any]) -> Path | None:
    """Verify `paths` (oldest first) from the newest on, and return the first that is whole.

    The names of the damaged ones go to `note_damaged`.
    """
    for path in reversed(paths):
        try:
            verify(path)
        except CheckpointError as error:
            note_damaged(path.name)
            # stacklevel: the caller of `newest_checkpoint`, or of the store's `newest`
            warnings.warn(f"passed over a checkpoint: {error}", CheckpointWarning, stacklevel=3)
        else:
            return path
    return None
