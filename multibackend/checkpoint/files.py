"""A checkpoint on disk: a directory with a safetensors file per group of tensors and a manifest.

Written so that it is there whole or not at all, whenever the process or the machine stops: everything goes into a
temporary directory beside it, each file is brought to the device (fsync), then the directory, then the directory gets
its name (rename), and that name is brought to the device. Read so that nothing in it is believed before it is checked.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import xxhash

from multibackend.checkpoint.contents import Contents, group_problem, parse_name
from multibackend.checkpoint.disk import Disk, explain
from multibackend.checkpoint.jsontext import MOST_BYTES, JSONTextError
from multibackend.checkpoint.manifest import MANIFEST, SUFFIX, FileEntry, Manifest, decode, encode
from multibackend.checkpoint.tensors import LENGTH_BYTES, TensorError, chunks, parse_header, prepare, view
from multibackend.errors import CheckpointError

__all__ = ["SAVING", "TRASH", "read_checkpoint", "remove_checkpoint", "verify", "write_checkpoint"]

SAVING, TRASH = ".saving-", ".trash-"  # names of what is not a checkpoint yet, and of what is none any more
_CHUNK = 4 * 2**20
_ALIGNMENT = 64


def write_checkpoint(directory: Path, contents: Contents, disk: Disk | None = None) -> Path:
    """Write a checkpoint that is complete and on the device when this returns, and not there at all before.

    Args:
        directory: where; it must not exist yet. Missing directories above it are made.
        contents: what. The arrays must not change before this returns; it keeps none of them.
        disk: the file system, for tests.

    Returns:
        `directory`.

    Raises:
        CheckpointError: it could not be written (disk full, permission, ...) or `contents` is not what can be kept.
            Nothing is left behind, and whatever was there before is untouched.

    >>> contents = Contents({"parameters": {"weight": np.ones(3)}}, state={"seed": 0}, update=7)
    >>> path = write_checkpoint(Path("runs/example/update-00000007"), contents)      # doctest: +SKIP
    """
    directory, disk = Path(os.path.abspath(directory)), disk or Disk()
    _check_place(directory, contents)
    temporary = directory.with_name(f"{SAVING}{directory.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        disk.make_directories(directory.parent)
        disk.make_directory(temporary)
        try:
            _fill(temporary, contents, disk)
            disk.sync_directory(temporary)
            if os.path.lexists(directory):
                raise CheckpointError(f"{directory} exists already; checkpoints are never written over", path=directory)
            disk.rename(temporary, directory)
        except BaseException:
            _discard(temporary, disk)
            raise
        disk.sync_directory(directory.parent)
    except OSError as error:
        raise explain(error, "writing the checkpoint", directory) from error
    except (JSONTextError, TensorError) as problem:
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {problem}", path=directory) from problem
    return directory


def read_checkpoint(directory: Path, *, most_bytes: int | None = None) -> Contents:
    """Everything in a checkpoint, every byte of it verified.

    Args:
        directory: the checkpoint.
        most_bytes: refuse one that is larger; default the machine's memory.

    Returns:
        Its contents. The arrays of a group are views of one buffer of their own, aligned to 64 bytes and writable;
        no file stays open.

    Raises:
        CheckpointError: it is not there, damaged, hostile or of a newer format. The message, and `file`, name the file.
    """
    directory = Path(directory)
    with _opened(directory) as folder:
        manifest = _manifest(folder, directory)
        _check_total(manifest, directory, most_bytes)
        tensors = {
            name.removesuffix(SUFFIX): _tensors(folder, directory, name, entry)
            for name, entry in manifest.files.items()
        }
    return Contents(tensors, manifest.state, manifest.update, manifest.micro_batches, manifest.extra)


def verify(directory: Path, *, most_bytes: int | None = None) -> Manifest:
    """Check every byte of a checkpoint, in little memory, and return its manifest.

    Raises:
        CheckpointError: as `read_checkpoint`, whose `most_bytes` this is too.
    """
    directory = Path(directory)
    with _opened(directory) as folder:
        manifest = _manifest(folder, directory)
        _check_total(manifest, directory, most_bytes)
        for name, entry in manifest.files.items():
            _scan(folder, directory, name, entry)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, itself verified; the other files are not looked at.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    with _opened(Path(directory)) as folder:
        return _manifest(folder, Path(directory))


def remove_checkpoint(directory: Path, disk: Disk | None = None) -> None:
    """Remove a checkpoint: first its name, so that half a checkpoint is never taken for a whole one.

    Raises:
        CheckpointError: it could not be removed.
    """
    directory, disk = Path(directory), disk or Disk()
    trash = directory.with_name(f"{TRASH}{directory.name}-{secrets.token_hex(4)}")
    try:
        disk.rename(directory, trash)
        disk.sync_directory(directory.parent)  # else power loss could bring the name back without its files
        disk.remove_tree(trash)
    except OSError as error:
        raise explain(error, "removing the checkpoint", directory) from error


def _check_place(directory: Path, contents: Contents) -> None:
    named = parse_name(directory.name)
    if named is not None and named[1:] != (contents.update, contents.micro_batches):
        raise CheckpointError(
            f"{directory.name} is no name for update {contents.update}, micro-batch {contents.micro_batches}",
            path=directory,
        )
    if os.path.lexists(directory):
        raise CheckpointError(
            f"{directory} exists already; checkpoints are never written over. Choose another name, or remove it",
            path=directory,
        )


def _fill(folder: Path, contents: Contents, disk: Disk) -> None:
    """The files of a checkpoint, each on the device; the directory itself is not yet."""
    files: dict[str, FileEntry] = {}
    for group, arrays in contents.tensors.items():
        problem = group_problem(group)
        if problem:
            raise TensorError(problem)
        head, ordered = prepare(arrays)
        digest, size = xxhash.xxh3_128(), len(head) + sum(array.nbytes for array in ordered)
        disk.write_file(folder / (group + SUFFIX), _digested(chunks(head, ordered), digest))
        files[group + SUFFIX] = FileEntry(size, digest.hexdigest(), len(ordered))
    text = encode(contents, files)
    decode(text, folder)  # what could not be read is not written
    disk.write_file(folder / MANIFEST, [text])


def _digested(pieces: Iterator, digest: xxhash.xxh3_128) -> Iterator:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _discard(temporary: Path, disk: Disk) -> None:
    """Give back the space of a save that failed; if even that fails, the next start cleans up."""
    with suppress(OSError):
        disk.remove_tree(temporary)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """The directory's descriptor; every file is opened relative to it, so that none lies elsewhere."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"there is no checkpoint at {directory}: {error}", path=directory) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _file(folder: int, directory: Path, name: str) -> Iterator[tuple[int, int]]:
    """(descriptor, size) of a regular file in the directory itself; what goes wrong meanwhile names it."""
    try:
        # a link is not followed, and a pipe does not make us wait
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TensorError("is not a regular file")
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: {name} is missing", path=directory, file=name) from error
    except OSError as error:
        why = "is a symbolic link" if _is_link(folder, name) else f"cannot be read: {error}"
        raise CheckpointError(f"{directory}: {name} {why}", path=directory, file=name) from error
    except (TensorError, MemoryError) as problem:
        raise CheckpointError(f"{directory}: {name} {problem}", path=directory, file=name) from problem


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)
    except OSError:
        return False


