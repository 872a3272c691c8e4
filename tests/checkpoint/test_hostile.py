"""Checkpoints made to harm: a typed error for each, in little memory and time, and nothing outside is touched."""

import contextlib
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import headers
from support.forgery import DATA, forge, header, manifest, seal, sealed, tensor_file

from multibackend.checkpoint import read_checkpoint, read_manifest, verify
from multibackend.core.json_text import DEEPEST, MOST_BYTES, MOST_VALUES
from multibackend.errors import CheckpointError

GROUP = "parameters.safetensors"
GOOD = {GROUP: tensor_file(header())}
MOST_MEMORY = 64 * 2**20
SLOWEST = 10.0  # seconds; a busy machine's share, most take milliseconds


def refused(path: Path, words: str, file: str) -> None:
    """Both ways of checking refuse it, with that file's name, and quickly."""
    for check in (verify, read_checkpoint):
        started = time.perf_counter()
        with pytest.raises(CheckpointError, match=words) as caught:
            check(path)
        assert caught.value.file == file
        assert len(str(caught.value)) < 2000
        assert time.perf_counter() - started < SLOWEST


def test_the_forger_can_make_a_good_one(tmp_path: Path) -> None:
    """So that the refusals below are for what was changed."""
    found = read_checkpoint(forge(tmp_path / "good", GOOD))
    assert found.tensors["parameters"]["a"].tobytes() + found.tensors["parameters"]["b"].tobytes() == DATA


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


