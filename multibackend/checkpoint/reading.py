"""Reading a checkpoint, so that nothing in it is believed before it is checked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

from multibackend.checkpoint.contents import Contents, parse_name
from multibackend.checkpoint.manifest import MANIFEST, SUFFIX, FileEntry, Manifest, decode
from multibackend.checkpoint.tensors import (
    ALIGNMENT,
    LENGTH_BYTES,
    Entry,
    TensorError,
    check_booleans,
    parse_file_header,
    parse_header,
    view,
)
from multibackend.core.json_text import MOST_BYTES
from multibackend.errors import CheckpointError

__all__ = ["read_checkpoint", "read_manifest", "read_tensor_file", "verify"]

_CHUNK = 4 * 2**20  # bytes read and digested at once; all that `verify` holds of a file


def read_checkpoint(directory: Path, *, most_bytes: int | None = None) -> Contents:
    """Read everything in a checkpoint, every byte of it verified.

    Args:
        directory: the checkpoint.
        most_bytes: refuse one that is larger; default the machine's memory.

    Returns:
        Its contents. The arrays of a group are views of one buffer of their own, aligned to 64
        bytes and writable; no file stays open.

    Raises:
        CheckpointError: it is not there, damaged, hostile or of a newer format. The message, and
            `file`, name the file.
    """
    tensors = {}
    with _opened(directory) as folder:
        manifest = folder.manifest()
        folder.check_total(manifest, most_bytes)
        for name, entry in manifest.files.items():
            tensors[name.removesuffix(SUFFIX)] = folder.tensors(name, entry)
    return Contents(tensors, manifest.state, manifest.update, manifest.micro_batches, manifest.extra)


def verify(directory: Path, *, most_bytes: int | None = None) -> Manifest:
    """Check every byte of a checkpoint, in little memory, and return its manifest.

    Raises:
        CheckpointError: as `read_checkpoint`, whose `most_bytes` this is too.
    """
    with _opened(directory) as folder:
        manifest = folder.manifest()
        folder.check_total(manifest, most_bytes)
        for name, entry in manifest.files.items():
            folder.scan(name, entry)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest alone, itself verified; the other files are not looked at.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    with _opened(directory) as folder:
        return folder.manifest()


def read_tensor_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read (tensors, metadata) of a safetensors file of any writer, whose header is checked as a checkpoint's is.

    Raises:
        OSError: it cannot be read.
        TensorError: it is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TensorError("is not a regular file")
        size = status.st_size
        if size > _memory():
            raise TensorError(f"has {size} bytes, more than this machine's memory")
        # before a pickle of any size is read: it would claim an absurd header
        start = _fill(np.empty(min(size, LENGTH_BYTES), np.uint8), descriptor)
        header = _fill(np.empty(_header_length(start, size), np.uint8), descriptor)
        places, metadata = parse_file_header(header.tobytes(), size - LENGTH_BYTES - header.size)
        data = _fill(_aligned(size - LENGTH_BYTES - header.size), descriptor)
        return {name: view(data, place, name) for name, place in places.items()}, metadata
    except MemoryError as error:
        raise TensorError(f"does not fit into memory: {error}") from error
    finally:
        os.close(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[_Folder]:
    path = Path(directory)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a ValueError: the path has a null character
        raise CheckpointError(f"there is no checkpoint at {path}: {error}", path=path) from error
    try:
        yield _Folder(path, descriptor)
    finally:
        os.close(descriptor)


class _Folder:
    """The open directory of a checkpoint, relative to which files are opened: none lies elsewhere."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def manifest(self) -> Manifest:
        """Read and check the manifest, and that it is of this very directory."""
        with self._file(MANIFEST) as (descriptor, size):
            if size > MOST_BYTES:
                raise TensorError(f"has {size} bytes, more than the {MOST_BYTES} that are read")
            text = _fill(np.empty(size, np.uint8), descriptor)
        manifest = decode(text.tobytes(), self._path)
        key = parse_name(self._path.name)
        if key is not None and key.place != (manifest.update, manifest.micro_batches):
            raise self._fault(
                MANIFEST,
                f"is of update {manifest.update}, micro-batch {manifest.micro_batches}, and the directory has "
                "another name: it is a stale or misplaced copy",
            )
        for name in sorted(os.listdir(self._descriptor)):
            if name.endswith(SUFFIX) and name not in manifest.files:
                problem = f"{name!r} is not listed in {MANIFEST}; it belongs to another checkpoint"
                raise CheckpointError(f"{self._path}: {problem}", path=self._path, file=name)
        return manifest

    def check_total(self, manifest: Manifest, most_bytes: int | None) -> None:
        # a sparse file can be larger than the disk it lies on, and would be read for hours
        limit = most_bytes or _memory()
        total = sum(entry.bytes for entry in manifest.files.values())
        if total <= limit:
            return
        problem = f"lists {total} bytes, more than the {limit} that are read here"
        if not most_bytes:
            problem += " (this machine's memory)"
        raise self._fault(MANIFEST, problem)

    def tensors(self, name: str, entry: FileEntry) -> dict[str, np.ndarray]:
        """Read the tensors of a file as views of one buffer."""
        with self._file(name) as (descriptor, size):
            _check_size(size, entry)
            digest = xxhash.xxh3_128()
            data = _fill(_aligned(size), descriptor, digest)
            _check_digest(digest.hexdigest(), entry)
            body = LENGTH_BYTES + _header_length(data[:LENGTH_BYTES], size)
            places = parse_header(data[LENGTH_BYTES:body].tobytes(), size - body)
            _check_count(len(places), entry)
            return {tensor: view(data[body:], place, tensor) for tensor, place in places.items()}

    def scan(self, name: str, entry: FileEntry) -> None:
        """Make all the checks of `tensors`, without keeping the tensors."""
        with self._file(name) as (descriptor, size):
            _check_size(size, entry)
            digest = xxhash.xxh3_128()
            # checked against the limits before it is allocated: the digest comes only at the end
            start = _fill(np.empty(min(size, LENGTH_BYTES), np.uint8), descriptor, digest)
            header = _fill(np.empty(_header_length(start, size), np.uint8), descriptor, digest)
            body_bytes = size - LENGTH_BYTES - header.size
            scratch = np.empty(_CHUNK, np.uint8)
            for position in range(0, body_bytes, _CHUNK):
                _fill(scratch[: body_bytes - position], descriptor, digest)
            _check_digest(digest.hexdigest(), entry)
            places = parse_header(header.tobytes(), body_bytes)
            _check_count(len(places), entry)
            for tensor, place in places.items():
                if place.word == "BOOL":
                    _scan_booleans(descriptor, LENGTH_BYTES + header.size, place, tensor)

    @contextmanager
    def _file(self, name: str) -> Iterator[tuple[int, int]]:
        """Open a regular file: (descriptor, size); what goes wrong meanwhile names the file."""
        try:
            # a link is not followed, and a pipe does not make us wait
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise TensorError("is not a regular file")
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise self._fault(name, "is missing") from error
        except OSError as error:
            problem = "is a symbolic link" if self._is_link(name) else f"cannot be read: {error}"
            raise self._fault(name, problem) from error
        except (TensorError, MemoryError) as problem:
            raise self._fault(name, str(problem)) from problem

    def _is_link(self, name: str) -> bool:
        try:
            return stat.S_ISLNK(os.lstat(name, dir_fd=self._descriptor).st_mode)
        except OSError:
            return False

    def _fault(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {name} {problem}", path=self._path, file=name)


def _memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _scan_booleans(descriptor: int, start: int, place: Entry, name: str) -> None:
    """Check the bytes of a BOOL tensor as `view` does, in little memory; `start` is where data begin."""
    for begin in range(place.begin, place.end, _CHUNK):
        data = os.pread(descriptor, min(_CHUNK, place.end - begin), start + begin)
        check_booleans(np.frombuffer(data, np.uint8), name)


def _check_size(size: int, entry: FileEntry) -> None:
    if size != entry.bytes:
        kind = "truncated" if size < entry.bytes else "too large"
        raise TensorError(f"is {kind}: it has {size} bytes, and {entry.bytes} were written")


def _check_digest(digest: str, entry: FileEntry) -> None:
    if digest != entry.xxh3_128:
        raise TensorError(f"is damaged: the digest of its bytes is {digest}, and {entry.xxh3_128} was written")


def _check_count(tensors: int, entry: FileEntry) -> None:
    if tensors != entry.tensors:
        raise TensorError(f"has {tensors} tensors, and {entry.tensors} were written")


def _header_length(start: np.ndarray, size: int) -> int:
    """Return the length that a file claims for its header, checked against the file's size."""
    if start.size < LENGTH_BYTES:
        raise TensorError(f"is too short: {size} bytes")
    length = int.from_bytes(start.tobytes(), "little")
    if length > min(MOST_BYTES, size - LENGTH_BYTES):
        raise TensorError(f"is no file of tensors: its header would take {length} bytes")
    return length


def _aligned(size: int) -> np.ndarray:
    """Allocate `size` bytes that begin at a multiple of 64, as the data of a file do."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def _fill(buffer: np.ndarray, descriptor: int, digest: xxhash.xxh3_128 | None = None) -> np.ndarray:
    """Read until `buffer` is full, and take the bytes into `digest` on the way."""
    done = 0
    while done < buffer.size:
        piece = buffer[done : done + _CHUNK]
        count = os.readv(descriptor, [piece.data])  # may be fewer than asked for
        if count == 0:
            raise TensorError(f"ended after {done} of {buffer.size} bytes")
        if digest is not None:
            digest.update(piece[:count].data)
        done += count
    return buffer
