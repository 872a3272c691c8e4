"""Writing a checkpoint: a directory with a safetensors file per group of tensors and a manifest.

It is there whole or not at all, whenever the process or the machine stops: everything goes into a
temporary directory beside it, each file is brought to the device (fsync), then the directory, then
the directory gets its name (rename), and that name is brought to the device.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import xxhash

from multibackend.checkpoint.contents import Contents, group_problem, parse_name
from multibackend.checkpoint.disk import Disk, explain
from multibackend.checkpoint.manifest import MANIFEST, SUFFIX, FileEntry, decode, encode
from multibackend.checkpoint.tensors import TensorError, chunks, prepare
from multibackend.core.json_text import JSONTextError
from multibackend.errors import CheckpointError

__all__ = ["SAVING", "TRASH", "remove_checkpoint", "write_checkpoint"]

SAVING = ".saving-"  # begins the name of what is not a checkpoint yet,
TRASH = ".trash-"  # and of what is none any more


def write_checkpoint(directory: Path, contents: Contents, disk: Disk | None = None) -> Path:
    """Write a checkpoint that is whole and on the device when this returns, and not there before.

    Args:
        directory: where; it must not exist yet. Missing directories above it are made.
        contents: what. The arrays must not change before this returns; it keeps none of them.
        disk: the file system, for tests.

    Returns:
        `directory`.

    Raises:
        CheckpointError: it could not be written (disk full, permission, ...) or `contents` is not
            what can be kept. Nothing is left behind, and whatever was there before is untouched.

    >>> weights = {"parameters": {"weight": np.ones(3)}}                            # doctest: +SKIP
    >>> contents = Contents(weights, state={"seed": 0}, update=7)                   # doctest: +SKIP
    >>> path = write_checkpoint(Path("runs/example/update-00000007"), contents)      # doctest: +SKIP
    """
    directory = Path(os.path.abspath(directory))
    _check_place(directory, contents)
    try:
        _write(directory, contents, disk or Disk())
    except OSError as error:
        raise explain(error, "writing the checkpoint", directory) from error
    except (JSONTextError, TensorError) as problem:
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {problem}", path=directory) from problem
    return directory


def remove_checkpoint(directory: Path, disk: Disk | None = None) -> None:
    """Remove a checkpoint: first its name, so that half of one is never taken for a whole.

    Raises:
        CheckpointError: it could not be removed.
    """
    directory = Path(directory)
    disk = disk or Disk()
    trash = directory.with_name(f"{TRASH}{directory.name}-{secrets.token_hex(4)}")
    try:
        disk.rename(directory, trash)
        disk.sync_directory(directory.parent)  # else its name could come back without its files
        disk.remove_tree(trash)
    except OSError as error:
        raise explain(error, "removing the checkpoint", directory) from error


def _check_place(directory: Path, contents: Contents) -> None:
    key = parse_name(directory.name)
    if key is not None and key.place != (contents.update, contents.micro_batches):
        raise CheckpointError(
            f"{directory.name} is no name for update {contents.update}, micro-batch {contents.micro_batches}",
            path=directory,
        )
    # lexists: a dangling link has the name too, and a rename would replace it
    if os.path.lexists(directory):
        raise CheckpointError(
            f"{directory} exists already; checkpoints are never written over. Choose another name, or remove it",
            path=directory,
        )


def _write(directory: Path, contents: Contents, disk: Disk) -> None:
    """Fill a temporary directory and give it its name, in the order that the module promises."""
    # Beside the checkpoint, since a rename is one step only within a file system. The random number
    # is for a reused process number, which must not meet what a killed save has left.
    temporary = directory.with_name(f"{SAVING}{directory.name}-{os.getpid()}-{secrets.token_hex(4)}")
    disk.make_directories(directory.parent)
    disk.make_directory(temporary)
    try:
        _fill(temporary, contents, disk)
        disk.sync_directory(temporary)
        # again, after what may have been minutes: a rename would take an empty directory's place
        if os.path.lexists(directory):
            raise CheckpointError(f"{directory} exists already; checkpoints are never written over", path=directory)
        disk.rename(temporary, directory)
    except BaseException:
        with suppress(OSError):  # if even that fails, the next start cleans up
            disk.remove_tree(temporary)
        raise
    # the save counts once this is done: until then, power loss could take the name away
    disk.sync_directory(directory.parent)


def _fill(folder: Path, contents: Contents, disk: Disk) -> None:
    """Write the files of a checkpoint, each to the device, but not yet their names."""
    entries: dict[str, FileEntry] = {}
    for group, arrays in contents.tensors.items():
        problem = group_problem(group)
        if problem:
            raise TensorError(problem)
        header, ordered = prepare(arrays)
        size = len(header) + sum(array.nbytes for array in ordered)
        digest = xxhash.xxh3_128()
        disk.write_file(folder / (group + SUFFIX), _digested(chunks(header, ordered), digest))
        entries[group + SUFFIX] = FileEntry(size, digest.hexdigest(), len(ordered))
    text = encode(contents, entries)
    decode(text, folder)  # what could not be read is not written
    disk.write_file(folder / MANIFEST, [text])


def _digested(pieces: Iterator, digest: xxhash.xxh3_128) -> Iterator:
    # as they are written, so that no second pass over the arrays is needed
    for piece in pieces:
        digest.update(piece)
        yield piece
