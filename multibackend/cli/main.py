"""The command line: parses, calls a command, tells mistakes.

Exit codes: 0 fine, 1 a mismatch, 2 a mistake in the input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from multibackend.cli.completion import SHELLS, completion_script
from multibackend.cli.early import check_early
from multibackend.core.precision import PRECISIONS
from multibackend.errors import Interrupted, MultibackendError

__all__ = ["main"]

_BACKEND = "the backend (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parsers()
    options, flags = parser.parse_known_args(words)
    if options.version:
        print(f"multibackend {version('multibackend')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    if options.command == "completion":
        print(completion_script(options.shell, commands), end="")
        return 0
    options.line = shlex.join(["multibackend", *words])
    if "file" not in options and flags:  # no experiment file, whose flags they could be
        commands[options.command].error(f"unrecognized arguments: {' '.join(flags)}")
    if "file" in options and options.file is None:
        options.parser.print_help()
        return 0 if options.help else 2
    return _run(options, flags)


def _run(options: argparse.Namespace, flags: list[str]) -> int:
    try:
        check_early(options, flags)
        if options.command == "backends":
            from multibackend.cli import listing as commands  # noqa: PLC0415 - a list must be quick
        else:
            from multibackend.cli import commands  # noqa: PLC0415 - the whole library; help and mistakes must be quick
        return getattr(commands, options.command)(options, flags)  # argparse has refused others
    except Interrupted as interruption:  # which has said how to go on
        return int(interruption.code or 1)
    except MultibackendError as error:
        print(f"multibackend {options.command}: {error}", file=sys.stderr)
        return 2


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="multibackend",
        description="Train one experiment on PyTorch or JAX/Flax, and hold the runs against each other.",
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # in the order in which the help lists them
    for add in (
        _add_train,
        _add_resume,
        _add_compare,
        _add_evaluate,
        _add_predict,
        _add_convert,
        _add_check,
        _add_record,
    ):
        add(commands)
    _add_report(commands)
    commands.add_parser("backends", help="list the backends")
    _add_examples(commands)
    completion = commands.add_parser("completion", help="a script that lets a shell complete commands and flags")
    completion.add_argument("shell", choices=SHELLS, help="put its output where the shell reads it when it starts")
    return parser, dict(commands.choices)


def _add_train(commands: Any) -> None:
    parser = _add_command(commands, "train", "train an experiment on one backend")
    add = parser.add_argument
    _add_device(parser)
    add("--backend", default="torch", help=_BACKEND)
    add("--run-dir", help="write the log and the weights to this directory")
    add("--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update, and say when")
    add("--ema-decay", type=float, metavar="D", help="keep a moving average of the parameters")
    _add_initial(parser)
    add("--resume", default="never", help="go on from --run-dir: never, auto (if it can) or must")
    _add_training(parser)


def _add_resume(commands: Any) -> None:
    parser = _add_command(
        commands,
        "resume",
        "go on with a run that was stopped or killed",
        file=("RUN_DIR", "the directory that train --run-dir wrote"),
    )
    add = parser.add_argument
    # no defaults: what is not typed is as it was when the run began
    _add_device(parser, execution=None)
    add("--backend", default=None, help="another backend than before")
    add("--file", dest="moved", metavar="FILE", help="where the experiment file is now, if it was moved")
    add("--trust", action="store_true", help="run the experiment file though it changed, or lies in RUN_DIR")
    add("--ema-decay", type=float, help=argparse.SUPPRESS)
    add("--initial", help=argparse.SUPPRESS)
    add("--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update")
    _add_training(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add what `train` and `resume` have in common."""
    add = parser.add_argument
    add("--save-every", type=int, metavar="N", help="save after every N-th update")
    add("--save-seconds", type=float, metavar="S", help="save every S seconds (default: 600)")
    add("--keep-last", type=int, metavar="N", help="how many checkpoints stay (default: 3)")
    add("--keep-every", type=int, metavar="N", help="those of every N-th update stay for good")
    add("--may-differ", action="append", metavar="NAME", help="what may be another than was saved")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--updates", type=int, help="how many updates the run makes")
    length.add_argument("--epochs", type=int, help="how many epochs the run makes")


