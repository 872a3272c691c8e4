"""A golden trace, and its file: JSON with one line per update and per tensor, to be read and diffed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from multibackend.core.files import replace_file
from multibackend.core.json_text import read_file
from multibackend.core.precision import PRECISIONS
from multibackend.errors import GoldenFileError
from multibackend.golden.laws import Law
from multibackend.golden.summary import Summary, places

__all__ = ["COLUMNS", "FORMAT", "Golden", "load", "save"]

FORMAT = "multibackend-golden-1"
COLUMNS = ("loss", "grad_norm", "learning_rate", "weight", "examples", "epoch")
_WORDS = ("experiment", "backend", "versions", "device", "precision", "dropout")
_COUNTS = ("seed", "updates")
_SUMMARIES = ("data", "start", "end", "state_start", "state_end")
_TYPES = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}
_LARGEST_EXTENT = 2**59  # float64 numbers, in less than the 2^63 bytes that numpy can count
_LARGEST_INTEGER = 2**63
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # which JSON does not know


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What is kept of a run.

    Attributes:
        experiment, backend, versions, device, precision, seed, updates: what was run, and with
        what. dropout: the experiment's, "portable" where the model has dropout layers.
        dropout_layers: their names. history: a column for each of loss, grad_norm,
        learning_rate, weight, examples, epoch; one entry per update. skipped: windows that made
        no update: (number of the update it would have made, reason). gradient_updates: the
        updates whose gradients were kept: 1, 2, 4, 8, ... and the last. gradients: for each
        parameter the norm of its gradient at those updates, before clipping. shares: for each
        parameter the largest share of its gradient's norm in the global one, over all updates.
        data: the fields of the first window, in the order in which the run sees its examples.
        laws: how the initial parameters were drawn, see `multibackend.golden.laws`. start, end:
        the parameters before the first and after the last update. state_start, state_end: the
        model state, such as BatchNorm statistics.
    """

    experiment: str
    backend: str
    versions: str
    device: str
    precision: str
    seed: int
    updates: int
    dropout: str
    dropout_layers: tuple[str, ...]
    history: Mapping[str, tuple[float, ...]]
    skipped: tuple[tuple[int, str], ...]
    gradient_updates: tuple[int, ...]
    gradients: Mapping[str, tuple[float, ...]]
    shares: Mapping[str, float]
    data: Mapping[str, Summary]
    laws: Mapping[str, Law]
    start: Mapping[str, Summary]
    end: Mapping[str, Summary]
    state_start: Mapping[str, Summary] = field(default_factory=dict)
    state_end: Mapping[str, Summary] = field(default_factory=dict)


def save(golden: Golden, path: str | Path) -> None:
    """Write a golden file; it appears whole or not at all.

    Raises:
        FileError: it cannot be written; the message says why.
    """
    replace_file(Path(path), [_text(golden).encode("utf-8")])


def load(path: str | Path) -> Golden:
    """Read a golden file.

    Raises:
        GoldenFileError: it is not there, or is none; the message says what is wrong and where.
    """
    path = Path(path)
    try:
        content = read_file(path)
    except FileNotFoundError as error:
        raise GoldenFileError(
            f"there is no golden file {str(path)!r}; `multibackend record FILE --output {path}` "
            "writes it, and under pytest --update-golden does"
        ) from error
    except (OSError, ValueError) as error:
        raise GoldenFileError(f"{str(path)!r} is no golden file: {error}") from error
    name = type(content).__name__
    if isinstance(content, dict):
        name = content.get("format")
    if name != FORMAT:
        problem = f"its format is {name!r}, this version reads {FORMAT!r}"
        raise GoldenFileError(f"{str(path)!r} is no golden file: {problem}")
    return _Reader(str(path)).golden(content)


def _text(golden: Golden) -> str:
    """Write one line per update, parameter and tensor, so that a diff shows what moved."""
    content = {"format": FORMAT, **asdict(golden)}
    head = ("format", *_WORDS, *_COUNTS, "dropout_layers", "skipped")
    lines = [f'"{name}": {_dumps(content[name])}' for name in head]
    rows = []
    for index in range(len(golden.history["loss"])):
        row = {name: golden.history[name][index] for name in COLUMNS}
        rows.append(_dumps({"update": index + 1, **row}))
    lines.append('"history": [\n    ' + ",\n    ".join(rows) + "\n  ]")
    lines.append(f'"gradient_updates": {_dumps(golden.gradient_updates)}')
    for name in ("gradients", "shares", "data", "laws", "start", "end", "state_start", "state_end"):
        entries = [f"{json.dumps(key)}: {_dumps(entry)}" for key, entry in content[name].items()]
        table = "{}"
        if entries:
            table = "{\n    " + ",\n    ".join(entries) + "\n  }"
        lines.append(f'"{name}": {table}')
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def _dumps(value: Any) -> str:
    return json.dumps(_strict(value), allow_nan=False)  # Python's own NaN would be no JSON


