"""The one reader of JSON: files of any text are read, or refused with a typed error, wherever they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multibackend import golden
from multibackend.core import json_text
from multibackend.core.files import replace_file
from multibackend.errors import FileError, GoldenFileError, MultibackendError, ParameterMatchError
from multibackend.matching import Matching
from multibackend.testing import assert_raises

TEXTS = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested and closed": b"[" * 5000 + b"]" * 5000,
    "not UTF-8": b'{"format": "\xff\xfe"}',
    "null": b"null",
    "empty": b"",
    "NaN": b'{"format": NaN}',
    "many digits": b'{"format": ' + b"1" * 5000 + b"}",
    "beyond every float": b'{"format": 1e999}',
    "twice": b'{"format": 1, "format": 2}',
    "a lone surrogate": rb'{"format": "\ud800"}',
}
READERS: dict[str, tuple[Callable[[Path], Any], type[MultibackendError]]] = {
    "golden": (golden.load, GoldenFileError),
    "matching": (Matching.load, ParameterMatchError),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_any_text(reader: str, text: str, tmp_path: Path) -> None:
    read, kind = READERS[reader]
    path = tmp_path / "file.json"
    path.write_bytes(TEXTS[text])
    error = assert_raises(kind, lambda: read(path), "no ")
    assert len(str(error)) < 1000
    assert_raises(kind, lambda: read(tmp_path / "a\0b"))


def test_files_may_hold_any_letter_and_much(tmp_path: Path) -> None:
    """Unlike a checkpoint's texts, which are ASCII and small."""
    path = tmp_path / "file.json"
    value = {"größe": [1] * (json_text.MOST_VALUES + 1)}
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert json_text.read_file(path) == value
    with pytest.raises(json_text.JSONTextError, match="beyond ASCII"):
        json_text.load(path.read_bytes())


def test_brackets_in_strings_do_not_nest() -> None:
    for value in (["[" * 100], {"\\": "]}" * 100, '"[': ['\\"' + "{" * 100]}):
        assert json_text.load(json.dumps(value).encode()) == value


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Nothing is left behind, and a link in its place is replaced, not followed."""
    other = tmp_path / "other"
    other.write_text("mine")
    path = tmp_path / "made" / "file"
    replace_file(path, [b"one, ", b"two"])
    assert path.read_bytes() == b"one, two"
    path.unlink()
    path.symlink_to(other)
    replace_file(path, [b"three"])
    assert (path.read_bytes(), other.read_text()) == (b"three", "mine")

    def broken() -> Any:
        yield b"half"
        raise OSError(28, "No space left on device")

    error = assert_raises(FileError, lambda: replace_file(path, broken()), "the disk is full")
    assert isinstance(error, OSError)
    assert error.path == str(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"three"
    assert_raises(FileError, lambda: replace_file(path / "below", []), "a file lies there")
    assert_raises(FileError, lambda: replace_file(tmp_path / "a\0b", []), "null")
