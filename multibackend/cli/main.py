"""The command line: parses, calls a command, tells mistakes.

Exit codes: 0 fine, 1 a mismatch, 2 a mistake in the input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from multibackend.errors import Interrupted, MultibackendError

__all__ = ["main"]

_BACKEND = "the backend (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, flags = _parser().parse_known_args(words)
    options.line = shlex.join(["multibackend", *words])
    if "file" in options and options.file is None:
        options.parser.print_help()
        return 0 if options.help else 2

    from multibackend.cli.commands import COMMANDS  # noqa: PLC0415 - loads the whole library, and help must be quick

    try:
        return COMMANDS[options.command](options, flags)
    except Interrupted as interruption:  # which has said how to go on
        return int(interruption.code or 1)
    except MultibackendError as error:
        print(f"multibackend {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multibackend",
        description="Train one experiment on PyTorch or JAX/Flax, and hold the runs against each other.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # in the order in which the help lists them
    _add_train(commands)
    _add_resume(commands)
    _add_compare(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    _add_check(commands)
    _add_record(commands)
    commands.add_parser("backends", help="list the backends")
    return parser


def _add_train(commands: Any) -> None:
    parser = _add_command(commands, "train", "train an experiment on one backend")
    _add_device(parser)
    parser.add_argument("--backend", default="torch", help=_BACKEND)
    parser.add_argument("--run-dir", help="write the log and the weights to this directory")
    parser.add_argument(
        "--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update, and say when"
    )
    parser.add_argument("--ema-decay", type=float, metavar="D", help="keep a moving average of the parameters")
    parser.add_argument("--resume", default="never", help="go on from --run-dir: never, auto (if it can) or must")
    _add_training(parser)


def _add_resume(commands: Any) -> None:
    parser = _add_command(
        commands,
        "resume",
        "go on with a run that was stopped or killed",
        file=("RUN_DIR", "the directory that train --run-dir wrote"),
    )
    # no defaults: what is not typed is as it was when the run began
    _add_device(parser, execution=None)
    parser.add_argument("--backend", default=None, help="another backend than before")
    parser.add_argument(
        "--file", dest="moved", metavar="FILE", help="where the experiment file is now, if it was moved"
    )
    parser.add_argument("--ema-decay", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update")
    _add_training(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add what `train` and `resume` have in common."""
    parser.add_argument("--save-every", type=int, metavar="N", help="save after every N-th update")
    parser.add_argument("--save-seconds", type=float, metavar="S", help="save every S seconds (default: 600)")
    parser.add_argument("--keep-last", type=int, metavar="N", help="how many checkpoints stay (default: 3)")
    parser.add_argument("--keep-every", type=int, metavar="N", help="those of every N-th update stay for good")
    parser.add_argument("--may-differ", action="append", metavar="NAME", help="what may be another than was saved")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--updates", type=int, help="how many updates the run makes")
    length.add_argument("--epochs", type=int, help="how many epochs the run makes")


def _add_compare(commands: Any) -> None:
    parser = _add_command(commands, "compare", "train on two backends and compare; exit 1 if they differ")
    parser.add_argument("--backends", default="torch,jax", help="two names (default: %(default)s)")
    parser.add_argument("--updates", type=int, help="how many updates both runs make")
    parser.add_argument("--every", type=int, help="print the losses of every N-th update")
    parser.add_argument("--html", metavar="PAGE", help="write the report to this file, a page that needs no network")


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(commands, "evaluate", "loss and metrics of trained weights on the evaluation data")
    _add_device(parser)
    parser.add_argument("--backend", default="torch", help=_BACKEND)
    parser.add_argument("--run-dir", help="the directory that `train` wrote")
    parser.add_argument("--weights", help="a weights file, instead of the one in --run-dir")


def _add_convert(commands: Any) -> None:
    parser = _add_command(commands, "convert", "weights of one backend as another's; exit 1 if outputs differ")
    parser.add_argument("--weights", metavar="FILE", help="safetensors, or a torch pickle, in the source's own names")
    parser.add_argument("--from", dest="source", default="torch", help="the backend they are of (default: %(default)s)")
    parser.add_argument("--to", dest="target", default="jax", help="the backend to write for (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="safetensors to write, in the target's own names and layouts")
    parser.add_argument("--matching", metavar="FILE", help="a saved matching; found, and written here, if not there")


def _add_check(commands: Any) -> None:
    parser = _add_command(commands, "check", "do k micro-batches equal one batch, and why not; exit 1 if not")
    parser.add_argument("--backend", help="one backend (default: all that are installed and that the model has)")


def _add_record(commands: Any) -> None:
    parser = _add_command(commands, "record", "keep a golden trace of a run, or check one; exit 1 if it parts")
    _add_device(parser)
    parser.add_argument("--backend", help="the backend (default: torch; with --check the recorded one)")
    parser.add_argument("--updates", type=int, help="how many updates (default: 20; with --check as recorded)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="GOLDEN", help="write the trace to this file, where the run has moved")
    place.add_argument("--check", metavar="GOLDEN", help="hold the run against the trace in this file")


def _add_command(
    commands: Any,
    name: str,
    text: str,
    *,
    file: tuple[str, str] = ("FILE", "a Python file with a function experiment(...)"),
) -> argparse.ArgumentParser:
    """Add a command on an experiment file. Flags that it does not know go to the file's experiment().

    Hence no abbreviations, which would take flags of experiment() for the command's own, and no help of
    argparse's, which would exit before the file's flags are shown.
    """
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, add_help=False)
    metavar, meaning = file
    parser.add_argument("file", nargs="?", metavar=metavar, help=meaning)
    parser.add_argument("-h", "--help", action="store_true", help="show this help, and the flags of FILE if given")
    parser.add_argument("--precision", help="override the experiment's precision: float32 or float64")
    parser.set_defaults(parser=parser)
    return parser


def _add_device(parser: argparse.ArgumentParser, execution: str | None = "auto") -> None:
    parser.add_argument("--device", help="override the backend's default device")
    parser.add_argument("--execution", default=execution, help="how a window executes (default: %(default)s)")
