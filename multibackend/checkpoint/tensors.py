"""The safetensors layout: 8 bytes with the header's length, a JSON header, the tensors' bytes.

Written so that any safetensors reader can load it, and so that memory mapped files can be used in
place: the data begin at a multiple of 64 bytes, tensors whose size is a multiple of 64 come first,
the others by the size of their elements. Every claim of a header is checked before it is believed.

numpy has no bfloat16. Arrays of a package that adds it (ml_dtypes, which JAX brings) are written as
BF16, bit for bit; what is read as BF16 becomes float32, which holds each of its values exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend.checkpoint.contents import tensor_name_problem
from multibackend.core.json_text import JSONTextError, load

__all__ = [
    "DTYPES",
    "Entry",
    "TensorError",
    "check_booleans",
    "chunks",
    "parse_file_header",
    "parse_header",
    "prepare",
    "view",
]

# Safetensors' word for each type that is kept, and numpy's: little-endian, as in the file.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_WORDS = {dtype: word for word, dtype in DTYPES.items()}
BFLOAT16 = "BF16"
_BFLOAT16_BITS = np.dtype("<u2")
ALIGNMENT = 64
LENGTH_BYTES = 8
_MOST_DIMENSIONS = 32
_LARGEST_EXTENT = 2**59  # elements of 8 bytes, in less than the 2^63 bytes that numpy can count
# Written and hashed at once. Between two pieces the writer needs the interpreter's lock, for which
# the training loop may have to wait until the writer gets a processor; so pieces are few.
_CHUNK = 64 * 2**20
_SMALL = 2**20  # tensors below are joined, for the same reason: a model has thousands of them
_MOST_JOINED = 16 * _SMALL


class TensorError(ValueError):
    """An array or a header cannot be kept or trusted; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its type in safetensors' words, its shape, where its bytes lie from the header's end."""

    word: str
    shape: tuple[int, ...]
    begin: int
    end: int


def prepare(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[np.ndarray]]:
    """Make the length and header of a file, and the arrays whose bytes follow it, in order.

    Args:
        arrays: by name.
        metadata: text to be kept beside them.

    Raises:
        TensorError: a name or a type that is not kept.
    """
    words = {name: _word(name, np.asarray(array).dtype) for name, array in arrays.items()}
    stored = {name: _stored(name, array) for name, array in arrays.items()}
    order = sorted(stored, key=lambda name: _rank(stored[name], name))
    ordered = [stored[name] for name in order]
    # the layout is PyTorch's; some readers insist on being told
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, array in zip(order, ordered, strict=True):
        end = offset + array.nbytes
        header[name] = {"dtype": words[name], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    parse_header(text, offset)  # never write what would be refused when read
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, ordered


def chunks(header: bytes, arrays: list[np.ndarray]) -> Iterator[bytes | bytearray | memoryview]:
    """Cut the bytes of a file into pieces: large tensors without a copy, small ones joined."""
    joined = bytearray(header)
    for array in arrays:
        if array.nbytes <= _SMALL:
            joined += array.tobytes()
            if len(joined) < _MOST_JOINED:
                continue
        if joined:
            yield joined
            joined = bytearray()
        if array.nbytes > _SMALL:
            data = array.reshape(-1).view(np.uint8).data
            for start in range(0, len(data), _CHUNK):
                yield data[start : start + _CHUNK]
    if joined:
        yield joined


def parse_header(text: bytes | memoryview, data_bytes: int) -> dict[str, Entry]:
    """Read the entries of a header, in the order of their data, which must fill `data_bytes`.

    Raises:
        TensorError: what is wrong: a name, a type, a shape, overlapping or missing bytes, bad JSON.
    """
    return parse_file_header(text, data_bytes)[0]


def parse_file_header(text: bytes | memoryview, data_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read (entries, metadata) of a header, the entries as `parse_header` does."""
    try:
        header = load(text)
    except JSONTextError as problem:
        raise TensorError(f"its header cannot be read: {problem}") from problem
    if not isinstance(header, dict):
        raise TensorError(f"its header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorError("the header's __metadata__ is not an object of strings")
    claims = {name: _entry(name, claim) for name, claim in header.items()}
    entries = sorted(claims.items(), key=_place)
    # each begins where the last one ended: no byte is in two tensors, and none is hidden in a gap
    position = 0
    for name, entry in entries:
        if entry.begin != position:
            kind = "overlap those before it" if entry.begin < position else "leave a gap"
            raise TensorError(f"the bytes {entry.begin} to {entry.end} of {name!r:.80} {kind}")
        position = entry.end
    if position != data_bytes:
        raise TensorError(f"its tensors take {position} bytes, and {data_bytes} follow the header")
    return dict(entries), metadata


def view(data: np.ndarray, entry: Entry, name: str) -> np.ndarray:
    """Return the tensor in `data`, the file's bytes after its header; no copy if it is aligned and no bfloat16."""
    part = data[entry.begin : entry.end]
    if entry.word == "BOOL":
        check_booleans(part, name)
    if entry.word == BFLOAT16:
        return _widened(part).reshape(entry.shape)
    array = part.view(DTYPES[entry.word]).reshape(entry.shape)
    if not array.flags.aligned:  # another writer's file may have another order
        array = array.copy()
    return array


def check_booleans(part: np.ndarray, name: str) -> None:
    """Raise `TensorError` unless each of these bytes of a BOOL tensor is 0 or 1."""
    # numpy takes any other byte for True here and for its own value there
    if part.size and int(part.max()) > 1:
        raise TensorError(f"{name!r:.80} has bytes other than 0 and 1, and its type is BOOL")


def _widened(part: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers as float32: theirs are its upper two bytes."""
    bits = part.view(_BFLOAT16_BITS).astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _word(name: str, dtype: np.dtype) -> str:
    """Return safetensors' word for a type."""
    if dtype.byteorder == ">":
        dtype = dtype.newbyteorder("<")
    if dtype.name == "bfloat16":
        return BFLOAT16
    if dtype not in _WORDS:
        raise TensorError(f"{name!r:.80} has the type {dtype}; {', '.join(map(str, _WORDS))} and bfloat16 are kept")
    return _WORDS[dtype]


def _stored(name: Any, array: Any) -> np.ndarray:
    """Turn an array into what its file holds: little-endian, in C order."""
    problem = tensor_name_problem(name)
    if problem:
        raise TensorError(problem)
    array = np.asarray(array)
    dtype = array.dtype
    if dtype.byteorder == ">":
        dtype = dtype.newbyteorder("<")
    if array.ndim > _MOST_DIMENSIONS:
        raise TensorError(f"{name!r:.80} has {array.ndim} dimensions, more than {_MOST_DIMENSIONS}")
    return np.asarray(array, dtype=dtype, order="C")


def _rank(array: np.ndarray, name: str) -> tuple[bool, int, str]:
    # larger elements first: then each tensor begins at a multiple of its element's size
    return array.nbytes % ALIGNMENT != 0, -array.itemsize, name


def _place(item: tuple[str, Entry]) -> tuple[int, int]:
    return item[1].begin, item[1].end


def _entry(name: str, claim: Any) -> Entry:
    problem = tensor_name_problem(name)
    if problem:
        raise TensorError(problem)
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorError(f"{name!r:.80} is not described by dtype, shape and data_offsets")
    word = claim["dtype"]
    shape = claim["shape"]
    offsets = claim["data_offsets"]
    if not isinstance(word, str) or word not in (*DTYPES, BFLOAT16):
        raise TensorError(f"{name!r:.80} has the type {word!r:.40}; {', '.join((*DTYPES, BFLOAT16))} are read")
    if not _naturals(shape) or len(shape) > _MOST_DIMENSIONS:
        raise TensorError(f"{name!r:.80} has the shape {shape!r:.80}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise TensorError(f"{name!r:.80} has the data_offsets {offsets!r:.80}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _itemsize(word):
        raise TensorError(f"{name!r:.80} of shape {shape!r:.80} and type {word} does not take {end - begin} bytes")
    if _extent(shape) >= _LARGEST_EXTENT:
        raise TensorError(f"{name!r:.80} has the shape {shape!r:.80}, and no array can have it")
    return Entry(word, tuple(shape), begin, end)


def _itemsize(word: str) -> int:
    return DTYPES.get(word, _BFLOAT16_BITS).itemsize


def _extent(shape: list[int]) -> int:
    """Return the elements of an array whose axes of length 0 had length 1: numpy bounds these."""
    return math.prod(length for length in shape if length)


def _naturals(value: Any) -> bool:
    # by type: True is an int as well
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
