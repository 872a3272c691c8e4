"""`manifest.json`: what a checkpoint is, the digest of each of its files, and its own."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import xxhash

from multibackend.checkpoint.contents import MOST_UPDATES, Contents, group_problem
from multibackend.core.json_text import MOST_BYTES, JSONTextError, dump, load
from multibackend.errors import CheckpointError

__all__ = ["FORMAT", "MANIFEST", "SUFFIX", "VERSION", "FileEntry", "Manifest", "decode", "encode"]

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
FORMAT = "multibackend checkpoint"
VERSION = (1, 0)  # the major one changes where an old reader would misunderstand
_DIGEST = re.compile(r"[0-9a-f]{32}")
# The manifest's own digest, of a fixed length at the very end: it can be checked before anything is
# parsed, and covers every byte before it.
_TAIL = re.compile(rb',\n"digest": "xxh3-128:([0-9a-f]{32})"\n\}\n')
_TAIL_BYTES = 58
_FIELDS = ("format", "version", "update", "micro_batches", "written", "libraries", "files", "state")


@dataclass(frozen=True)
class FileEntry:
    """A file: its size, the digest of its bytes (xxh3-128, hexadecimal), its number of tensors."""

    bytes: int
    xxh3_128: str
    tensors: int


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's description of itself.

    Attributes:
        update, micro_batches, state, extra: as in `Contents`.
        files: by name, e.g. "parameters.safetensors".
        libraries: name and version of what wrote it.
        written: the writer's clock, for people; nothing depends on it.
        version: of the format, major and minor.
    """

    update: int
    micro_batches: int
    files: Mapping[str, FileEntry]
    state: Mapping[str, Any]
    libraries: Mapping[str, str] = field(default_factory=dict)
    written: str = ""
    version: tuple[int, int] = VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)


def encode(contents: Contents, files: Mapping[str, FileEntry]) -> bytes:
    """Write the bytes of the manifest: a line for each field, the digest of all of them in the last.

    Raises:
        JSONTextError: the state or an extra field is not plain JSON.
    """
    fields: dict[str, Any] = {
        "format": FORMAT,
        "version": list(VERSION),
        "update": contents.update,
        "micro_batches": contents.micro_batches,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "libraries": _libraries(),
        "files": {name: vars(entry) for name, entry in files.items()},
        "state": contents.state,
    }
    clash = sorted(contents.extra.keys() & {*fields, "digest"})
    if clash:
        raise JSONTextError(f"extra has {', '.join(clash)}, which are fields of the format")
    fields |= contents.extra
    lines = [f"{dump(name, 'extra')}: {dump(value, name)}" for name, value in fields.items()]
    body = ("{\n" + ",\n".join(lines)).encode("ascii")
    text = body + f',\n"digest": "xxh3-128:{xxhash.xxh3_128_hexdigest(body)}"\n}}\n'.encode("ascii")
    load(text)  # each field is within what is read; all together must be too
    return text


def decode(text: bytes, path: object) -> Manifest:
    """Read the manifest of those bytes.

    Raises:
        CheckpointError: they are damaged, of a newer format, or not a manifest; `path` is named.
    """
    tail = _TAIL.fullmatch(text[-_TAIL_BYTES:])
    if tail is None:
        raise _fault(path, "is damaged: it does not end with its digest")
    if len(text) > MOST_BYTES:
        raise _fault(path, "is too large")
    digest = xxhash.xxh3_128_hexdigest(memoryview(text)[:-_TAIL_BYTES])
    expected = tail[1].decode()
    if digest != expected:
        raise _fault(path, f"is damaged: its digest is {digest}, and it says {expected}")
    try:
        fields = load(text)
    except JSONTextError as problem:
        raise _fault(path, f"cannot be read: {problem}") from problem
    try:
        return _checked(fields, path)
    except ValueError as error:
        raise _fault(path, f"is no manifest: {error!s:.300}") from error


def _checked(fields: Any, path: object) -> Manifest:
    """Check every field: a right digest finds damage, but anybody can compute one."""
    _need(isinstance(fields, dict) and fields.get("format") == FORMAT, f"its format is not {FORMAT!r}")
    version = _version(fields.get("version"))
    if version[0] > VERSION[0]:  # before the fields, which may be others there
        raise _fault(
            path,
            f"is of format version {version[0]}.{version[1]}, and this library reads {VERSION[0]}.x; it was written by "
            f"{fields.get('libraries')!r:.200}; update multibackend to read it",
        )
    missing = [name for name in _FIELDS if name not in fields]
    _need(not missing, f"it lacks {', '.join(missing)}")
    update = fields["update"]
    micro_batches = fields["micro_batches"]
    libraries = fields["libraries"]
    _need(_natural(update) and update <= MOST_UPDATES, f"its update is {update!r:.40}")
    _need(_natural(micro_batches) and micro_batches < 10**9, f"its micro_batches is {micro_batches!r:.40}")
    _need(isinstance(fields["state"], dict), "its state is not an object")
    _need(isinstance(fields["written"], str), "its written is not text")
    strings = isinstance(libraries, dict) and all(isinstance(value, str) for value in libraries.values())
    _need(strings, "its libraries is not an object of strings")
    _need(isinstance(fields["files"], dict), "its files is not an object")
    return Manifest(
        update=update,
        micro_batches=micro_batches,
        files={name: _file(name, entry) for name, entry in fields["files"].items()},
        state=fields["state"],
        libraries=libraries,
        written=fields["written"],
        version=version,
        extra={name: value for name, value in fields.items() if name not in (*_FIELDS, "digest")},
    )


def _version(value: Any) -> tuple[int, int]:
    two = isinstance(value, list) and len(value) == 2
    _need(two and _natural(value[0]) and _natural(value[1]), f"its version is {value!r:.40}")
    return value[0], value[1]


def _file(name: str, entry: Any) -> FileEntry:
    _need(name.endswith(SUFFIX), f"{name!r:.80} is no name for a file of tensors")
    problem = group_problem(name.removesuffix(SUFFIX))
    _need(problem is None, f"the file {name!r:.80}: {problem}")
    _need(isinstance(entry, dict), f"its entry for {name} is not an object")
    size = entry.get("bytes")
    digest = entry.get("xxh3_128")
    tensors = entry.get("tensors")
    hexadecimal = isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
    _need(_natural(size) and size < 2**63, f"the size of {name} is {size!r:.40}")
    _need(hexadecimal, f"the digest of {name} is {digest!r:.40}")
    _need(_natural(tensors), f"the number of tensors of {name} is {tensors!r:.40}")
    return FileEntry(size, digest, tensors)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _natural(value: Any) -> bool:
    return type(value) is int and value >= 0  # by type: True is an int as well


def _fault(path: object, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {MANIFEST} {problem}", path=path, file=MANIFEST)


@cache
def _libraries() -> dict[str, str]:
    return {
        "multibackend": metadata.version("multibackend"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