def _strict(value: Any) -> Any:
    """Replace the numbers that JSON does not know by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return value


class _Reader:
    """Builder of a `Golden` from what JSON gave, every part checked, its place told in errors."""

    def __init__(self, path: str) -> None:
        self.path = path

    def golden(self, content: Mapping[str, Any]) -> Golden:
        """Read the whole file."""
        words = {name: self.value(content, name, str) for name in _WORDS}
        counts = {name: self.value(content, name, int) for name in _COUNTS}
        updates = counts["updates"]
        if words["precision"] not in PRECISIONS:
            self.fail("precision", f"one of {', '.join(PRECISIONS)}", words["precision"])
        if updates < 1:
            self.fail("updates", "at least 1", updates)
        history = self.history(content, updates)
        gradient_updates = self.value(content, "gradient_updates", list)
        gradient_updates = self.numbers(gradient_updates, "gradient_updates")
        for update in gradient_updates:
            if not isinstance(update, int) or not 1 <= update <= updates:
                self.fail("gradient_updates", f"numbers of updates, 1 to {updates}", gradient_updates)
        tables = self.tables(content, len(gradient_updates))
        self.same_names(tables)
        return Golden(
            **words,
            **counts,
            **tables,
            history=history,
            dropout_layers=tuple(str(name) for name in self.value(content, "dropout_layers", list)),
            skipped=self.skipped(content),
            gradient_updates=tuple(gradient_updates),
        )

    def tables(self, content: Mapping[str, Any], gradient_updates: int) -> dict[str, Any]:
        """Read what has an entry for each parameter, array of model state or field of the data."""
        tables: dict[str, Any] = {"gradients": {}, "shares": {}, "laws": {}}
        for name, norms in self.value(content, "gradients", dict).items():
            numbers = self.numbers(norms, f"gradients.{name}", length=gradient_updates)
            tables["gradients"][name] = tuple(numbers)
        for name, share in self.value(content, "shares", dict).items():
            tables["shares"][name] = self.number(share, f"shares.{name}")
        for name, law in self.value(content, "laws", dict).items():
            tables["laws"][name] = self.record(law, f"laws.{name}", Law)
        for table in _SUMMARIES:
            tables[table] = dict(self.value(content, table, dict))
            for name, entry in tables[table].items():
                tables[table][name] = self.record(entry, f"{table}.{name}", Summary)
        return tables

    def history(self, content: Mapping[str, Any], updates: int) -> dict[str, tuple[float, ...]]:
        """Read the columns of the history, as many rows as updates."""
        rows = self.value(content, "history", list)
        if len(rows) != updates:
            self.fail("history", f"{updates} updates", f"{len(rows)} of them")
        for index, row in enumerate(rows):
            where = f"history[{index}]"
            if not isinstance(row, Mapping):
                self.fail(where, "an object", row)
            for name in COLUMNS:
                if name not in row:
                    self.fail(where, f"the entries {', '.join(COLUMNS)}", f"none called {name!r}")
        history = {}
        for name in COLUMNS:
            column = [row[name] for row in rows]
            history[name] = tuple(self.numbers(column, f"history, the column {name}"))
        return history

    def skipped(self, content: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
        """Read the windows that made no update."""
        entries = self.value(content, "skipped", list)
        for entry in entries:
            # by the exact types: True is an int too
            if not isinstance(entry, list) or [type(part) for part in entry] != [int, str]:
                self.fail("skipped", "pairs of an update and a reason", entry)
        return tuple((update, reason) for update, reason in entries)

    def record(self, entry: Any, where: str, kind: type) -> Any:
        """Read a `Summary` or a `Law`."""
        columns = [column.name for column in fields(kind)]
        if not isinstance(entry, Mapping) or set(entry) != set(columns):
            self.fail(where, f"an object with {', '.join(columns)}", entry)
        values: dict[str, Any] = {}
        for name in columns:
            if name == "digest":
                values[name] = self.value(entry, name, str)
            elif name in ("shape", "elements"):
                values[name] = tuple(self.numbers(entry[name], f"{where}.{name}"))
            else:
                values[name] = self.number(entry[name], f"{where}.{name}")
            if name == "shape":  # before anything counts the elements
                self.check_shape(values[name], where)
        if "elements" in values:
            count = len(places(math.prod(values["shape"])))
            if len(values["elements"]) != count:
                self.fail(where, "as many elements as are kept of its shape", entry)
        return kind(**values)

    def check_shape(self, shape: tuple[Any, ...], where: str) -> None:
        """Check that an array could have it."""
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            self.fail(f"{where}.shape", "whole numbers", list(shape))
        if math.prod(length for length in shape if length) >= _LARGEST_EXTENT:
            self.fail(f"{where}.shape", "that of an array", list(shape))

    def same_names(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that tables of parameters have the same names, and laws their tensors' shapes."""
        for table in ("gradients", "shares", "laws", "end"):
            differing = sorted(set(tables[table]) ^ set(tables["start"]))
            if differing:
                self.fail(table, "the same parameters as in start", f"a difference in {differing[0]!r}")
        for name, law in tables["laws"].items():
            shape = tables["start"][name].shape
            if law.shape != shape:
                self.fail(f"laws.{name}", f"the shape {list(shape)}", list(law.shape))

    def value(self, content: Mapping[str, Any], name: str, kind: type) -> Any:
        """Return an entry of a type."""
        value = content.get(name)
        # True is an int to Python, but no number in a file
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(name, _TYPES[kind], value)
        return value

    def number(self, value: Any, where: str) -> Any:
        """Return one number."""
        return self.numbers([value], where)[0]

    def numbers(self, values: Any, where: str, *, length: int | None = None) -> list[Any]:
        """Return a list of numbers; those that JSON does not know are given by name."""
        if not isinstance(values, list) or (length is not None and len(values) != length):
            expected = "a list of numbers"
            if length is not None:
                expected = f"a list of {length} numbers"
            self.fail(where, expected, values)
        numbers = []
        for value in values:
            number = value
            if isinstance(value, str):
                number = _NUMBERS.get(value)
            if isinstance(number, bool) or not isinstance(number, int | float):
                self.fail(where, "numbers", values)
            if isinstance(number, int) and abs(number) >= _LARGEST_INTEGER:
                self.fail(where, "numbers of at most 64 bits", values)
            numbers.append(number)
        return numbers

    def fail(self, where: str, expected: str, value: Any) -> NoReturn:
        """Raise the error for an entry that is not what it must be."""
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        raise GoldenFileError(f"{self.path!r} is no golden file: {where} must be {expected}, found {shown}")