def _manifest(folder: int, directory: Path) -> Manifest:
    with _file(folder, directory, MANIFEST) as (descriptor, size):
        if size > MOST_BYTES:
            raise TensorError(f"has {size} bytes, more than the {MOST_BYTES} that are read")
        text = _read_exactly(descriptor, np.empty(size, np.uint8), "")
    manifest = decode(text.tobytes(), directory)
    named = parse_name(directory.name)
    if named is not None and named[1:] != (manifest.update, manifest.micro_batches):
        raise CheckpointError(
            f"{directory}: {MANIFEST} is of update {manifest.update}, micro-batch {manifest.micro_batches}, and the "
            "directory has another name: it is a stale or misplaced copy",
            path=directory,
            file=MANIFEST,
        )
    listed = os.listdir(folder)
    for name in sorted(listed):
        if name.endswith(SUFFIX) and name not in manifest.files:
            raise CheckpointError(
                f"{directory}: {name!r} is not listed in {MANIFEST}; it belongs to another checkpoint",
                path=directory,
                file=name,
            )
    return manifest


def _check_total(manifest: Manifest, directory: Path, most_bytes: int | None) -> None:
    """A file can say that it is larger than the disk it lies on (a sparse one), and would be read for hours."""
    limit = most_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = sum(entry.bytes for entry in manifest.files.values())
    if total > limit:
        raise CheckpointError(
            f"{directory}: {MANIFEST} lists {total} bytes, more than the {limit} that are read here"
            + ("" if most_bytes else " (this machine's memory)"),
            path=directory,
            file=MANIFEST,
        )