def _add_compare(commands: Any) -> None:
    parser = _add_command(commands, "compare", "train on two backends and compare; exit 1 if they differ")
    add = parser.add_argument
    add("--backends", default="torch,jax", help="two names (default: %(default)s)")
    add("--updates", type=int, help="how many updates both runs make")
    add("--every", type=int, help="print the losses of every N-th update")
    _add_initial(parser)
    add("--html", metavar="PAGE", help="write the report to this file, a page that needs no network")


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(commands, "evaluate", "loss and metrics of trained weights on the evaluation data")
    add = parser.add_argument
    _add_device(parser)
    add("--backend", default="torch", help=_BACKEND)
    add("--run-dir", help="the directory that `train` wrote")
    add("--weights", help="a weights file, instead of the one in --run-dir")


def _add_predict(commands: Any) -> None:
    parser = _add_command(commands, "predict", "what a trained model returns for data, to a file")
    add = parser.add_argument
    _add_device(parser)
    add("--backend", default="torch", help=_BACKEND)
    add("--run-dir", "--run", help="the directory that `train` wrote")
    add("--weights", help="a weights file, instead of the one in --run-dir")
    add("--data", metavar="DATA", help=".npz or .safetensors with the model's fields, or .npy (default: eval_data)")
    add("--part", metavar="PATH", help="the part of what the model returns, such as cls or heads.0 (default: all)")
    add("--batch-size", type=int, metavar="N", help="examples at once")
    add("--output", metavar="OUTPUT", help="write to this file: .npz, .safetensors or .csv")


def _add_convert(commands: Any) -> None:
    parser = _add_command(commands, "convert", "weights of one backend as another's; exit 1 if outputs differ")
    add = parser.add_argument
    add("--weights", metavar="FILE", help="safetensors, or a torch pickle, in the source's own names")
    add("--from", dest="source", default="torch", help="the backend they are of (default: %(default)s)")
    add("--to", dest="target", default="jax", help="the backend to write for (default: %(default)s)")
    add("--output", metavar="FILE", help="safetensors to write, in the target's own names and layouts")
    add("--matching", metavar="FILE", help="a saved matching; found, and written here, if not there")


def _add_check(commands: Any) -> None:
    parser = _add_command(commands, "check", "do k micro-batches equal one batch, and why not; exit 1 if not")
    parser.add_argument("--backend", help="one backend (default: all that are installed and that the model has)")


def _add_record(commands: Any) -> None:
    parser = _add_command(commands, "record", "keep a golden trace of a run, or check one; exit 1 if it parts")
    add = parser.add_argument
    _add_device(parser)
    add("--backend", help="the backend (default: torch; with --check the recorded one)")
    add("--updates", type=int, help="how many updates (default: 20; with --check as recorded)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="GOLDEN", help="write the trace to this file, where the run has moved")
    place.add_argument("--check", metavar="GOLDEN", help="hold the run against the trace in this file")


def _add_examples(commands: Any) -> None:
    parser = commands.add_parser("examples", help="copy the examples to a folder")
    parser.add_argument("folder", nargs="?", default="examples", metavar="FOLDER", help="(default: %(default)s)")


def _add_report(commands: Any) -> None:
    text = "one page of a run or several: loss, rate, gradient norm, speed, evaluations, settings side by side"
    parser = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="a directory that a run wrote its log to")
    parser.add_argument("--output", default="report.html", metavar="PAGE", help="of the page (default: %(default)s)")


def _add_command(
    commands: Any,
    name: str,
    text: str,
    *,
    file: tuple[str, str] = ("FILE", "a Python file with a function experiment(...)"),
) -> argparse.ArgumentParser:
    """Add a command on an experiment file, to whose experiment() go the flags that it does not know.

    Hence no abbreviations, which would take flags of experiment() for the command's own, and no
    help of argparse's, which would exit before the file's flags are shown.
    """
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, add_help=False)
    metavar, meaning = file
    parser.add_argument("file", nargs="?", metavar=metavar, help=meaning)
    parser.add_argument("-h", "--help", action="store_true", help="show this help, and the flags of FILE if given")
    parser.add_argument("--precision", help=f"override the experiment's precision: {', '.join(PRECISIONS)}")
    parser.set_defaults(parser=parser)
    return parser


def _add_initial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--initial",
        metavar="START",
        help="start from: native, a backend's name for its builder's values, or a weights file",
    )


def _add_device(parser: argparse.ArgumentParser, execution: str | None = "auto") -> None:
    parser.add_argument("--device", help="override the backend's default device")
    parser.add_argument("--execution", default=execution, help="how a window executes (default: %(default)s)")
