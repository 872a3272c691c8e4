"""A golden trace, and the file that holds it: JSON with one line per update and per tensor, to be read and diffed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from multibackend.core.precision import PRECISIONS
from multibackend.errors import GoldenFileError
from multibackend.golden.draw import Law
from multibackend.golden.summary import Summary, places

__all__ = ["FORMAT", "Golden", "load", "save"]

FORMAT = "multibackend-golden-1"
_COLUMNS = ("loss", "grad_norm", "learning_rate", "weight", "examples", "epoch")
_WORDS = ("experiment", "backend", "versions", "device", "precision", "dropout")
_COUNTS = ("seed", "updates")
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # which JSON does not know


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What is kept of a run.

    Attributes:
        experiment, backend, versions, device, precision, seed, updates: what was run, and with what.
        dropout: the experiment's, "portable" where the model has dropout layers.
        dropout_layers: their names.
        history: a column for each of loss, grad_norm, learning_rate, weight, examples, epoch; one entry per update.
        skipped: windows that made no update: (number of the update it would have made, reason).
        gradient_updates: the updates whose gradients were kept: 1, 2, 4, 8, ... and the last.
        gradients: for each parameter the norm of its gradient at those updates, before clipping.
        shares: for each parameter the largest share of its gradient's norm in the global one, over all updates.
        data: the fields of the first window, in the order in which the run sees its examples.
        laws: how the initial parameters were drawn, see `multibackend.golden.draw`.
        start, end: the parameters before the first and after the last update.
        state_start, state_end: the model state, such as BatchNorm statistics.
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
    """Write a golden file; it appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(_text(golden), encoding="utf-8")
    temporary.replace(path)


def load(path: str | Path) -> Golden:
    """Read a golden file.

    Raises:
        GoldenFileError: it is not there, or is none; the message says what is wrong and where.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GoldenFileError(
            f"there is no golden file {str(path)!r}; `multibackend record FILE --output {path}` writes it, and under "
            "pytest --update-golden does"
        ) from error
    except (OSError, ValueError) as error:
        raise GoldenFileError(f"{str(path)!r} is no golden file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise GoldenFileError(
            f"{str(path)!r} is no golden file: its format is {found!r}, this version reads {FORMAT!r}"
        )
    return _Reader(str(path)).golden(content)


def _text(golden: Golden) -> str:
    """The file: one line per update, per parameter's gradients and per tensor."""
    head = {"format": FORMAT}
    head |= {name: getattr(golden, name) for name in (*_WORDS, *_COUNTS, "dropout_layers", "skipped")}
    lines = [f"{json.dumps(name)}: {_dumps(value)}" for name, value in head.items()]
    rows = (
        {"update": index + 1, **{name: golden.history[name][index] for name in _COLUMNS}}
        for index in range(len(golden.history["loss"]))
    )
    lines.append('"history": [\n' + ",\n".join(f"    {_dumps(row)}" for row in rows) + "\n  ]")
    lines.append(f'"gradient_updates": {_dumps(golden.gradient_updates)}')
    for name in ("gradients", "shares", "data", "laws", "start", "end", "state_start", "state_end"):
        table = getattr(golden, name)
        rows = (f"    {json.dumps(key)}: {_dumps(_plain(value))}" for key, value in table.items())
        lines.append(f'"{name}": ' + ("{\n" + ",\n".join(rows) + "\n  }" if table else "{}"))
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Summary | Law) else value


def _dumps(value: Any) -> str:
    return json.dumps(_strict(value), allow_nan=False)