def _tensors(folder: int, directory: Path, name: str, entry: FileEntry) -> dict[str, np.ndarray]:
    with _file(folder, directory, name) as (descriptor, size):
        _check_size(size, entry)
        data = _read_exactly(descriptor, _aligned(size), entry.xxh3_128)
        length = _header_length(data[:LENGTH_BYTES].tobytes(), size)
        body = LENGTH_BYTES + length
        entries = parse_header(data[LENGTH_BYTES:body].tobytes(), size - body)
        _check_count(len(entries), entry)
        return {tensor: view(data[body:], place, tensor) for tensor, place in entries.items()}


def _scan(folder: int, directory: Path, name: str, entry: FileEntry) -> None:
    """All the checks of `_tensors`, without keeping the tensors."""
    with _file(folder, directory, name) as (descriptor, size):
        _check_size(size, entry)
        digest, first = xxhash.xxh3_128(), np.empty(min(size, LENGTH_BYTES), np.uint8)
        digest.update(_read_exactly(descriptor, first, "").data)
        length = _header_length(first.tobytes(), size)
        header = _read_exactly(descriptor, np.empty(length, np.uint8), "")
        digest.update(header.data)
        left, scratch = size - LENGTH_BYTES - length, np.empty(_CHUNK, np.uint8)
        while left:
            piece = _read_exactly(descriptor, scratch[: min(left, _CHUNK)], "")
            digest.update(piece.data)
            left -= piece.size
        _check_digest(digest.hexdigest(), entry.xxh3_128)
        _check_count(len(parse_header(header.tobytes(), size - LENGTH_BYTES - length)), entry)


def _check_size(size: int, entry: FileEntry) -> None:
    if size != entry.bytes:
        kind = "truncated" if size < entry.bytes else "too large"
        raise TensorError(f"is {kind}: it has {size} bytes, and {entry.bytes} were written")


def _check_digest(found: str, expected: str) -> None:
    if found != expected:
        raise TensorError(f"is damaged: the digest of its bytes is {found}, and {expected} was written")


def _check_count(tensors: int, entry: FileEntry) -> None:
    if tensors != entry.tensors:
        raise TensorError(f"has {tensors} tensors, and {entry.tensors} were written")


def _header_length(first: bytes, size: int) -> int:
    if len(first) < LENGTH_BYTES:
        raise TensorError(f"is too short: {size} bytes")
    length = int.from_bytes(first, "little")
    if length > min(MOST_BYTES, size - LENGTH_BYTES):
        raise TensorError(f"is no file of tensors: its header would take {length} bytes")
    return length


def _aligned(size: int) -> np.ndarray:
    """`size` bytes that begin at a multiple of 64, as the data of a file do."""
    block = np.empty(size + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + size]


def _read_exactly(descriptor: int, into: np.ndarray, expected: str) -> np.ndarray:
    """Fill `into`, digest on the way and compare with `expected` unless that is empty."""
    digest, done = xxhash.xxh3_128(), 0
    while done < into.size:
        piece = into[done : done + _CHUNK]
        count = os.readv(descriptor, [piece.data])
        if count == 0:
            raise TensorError(f"ended after {done} of {into.size} bytes")
        if expected:
            digest.update(piece[:count].data)
        done += count
    if expected:
        _check_digest(digest.hexdigest(), expected)
    return into
