"""Mistakes that can be told before the library is imported: paths, names of backends, flags of the experiment file."""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from multibackend.errors import DataError, ExperimentFileError

__all__ = ["check_early", "check_file"]

# types whose flags are one word each; of any other type tyro may make flags of its own
_PLAIN = {"int", "float", "str", "bool", "Path", "None"}
_HELP = {"help", "h"}


def check_early(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Raise for what is wrong with a command's paths, its backends and the flags meant for its file.

    Raises:
        ExperimentFileError: the experiment file or a run directory is not there, or a flag is unknown.
        DataError: weights are not there.
        BackendNotFoundError, BackendNotInstalledError: a backend cannot be used.
    """
    values = vars(options)
    if options.command == "resume":
        _check_run_directory(options.file)
    elif "file" in values:
        check_file(options.file)
        _check_flags(options.file, flags)
    for directory in values.get("run_dirs") or ():
        _check_run_directory(directory)
    if options.command != "train" and values.get("run_dir") is not None and not values.get("weights"):
        _check_weights(options.run_dir, Path(options.run_dir).is_dir())
    if values.get("weights"):
        _check_weights(options.weights, Path(options.weights).is_file())
    _check_backends(values)


def check_file(path: str | Path) -> None:
    """Raise `ExperimentFileError` unless there is such a file."""
    if not Path(path).is_file():
        raise ExperimentFileError(f"there is no file {str(path)!r}; give the path of an experiment file")


def _check_run_directory(path: str) -> None:
    if not Path(path).is_dir():
        problem = f"there is no directory {str(path)!r}"
        raise ExperimentFileError(f"{problem}; give the one that `multibackend train FILE --run-dir DIR` wrote")


def _check_weights(path: str, is_there: bool) -> None:
    if not is_there:
        raise DataError(f"there are no weights at {str(path)!r}, which does not exist")


def _check_backends(values: dict[str, object]) -> None:
    named = [values.get(option) for option in ("backend", "source", "target")]
    named += str(values.get("backends") or "").split(",")
    names = [str(name) for name in named if name]
    if not names:
        return
    from multibackend.protocol.registry import check_backend  # noqa: PLC0415 - only where one is named

    for name in names:
        check_backend(name)


def _check_flags(path: str, flags: Sequence[str]) -> None:
    """Refuse a flag that the file's experiment() does not have, as far as its source alone can tell."""
    known = _arguments(Path(path))
    if known is None:
        return
    for flag in flags:
        if not flag.startswith("--"):
            continue
        name = flag[2:].partition("=")[0].replace("-", "_")
        if name in known or name.removeprefix("no_") in known or name in _HELP:
            continue
        raise ExperimentFileError(_unknown_flag(path, flag, known))


def _unknown_flag(path: str, flag: str, known: Iterable[str]) -> str:
    words = [f"--{name.replace('_', '-')}" for name in known]
    likely = difflib.get_close_matches(flag, words, n=1)
    slip = f"; did you mean {likely[0]}?" if likely else ""
    listed = ", ".join(words) or "no arguments"
    return f"neither the command nor experiment() of {path} has a flag {flag}{slip} experiment() has {listed}"


def _arguments(path: Path) -> list[str] | None:
    """The names of the arguments of experiment() in a file; None where its source does not tell them all."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # told when the file is run
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "experiment"]
    if len(functions) != 1 or functions[0].decorator_list:
        return None
    arguments = functions[0].args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if arguments.kwarg or arguments.vararg or not all(_is_plain(argument.annotation) for argument in listed):
        return None
    return [argument.arg for argument in listed]


def _is_plain(annotation: ast.expr | None) -> bool:
    match annotation:
        case ast.Name(id=name):
            return name in _PLAIN
        case ast.Constant(value=None):
            return True
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_plain(left) and _is_plain(right)
    return False
