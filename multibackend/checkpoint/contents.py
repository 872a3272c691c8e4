"""What a checkpoint holds, in memory, and the names that it may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CheckpointKey", "Contents", "checkpoint_name", "group_problem", "parse_name", "tensor_name_problem"]

_GROUP = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIRECTORY = re.compile(r"update-([0-9]{8,16})(?:-micro-([1-9][0-9]{0,8}))?(?:\.([1-9][0-9]{0,8}))?")
_LONGEST_NAME = 1024
MOST_UPDATES = 10**16 - 1  # of at most sixteen digits: what the pattern of a directory's name takes


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a run needs to go on.

    Attributes:
        tensors: arrays by group and name, in canonical layout: "parameters" and "model_state" by
            canonical name, "optimizer" as "SLOT/CANONICAL NAME" (e.g. "exp_avg/layers.0.weight"),
            "ema" by canonical name, "window" for the half-filled window. Groups that a run does not
            have are left out; others may be added (lower case letters, digits and underscores).
            Values are kept bit for bit, NaN and infinities too.
        state: plain JSON: objects with string keys, lists, strings, booleans, None, whole numbers
            of at most 128 bits and finite floats, which come back as the very same numbers. Tuples
            come back as lists.
        update: the number of updates made. The checkpoint's directory is named after it.
        micro_batches: how many micro-batches of the next window are done, 0 between windows.
        extra: further fields of the manifest, those of later versions too; written back
            as they are.
    """

    tensors: Mapping[str, Mapping[str, np.ndarray]]
    state: Mapping[str, Any]
    update: int
    micro_batches: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


class CheckpointKey(NamedTuple):
    """What a directory's name says; keys order the checkpoints of a run by age.

    The generation comes first: what a run saves after it went back is newer than all before.
    """

    generation: int
    update: int
    micro_batches: int

    @property
    def place(self) -> tuple[int, int]:
        """The point of the training that was saved, whatever the generation."""
        return self.update, self.micro_batches


def checkpoint_name(update: int, micro_batches: int = 0, generation: int = 0) -> str:
    """Return the directory's name in a run.

    >>> checkpoint_name(120), checkpoint_name(120, 2), checkpoint_name(70, generation=1)
    ('update-00000120', 'update-00000120-micro-2', 'update-00000070.1')

    A run that goes back to an earlier checkpoint, or saves the same place twice, starts a new
    generation, whose checkpoints are newer than all of the earlier one.
    """
    name = f"update-{update:08d}"
    if micro_batches:
        name += f"-micro-{micro_batches}"
    if generation:
        name += f".{generation}"
    return name


def parse_name(name: str) -> CheckpointKey | None:
    """Return what a directory's name says; None where it is no checkpoint's name."""
    match = _DIRECTORY.fullmatch(name)
    if match is None:
        return None
    update, micro_batches, generation = (int(group or 0) for group in match.groups())
    if checkpoint_name(update, micro_batches, generation) != name:
        return None  # more leading zeros than we write: two names would stand for one checkpoint
    return CheckpointKey(generation, update, micro_batches)


def group_problem(group: object) -> str | None:
    """Say what is wrong with a group's name, which becomes a file's; None if nothing is."""
    if not isinstance(group, str) or not _GROUP.fullmatch(group):
        return f"{group!r:.80} is no name for a group of tensors: a-z, then a-z, 0-9 and _, at most 64"
    return None


def tensor_name_problem(name: object) -> str | None:
    """Say what is wrong with a tensor's name; None if nothing is.

    Names never become paths here, but other tools may make files of them: one that could leave a
    directory is refused.
    """
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME:
        problem = f"it must be text of 1 to {_LONGEST_NAME} characters"
    elif not name.isprintable() or "\\" in name:
        problem = "backslashes and unprintable characters are not allowed"
    elif name == "__metadata__" or any(part in ("", ".", "..") for part in name.split("/")):
        problem = "it reads as a path (or as safetensors' own field)"
    else:
        return None
    return f"{name!r:.80} is no name for a tensor: {problem}"
