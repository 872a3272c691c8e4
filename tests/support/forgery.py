"""Checkpoints as an attacker would make them: any bytes at all, with digests that are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

DATA = bytes(range(48))


def header(**changes: Any) -> dict[str, Any]:
    """Of a file with two tensors over `DATA`, with `changes` to the first one."""
    first = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32], **changes}
    return {"a": first, "b": {"dtype": "I64", "shape": [2], "data_offsets": [32, 48]}}


def tensor_file(head: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file with that header (bytes, or an object for JSON), and that length before it."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def manifest(files: Mapping[str, bytes], /, **changes: Any) -> dict[str, Any]:
    """A manifest of those files that nothing is wrong with, but for `changes`; `...` drops a field."""
    entries = {
        name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data), "tensors": 2}
        for name, data in files.items()
    }
    fields = {
        "format": "multibackend checkpoint",
        "version": [1, 0],
        "update": 3,
        "micro_batches": 0,
        "written": "",
        "libraries": {},
        "files": entries,
        "state": {},
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def sealed(body: bytes) -> bytes:
    """A manifest with that text before its digest, which is right."""
    return body + f',\n"digest": "xxh3-128:{xxhash.xxh3_128_hexdigest(body)}"\n}}\n'.encode()


def seal(fields: Any) -> bytes:
    """The manifest with those fields."""
    return sealed(json.dumps(fields).encode()[:-1])


def forge(directory: Path, files: Mapping[str, bytes], text: bytes | None = None) -> Path:
    """A checkpoint of those files; the manifest fits them unless it is given."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    (directory / "manifest.json").write_bytes(seal(manifest(files)) if text is None else text)
    return directory