def _strict(value: Any) -> Any:
    """Numbers that JSON does not know, by name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value


class _Reader:
    """Builds a `Golden` from what JSON gave, every part checked; remembers where it is for the messages."""

    def __init__(self, path: str) -> None:
        self.path = path

    def golden(self, content: Mapping[str, Any]) -> Golden:
        """The whole file."""
        words = {name: self.value(content, name, str) for name in _WORDS}
        counts = {name: self.value(content, name, int) for name in _COUNTS}
        if words["precision"] not in PRECISIONS:
            self.fail("precision", f"one of {', '.join(PRECISIONS)}", words["precision"])
        if counts["updates"] < 1:
            self.fail("updates", "at least 1", counts["updates"])
        history = self.history(content, counts["updates"])
        kept_at = tuple(self.numbers(self.value(content, "gradient_updates", list), "gradient_updates"))
        if any(not isinstance(place, int) or not 1 <= place <= counts["updates"] for place in kept_at):
            self.fail("gradient_updates", f"numbers of updates, 1 to {counts['updates']}", list(kept_at))
        tables: dict[str, Any] = {"gradients": {}, "shares": {}, "laws": {}}
        for name, norms in self.value(content, "gradients", dict).items():
            tables["gradients"][name] = tuple(self.numbers(norms, f"gradients.{name}", length=len(kept_at)))
        for name, share in self.value(content, "shares", dict).items():
            tables["shares"][name] = self.numbers([share], f"shares.{name}")[0]
        for name, law in self.value(content, "laws", dict).items():
            tables["laws"][name] = self.record(law, f"laws.{name}", Law)
        for table in ("data", "start", "end", "state_start", "state_end"):
            entries = self.value(content, table, dict).items()
            tables[table] = {name: self.record(entry, f"{table}.{name}", Summary) for name, entry in entries}
        self.same_names(tables)
        return Golden(
            **words,
            **counts,
            **tables,
            history=history,
            dropout_layers=tuple(map(str, self.value(content, "dropout_layers", list))),
            skipped=self.skipped(content),
            gradient_updates=kept_at,
        )

    def history(self, content: Mapping[str, Any], updates: int) -> dict[str, tuple[float, ...]]:
        """The columns of the history, as many rows as updates."""
        rows = self.value(content, "history", list)
        if len(rows) != updates:
            self.fail("history", f"{updates} updates", f"{len(rows)} of them")
        for index, row in enumerate(rows):
            where = f"history[{index}]"
            if not isinstance(row, Mapping):
                self.fail(where, "an object", row)
            missing = [name for name in _COLUMNS if name not in row]
            if missing:
                self.fail(where, f"the entries {', '.join(_COLUMNS)}", f"none called {missing[0]!r}")
        return {
            name: tuple(self.numbers([row[name] for row in rows], f"history, the column {name}")) for name in _COLUMNS
        }

    def skipped(self, content: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
        """The windows that made no update."""
        entries = self.value(content, "skipped", list)
        for entry in entries:
            if not (isinstance(entry, list) and [type(part) for part in entry] == [int, str]):
                self.fail("skipped", "pairs of an update and a reason", entry)
        return tuple((entry[0], entry[1]) for entry in entries)

    def record(self, entry: Any, where: str, kind: type) -> Any:
        """A `Summary` or a `Law`."""
        wanted = [column.name for column in fields(kind)]
        if not isinstance(entry, Mapping) or set(entry) != set(wanted):
            self.fail(where, f"an object with {', '.join(wanted)}", entry)
        shape = self.numbers(entry["shape"], f"{where}.shape")
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            self.fail(f"{where}.shape", "whole numbers", shape)
        values: dict[str, Any] = {"shape": tuple(shape)}
        for name in wanted[1:]:
            if name == "digest":
                values[name] = self.value(entry, name, str)
            elif name == "elements":
                values[name] = tuple(self.numbers(entry[name], f"{where}.{name}"))
            else:
                values[name] = self.numbers([entry[name]], f"{where}.{name}")[0]
        if "elements" in values and len(values["elements"]) != len(places(math.prod(shape))):
            self.fail(where, "as many elements as are kept of its shape", entry)
        return kind(**values)

    def same_names(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Every table of parameters has the same names, and a law the shape of its tensor."""
        for table in ("gradients", "shares", "laws", "end"):
            differing = sorted(set(tables[table]) ^ set(tables["start"]))
            if differing:
                self.fail(table, "the same parameters as in start", f"a difference in {differing[0]!r}")
        for name, law in tables["laws"].items():
            if law.shape != tables["start"][name].shape:
                self.fail(f"laws.{name}", f"the shape {list(tables['start'][name].shape)}", list(law.shape))

    def value(self, content: Mapping[str, Any], name: str, kind: type) -> Any:
        """An entry of a type."""
        found = content.get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            self.fail(name, {str: "a string", int: "a whole number", list: "a list", dict: "an object"}[kind], found)
        return found

    def numbers(self, found: Any, where: str, *, length: int | None = None) -> list[Any]:
        """A list of numbers; those that JSON does not know are given by name."""
        if not isinstance(found, list) or (length is not None and len(found) != length):
            self.fail(where, "a list of numbers" if length is None else f"a list of {length} numbers", found)
        values = [_NUMBERS.get(value, value) if isinstance(value, str) else value for value in found]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            self.fail(where, "numbers", found)
        return values

    def fail(self, where: str, wanted: str, found: Any) -> None:
        """Raise the error for an entry that is not what it must be."""
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise GoldenFileError(f"{self.path!r} is no golden file: {where} must be {wanted}, found {shown}")