ENTRY = manifest(GOOD)["files"][GROUP]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "format"),
        ({"version": [2, 0]}, r"format version 2.0, and this library reads 1.x.*update multibackend"),
        ({"version": [10**30, 0]}, "format version 1000000"),
        ({"version": "1.0"}, "version"),
        ({"version": [True, 0]}, "version"),
        ({"version": ...}, "version"),
        ({"update": -1}, "update"),
        ({"update": 1.0}, "update"),
        ({"update": True}, "update"),
        ({"update": 10**30}, "update"),
        ({"update": ...}, "lacks update"),
        ({"micro_batches": "1"}, "micro_batches"),
        ({"written": 5}, "written"),
        ({"libraries": {"numpy": 2}}, "libraries"),
        ({"libraries": None}, "libraries"),
        ({"state": []}, "state"),
        ({"state": ...}, "lacks state"),
        ({"state": deep(DEEPEST)}, "nested"),
        ({"files": []}, "files"),
        ({"files": {"../" + GROUP: ENTRY}}, "no name for a group"),
        ({"files": {"/etc/" + GROUP: ENTRY}}, "no name for a group"),
        ({"files": {"a/b.safetensors": ENTRY}}, "no name for a group"),
        ({"files": {"..safetensors": ENTRY}}, "no name for a group"),
        ({"files": {".safetensors": ENTRY}}, "no name for a group"),
        ({"files": {"a\x00.safetensors": ENTRY}}, "no name for a group"),
        ({"files": {"parameters.pickle": ENTRY}}, "no name for a file"),
        ({"files": {"manifest.json": ENTRY}}, "no name for a file"),
        ({"files": {GROUP: []}}, "entry"),
        ({"files": {GROUP: {**ENTRY, "bytes": -1}}}, "size"),
        ({"files": {GROUP: {**ENTRY, "bytes": 2**63}}}, "size"),
        ({"files": {GROUP: {**ENTRY, "bytes": 1e3}}}, "size"),
        ({"files": {GROUP: {**ENTRY, "xxh3_128": ENTRY["xxh3_128"].upper() + " "}}}, "digest"),
        ({"files": {GROUP: {**ENTRY, "xxh3_128": None}}}, "digest"),
        ({"files": {GROUP: {**ENTRY, "tensors": None}}}, "number of tensors"),
    ],
    ids=str,
)
def test_manifests(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Wrong fields under a digest that is right."""
    refused(forge(tmp_path / "bad", GOOD, seal(manifest(GOOD, **changes))), words, "manifest.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "does not end"),
        (b"\x00" * 500, "does not end"),
        (seal(manifest(GOOD))[:-1], "does not end"),
        (seal(manifest(GOOD)) + b"\n", "does not end"),
        (sealed(b""), "no JSON"),
        (sealed(b"{"), "no JSON"),
        (sealed(b"[1"), "no JSON"),
        (sealed(b'{"update": 1, "update": 2'), "'update' appears twice"),
        (sealed(b'{"state": {"a": 1, "a": 1}'), "'a' appears twice"),
        (sealed(b'{"digest": 1'), "'digest' appears twice"),
        (sealed(b'{"state": NaN'), "NaN"),
        (sealed(b'{"state": -Infinity'), "-Infinity"),
        (sealed(b'{"state": 1e999'), "beyond every float"),
        (sealed(b'{"state": 1' + b"0" * 5000), "5001 digits"),
        (sealed(b'{"state": ' + b"[" * 100_000), "nested"),
        (sealed(b'{"state": ' + b'{"a":' * 100_000), "nested"),
        (sealed(b'{"state": "\xff"'), "ASCII"),
        (sealed('{"state": "é"'.encode()), "ASCII"),
        (sealed(b'{"state": "\x01"'), "no JSON"),
        (sealed(b'{"state": [' + b"0," * (MOST_VALUES + 1)), "values"),
        (b" " * (MOST_BYTES + 1), "bytes, more than"),
        (sealed(b"\xef\xbb\xbf{"), "ASCII"),
        (sealed(b'{"a": 1 "b": 2'), "no JSON"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_texts_of_manifests(tmp_path: Path, text: bytes, words: str) -> None:
    """No JSON, or JSON that only a lax reader takes."""
    refused(forge(tmp_path / "bad", GOOD, text), words, "manifest.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (b"\x10\x00\x00", "too short"),
        (tensor_file(header(), length=2**63), "header would take"),
        (tensor_file(header(), length=2**40), "header would take"),
        (tensor_file(header(), length=0), "no JSON"),
        (tensor_file(header(), length=10), "no JSON"),
        (tensor_file([]), "a list, not an object"),
        (tensor_file(header(), DATA[:-1]), "take 48 bytes, and 47 follow"),
        (tensor_file(header(), DATA + b"x"), "take 48 bytes, and 49 follow"),
        (tensor_file(header(data_offsets=[0, 31])), "does not take 31 bytes"),
        (tensor_file(header(data_offsets=[32, 0])), "does not take -32 bytes"),
        (tensor_file(header(data_offsets=[16, 48])), "leave a gap|overlap"),
        (tensor_file(header(data_offsets=[-32, 0])), "data_offsets"),
        (tensor_file(header(data_offsets=[0, 32, 48])), "data_offsets"),
        (tensor_file(header(data_offsets=[0.0, 32.0])), "data_offsets"),
        (tensor_file(header(data_offsets=[2**64, 2**64 + 32])), "data_offsets"),
        (tensor_file(header(shape=[2, 4, 0])), "does not take 32 bytes"),
        (tensor_file(header(shape=[2**62, 2**62, 2**62])), "does not take 32 bytes"),
        (
            tensor_file({**header(), "c": {"dtype": "U8", "shape": [0, 2**62], "data_offsets": [48, 48]}}),
            "no array can",
        ),
        (tensor_file(header(shape=[-2, -4])), "shape"),
        (tensor_file(header(shape=[True, 8])), "shape"),
        (tensor_file(header(shape=8)), "shape"),
        (tensor_file(header(shape=[1] * 33 + [8])), "shape"),
        (tensor_file(header(shape=["8"])), "shape"),
        (tensor_file(header(dtype="F8_E4M3")), "the type 'F8_E4M3'"),
        (tensor_file(header(dtype=["F32"])), "the type"),
        (tensor_file(header(dtype="BOOL", shape=[32])), "other than 0 and 1"),
        (tensor_file(header(more=1)), "not described by"),
        (tensor_file({**header(), "__metadata__": {"a": 1}}), "__metadata__"),
        (tensor_file({**header(), "__metadata__": []}), "__metadata__"),
        (tensor_file({"a": None}), "not described by"),
        (tensor_file({"../../etc/x": header()["a"], "b": header()["b"]}), "reads as a path"),
        (tensor_file({"/etc/x": header()["a"], "b": header()["b"]}), "reads as a path"),
        (tensor_file({"..": header()["a"], "b": header()["b"]}), "reads as a path"),
        (tensor_file({"a\\..\\b": header()["a"], "b": header()["b"]}), "backslashes"),
        (tensor_file({"a\n": header()["a"], "b": header()["b"]}), "unprintable"),
        (tensor_file({"a" * 2000: header()["a"], "b": header()["b"]}), "1 to 1024"),
        (tensor_file(b'{"a":1,"a":2}'), "'a' appears twice"),
        (tensor_file(b'{"a":{"dtype":"F32","dtype":"F64"}}'), "'dtype' appears twice"),
        (tensor_file(b"[" * 100_000), "nested"),
        (tensor_file(b'{"a":NaN}'), "NaN"),
        (tensor_file({"a": header()["a"]}, DATA[:32]), "has 1 tensors, and 2 were written"),
        (tensor_file(b" " * (MOST_BYTES + 1)), "header would take"),
    ],
    ids=lambda value: str(value[:50]),
)
def test_headers(tmp_path: Path, data: bytes, words: str) -> None:
    """Wrong headers in files whose digest and size are right."""
    refused(forge(tmp_path / "bad", {GROUP: data}), words, GROUP)


def test_nothing_outside_is_read(tmp_path: Path) -> None:
    """A name that leaves the directory is refused even if the file is there, with the right size and digest."""
    (tmp_path / GROUP).write_bytes(GOOD[GROUP])
    path = forge(tmp_path / "bad", {}, seal(manifest({"../" + GROUP: GOOD[GROUP]})))
    refused(path, "no name for a group", "manifest.json")
    for target in (tmp_path / GROUP, Path("/dev/zero"), Path("/dev/stdin")):
        path = forge(tmp_path / f"link to {target.name}", {}, seal(manifest(GOOD)))
        (path / GROUP).symlink_to(target)
        refused(path, "is a symbolic link", GROUP)
    path = forge(tmp_path / "linked manifest", GOOD)
    (path / "manifest.json").rename(tmp_path / "elsewhere")
    (path / "manifest.json").symlink_to(tmp_path / "elsewhere")
    refused(path, "is a symbolic link", "manifest.json")


def test_an_enormous_sparse_file(tmp_path: Path) -> None:
    """Ten terabytes that take no room on the disk are refused before any of it is read or allocated."""
    path = forge(tmp_path / "bad", {GROUP: b""})
    with (path / GROUP).open("r+b") as file:
        file.truncate(10 * 2**40)
    fields = manifest({GROUP: b""})
    fields["files"][GROUP]["bytes"] = 10 * 2**40
    (path / "manifest.json").write_bytes(seal(fields))
    refused(path, "this machine's memory", "manifest.json")
    with pytest.raises(CheckpointError, match=r"more than the 100 that are read here$"):
        read_checkpoint(forge(tmp_path / "good", GOOD), most_bytes=100)


def test_what_is_no_directory(tmp_path: Path) -> None:
    """A file, nothing at all, an empty directory, a name that no system takes."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("file", "no checkpoint at"),
        ("none", "no checkpoint at"),
        ("empty", "manifest.json is missing"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / name)
    for name in ("a\x00b", "a" * 300):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            read_manifest(tmp_path / name)


N = MOST_VALUES
GREEDY = {
    "lists": b"[" + b"[]," * (N // 2) + b"[]]",
    "objects": b"[" + b"{}," * (N // 2) + b"{}]",
    "objects with a key": b"[" + b'{"a":1},' * (N // 2 - 9) + b"1]",
    "objects in objects": b"[" + b'{"a":{"b":{"c":{}}}},' * (N // 5 - 9) + b"1]",
    "keys": b"{" + b",".join(b'"%d":0' % n for n in range(N - 99)) + b"}",
    "long keys": b"{" + b",".join(b'"%026d":0' % n for n in range(N - 99)) + b"}",
    "short texts": b"[" + b'"ab",' * (N - 9) + b"1]",
    "floats": b"[" + b"1.5," * (N - 9) + b"1]",
    "whole numbers": b"[" + b"12345678901234567890," * (N - 9) + b"1]",
    "one text": b'"' + b"a" * (MOST_BYTES - 500) + b'"',
    "one text of wide characters": b'"' + b"a" * (MOST_BYTES - 600) + rb"\ud83d\ude00" + b'"',
    "escapes": b'"' + b"\\n" * (MOST_BYTES // 2 - 500) + b'"',
    "quotes": b'"' + b'\\"' * (MOST_BYTES // 2 - 500) + b'"',
    "quotation marks": b'"' * (MOST_BYTES - 500),
    "open quotes": b'"\\' * (MOST_BYTES // 2 - 500),
    "a long fraction": b"0." + b"1" * (MOST_BYTES - 500),
    "exponents": b"1e" + b"1" * (MOST_BYTES - 500),
}


@pytest.mark.parametrize("kind", GREEDY)
def test_memory_stays_within_the_file_and_64_mib(tmp_path: Path, kind: str) -> None:
    """The texts that cost a JSON reader most, as the state of a manifest and as a header, at the limits."""
    state = json.dumps(manifest(GOOD, state=...))[:-1].encode() + b', "state": {"x": ' + GREEDY[kind] + b"}"
    for index, (files, text) in enumerate(((GOOD, sealed(state)), ({GROUP: tensor_file(GREEDY[kind])}, None))):
        path = forge(tmp_path / str(index), files, text)
        size = sum(file.stat().st_size for file in path.iterdir())
        tracemalloc.start()
        started = time.perf_counter()
        with contextlib.suppress(CheckpointError):
            read_checkpoint(path)
        seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= size + MOST_MEMORY, f"{peak / 2**20:.0f} MiB for a file of {size / 2**20:.1f} MiB"
        assert seconds < SLOWEST


def test_memory_of_a_good_one(tmp_path: Path) -> None:
    """Reading takes the files' size once; verifying takes a few MiB."""
    data = bytes(48 * 2**20)
    head = {"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    fields = manifest({GROUP: tensor_file(head, data)})
    fields["files"][GROUP]["tensors"] = 1
    path = forge(tmp_path / "good", {GROUP: tensor_file(head, data)}, seal(fields))
    for check, most in ((read_checkpoint, 49 * 2**20), (verify, 6 * 2**20)):
        tracemalloc.start()
        check(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most


WORDS = [*manifest(GOOD), GROUP, "bytes", "xxh3_128", "tensors", "dtype", "shape", "data_offsets", "F32", "a", "../b"]
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 32, 48, 2**31, 2**63, 2**64, 1e308])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_typed(path: Path) -> None:
    """Anything but success and `CheckpointError` goes through and fails the test; both readers agree."""
    accepting = []
    for check in (verify, read_checkpoint):
        with contextlib.suppress(CheckpointError):
            check(path)
            accepting.append(check)
    assert len(accepting) != 1, "resuming goes by `verify`, and then reads"


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(WORDS[:8]) | st.text(max_size=5), JSON, max_size=3))
def test_fuzzed_manifests(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Any JSON in any field: a checkpoint or a `CheckpointError`."""
    only_typed(forge(tmp_path / "bad", GOOD, seal({**manifest(GOOD), **changes})))


@FUZZ
@given(entry=JSON, name=st.sampled_from([GROUP, "b.safetensors"]) | st.text(max_size=8))
def test_fuzzed_entries(tmp_path: Path, entry: Any, name: str) -> None:
    """Any JSON as a file's entry, under any name."""
    only_typed(forge(tmp_path / "bad", GOOD, seal(manifest(GOOD, files={name: entry, GROUP: ENTRY}))))


@FUZZ
@given(text=st.binary(max_size=300), ends=st.booleans())
def test_fuzzed_texts(tmp_path: Path, text: bytes, ends: bool) -> None:
    """Any bytes as the manifest, with and without a digest that fits."""
    only_typed(forge(tmp_path / "bad", GOOD, sealed(text) if ends else text))


@FUZZ
@given(
    head=JSON | st.dictionaries(st.sampled_from(WORDS), JSON | st.just(header()["a"]), max_size=3),
    size=st.integers(0, 48),
)
def test_fuzzed_headers(tmp_path: Path, head: Any, size: int) -> None:
    """Any JSON as a header, before any number of bytes."""
    only_typed(forge(tmp_path / "bad", {GROUP: tensor_file(head, DATA[:size])}))


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON, min_size=1, max_size=2))
def test_fuzzed_claims(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Any JSON as a tensor's type, shape or place."""
    only_typed(forge(tmp_path / "bad", {GROUP: tensor_file(header(**changes))}))


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    """Bytes of a good file replaced, its digest made right again."""
    data = bytearray(GOOD[GROUP])
    for place, value in edits:
        data[place % len(data)] = value
    only_typed(forge(tmp_path / "bad", {GROUP: bytes(data)}))


def test_mutations(tmp_path: Path) -> None:
    """Some of those of `python -m soak.headers`: refused, now and then read, and nothing else."""
    counts = headers.run(tmp_path, 300, seed=2)
    assert {what for what, count in counts.items() if count} == {"refused", "read"}
