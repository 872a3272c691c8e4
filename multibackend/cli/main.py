"""The command line: parses, calls the API, prints. Exit codes: 0 fine, 1 a mismatch, 2 a mistake in the input."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multibackend.errors import Interrupted, MultibackendError

if TYPE_CHECKING:
    from multibackend.cli.experiment_file import ExperimentFile
    from multibackend.experiment import Experiment
    from multibackend.training.saving.saver import Checkpointing

__all__ = ["main"]

_WEIGHTS = "weights.safetensors"
_AVERAGE = "ema.safetensors"
_SHARED = ("updates", "epochs", "precision", "ema_decay")
_REMEMBERED = (
    "backend",
    "precision",
    "ema_decay",
    "device",
    "execution",
    "evaluate_every",
    "updates",
    "epochs",
    "save_every",
    "save_seconds",
    "keep_last",
    "keep_every",
)
_BACKEND = "the backend (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = _parser().parse_known_args(given)
    options.line = shlex.join(["multibackend", *given])
    try:
        return options.run(options, rest)
    except Interrupted as ended:  # which has said how to go on
        return int(ended.code or 1)
    except MultibackendError as error:
        print(f"multibackend {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multibackend",
        description="Train one experiment on PyTorch or JAX/Flax, and hold the runs against each other.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", _train, "train an experiment on one backend")
    train.add_argument("--backend", default="torch", help=_BACKEND)
    train.add_argument("--run-dir", help="write the log and the weights to this directory")
    train.add_argument("--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update, and say when")
    train.add_argument("--ema-decay", type=float, metavar="D", help="keep a moving average of the parameters")
    train.add_argument("--resume", default="never", help="go on from --run-dir: never, auto (if it can) or must")
    _add_training(train)

    resume = _command(commands, "resume", _resume, "go on with a run that was stopped or killed")
    resume.add_argument("--backend", default=None, help="another backend than before")
    resume.add_argument(
        "--file", dest="moved", metavar="FILE", help="where the experiment file is now, if it was moved"
    )
    resume.add_argument("--ema-decay", type=float, help=argparse.SUPPRESS)
    resume.add_argument("--evaluate-every", type=int, metavar="N", help="evaluate after every N-th update")
    _add_training(resume)

    compare = _command(commands, "compare", _compare, "train on two backends and compare; exit 1 if they differ")
    compare.add_argument("--backends", default="torch,jax", help="two names (default: %(default)s)")
    compare.add_argument("--updates", type=int, help="how many updates both runs make")
    compare.add_argument("--every", type=int, help="print the losses of every N-th update")
    compare.add_argument("--html", metavar="PAGE", help="write the report to this file, a page that needs no network")

    evaluate = _command(commands, "evaluate", _evaluate, "loss and metrics of trained weights on the evaluation data")
    evaluate.add_argument("--backend", default="torch", help=_BACKEND)
    evaluate.add_argument("--run-dir", help="the directory that `train` wrote")
    evaluate.add_argument("--weights", help="a weights file, instead of the one in --run-dir")

    convert = _command(commands, "convert", _convert, "weights of one backend as another's; exit 1 if outputs differ")
    convert.add_argument("--weights", metavar="FILE", help="safetensors, or a torch pickle, in the source's own names")
    convert.add_argument(
        "--from", dest="source", default="torch", help="the backend they are of (default: %(default)s)"
    )
    convert.add_argument("--to", dest="target", default="jax", help="the backend to write for (default: %(default)s)")
    convert.add_argument("--output", metavar="FILE", help="safetensors to write, in the target's own names and layouts")
    convert.add_argument("--matching", metavar="FILE", help="a saved matching; found, and written here, if not there")

    check = _command(commands, "check", _check, "do k micro-batches equal one batch, and why not; exit 1 if not")
    check.add_argument("--backend", help="one backend (default: all that are installed and that the model has)")

    record = _command(commands, "record", _record, "keep a golden trace of a run, or check one; exit 1 if it parts")
    record.add_argument("--backend", help="the backend (default: torch; with --check the recorded one)")
    record.add_argument("--updates", type=int, help="how many updates (default: 20; with --check as recorded)")
    place = record.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="GOLDEN", help="write the trace to this file, where the run has moved")
    place.add_argument("--check", metavar="GOLDEN", help="hold the run against the trace in this file")

    backends = commands.add_parser("backends", help="list the backends")
    backends.set_defaults(run=_backends)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    """What `train` and `resume` have in common."""
    parser.add_argument("--save-every", type=int, metavar="N", help="save after every N-th update")
    parser.add_argument("--save-seconds", type=float, metavar="S", help="save every S seconds (default: 600)")
    parser.add_argument("--keep-last", type=int, metavar="N", help="how many checkpoints stay (default: 3)")
    parser.add_argument("--keep-every", type=int, metavar="N", help="those of every N-th update stay for good")
    parser.add_argument("--may-differ", action="append", metavar="NAME", help="what may be another than was saved")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--updates", type=int, help="how many updates the run makes")
    length.add_argument("--epochs", type=int, help="how many epochs the run makes")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, list[str]], int], text: str
) -> argparse.ArgumentParser:
    """A command on an experiment file. Flags that it does not know go to the file's experiment()."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, add_help=False)
    if name == "resume":
        parser.add_argument("file", nargs="?", metavar="RUN_DIR", help="the directory that train --run-dir wrote")
    else:
        parser.add_argument("file", nargs="?", metavar="FILE", help="a Python file with a function experiment(...)")
    parser.add_argument("-h", "--help", action="store_true", help="show this help, and the flags of FILE if given")
    parser.add_argument("--precision", help="override the experiment's precision: float32 or float64")
    if name in ("train", "evaluate", "record", "resume"):
        parser.add_argument("--device", help="override the backend's default device")
        execution = None if name == "resume" else "auto"
        parser.add_argument("--execution", default=execution, help="how a window executes (default: %(default)s)")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _load(options: argparse.Namespace, rest: list[str]) -> tuple[ExperimentFile, Experiment]:
    """The experiment of the file. A flag that both the command and experiment() have goes to both."""
    from multibackend.cli.experiment_file import load_experiment_file  # noqa: PLC0415 - help must be quick

    if options.help or options.file is None:
        options.parser.print_help()
        if options.file is None:
            raise SystemExit(0 if options.help else 2)
    file = load_experiment_file(options.file)
    shared = {name: getattr(options, name, None) for name in _SHARED if name in file.flags}
    for name, value in shared.items():
        rest = rest if value is None else [*rest, f"--{name}", str(value)]
    experiment = file.build(["--help"] if options.help else rest)
    changes = {name: getattr(options, name, None) for name in ("precision", "ema_decay")}
    changes = {name: value for name, value in changes.items() if value is not None}
    return file, experiment.replace(**changes) if changes else experiment


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    from multibackend.cli.run_file import RunFile  # noqa: PLC0415
    from multibackend.cli.tables import print_metrics  # noqa: PLC0415
    from multibackend.loggers.progress import ProgressBar  # noqa: PLC0415
    from multibackend.training.trainer import Trainer  # noqa: PLC0415
    from multibackend.weights.files import save_weights  # noqa: PLC0415

    file, experiment = _load(options, rest)
    console = Console()
    trainer = Trainer(
        experiment,
        options.backend,
        run_dir=options.run_dir,
        device=options.device,
        callbacks=[ProgressBar(console)],
        execution=options.execution,
        checkpointing=_checkpointing(options),
        resume=options.resume,
        may_differ=options.may_differ or (),
    )
    if options.run_dir is not None:
        remembered = {name: value for name in _REMEMBERED if (value := getattr(options, name)) is not None}
        RunFile(file.path.resolve(), tuple(rest), remembered).write(Path(options.run_dir))
    updates = file.updates if options.updates is None and options.epochs is None else options.updates
    result = trainer.fit(updates=updates, epochs=options.epochs, evaluate_every=options.evaluate_every)
    if result.history:
        last = result.history[-1]
        print_metrics(console, f"after update {last.update}", {"loss": last.loss, "grad_norm": last.grad_norm})
    if experiment.eval_data is not None:
        print_metrics(console, "held-out", trainer.evaluate())
        if experiment.ema_decay is not None:
            print_metrics(console, "held-out (average)", trainer.evaluate(ema=True))
    if result.best is not None:
        best = result.best
        console.print(f"best {best.metric}: {best.value:.4f} after update {best.update}", highlight=False)
    if options.run_dir is not None:
        snapshot = trainer.snapshot()
        save_weights(snapshot, Path(options.run_dir) / _WEIGHTS)
        if snapshot.ema:
            save_weights(replace(snapshot, parameters=snapshot.ema), Path(options.run_dir) / _AVERAGE)
        console.print(f"weights and log written to {options.run_dir}")
    if file.after is not None:
        file.after(trainer)
    return 0


def _checkpointing(options: argparse.Namespace) -> Checkpointing:
    from multibackend.training.saving.saver import Checkpointing  # noqa: PLC0415

    named = {
        "every": options.save_every,
        "every_seconds": options.save_seconds,
        "keep_last": options.keep_last,
        "keep_every": options.keep_every,
    }
    return Checkpointing(**{name: value for name, value in named.items() if value is not None})


def _resume(options: argparse.Namespace, rest: list[str]) -> int:
    """As `train` was called, with what is given now in place of what was given then."""
    from multibackend.cli.run_file import RunFile  # noqa: PLC0415

    if options.help or options.file is None:
        options.parser.print_help()
        return 0 if options.help else 2
    run_dir = Path(options.file)
    told = RunFile.read(run_dir, options.moved)
    given = {name: value for name in _REMEMBERED if (value := getattr(options, name)) is not None}
    then = dict(told.options)
    if "updates" in given or "epochs" in given:
        then = {name: value for name, value in then.items() if name not in ("updates", "epochs")}
    for name in _REMEMBERED:
        setattr(options, name, given.get(name, then.get(name)))
    options.file, options.run_dir, options.resume = told.file, run_dir, "auto"
    return _train(options, [*told.flags, *rest])


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    from multibackend.cli.tables import LiveComparison, print_comparison  # noqa: PLC0415
    from multibackend.parity import compare  # noqa: PLC0415
    from multibackend.parity.html import prepare  # noqa: PLC0415

    file, experiment = _load(options, rest)
    if options.html is not None:
        prepare(options.html)
    console = Console()
    updates = file.updates if options.updates is None else options.updates
    backends = tuple(options.backends.split(","))
    every = options.every or max(1, updates // 25)
    live = LiveComparison(console, backends, every) if len(backends) == 2 else None
    report = compare(experiment, backends, updates=updates, progress=live)
    print_comparison(console, report)
    if options.html is not None:
        path = report.write_html(options.html, command=options.line)
        console.print(f"The report as a page: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0 if report.matches else 1


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    from multibackend.checkpoint import list_checkpoints  # noqa: PLC0415
    from multibackend.cli.tables import print_metrics  # noqa: PLC0415
    from multibackend.errors import ConfigurationError  # noqa: PLC0415
    from multibackend.training.trainer import Trainer  # noqa: PLC0415
    from multibackend.weights.files import load_checkpoint, load_weights  # noqa: PLC0415

    _, experiment = _load(options, rest)
    if options.weights is None and options.run_dir is None:
        raise ConfigurationError("evaluate", ["give the weights: --run-dir DIR as passed to train, or --weights FILE"])
    trainer = Trainer(experiment, options.backend, device=options.device, execution=options.execution)
    if options.weights is None and list_checkpoints(options.run_dir):
        load_checkpoint(trainer, options.run_dir)
    else:
        load_weights(trainer, options.weights or Path(options.run_dir) / _WEIGHTS)
    print_metrics(Console(), f"{experiment.name} on {options.backend}", trainer.evaluate())
    return 0


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from multibackend.errors import ConfigurationError  # noqa: PLC0415
    from multibackend.weights.convert import TOLERANCE, convert_weights  # noqa: PLC0415

    _, experiment = _load(options, rest)
    if options.weights is None or options.output is None:
        raise ConfigurationError(
            "convert", ["give the weights to read, --weights FILE, and where to write, --output FILE"]
        )
    if options.matching is not None and Path(options.matching).is_file():
        experiment = experiment.replace(model=experiment.model.matched(options.matching))
    done = convert_weights(experiment, options.weights, options.output, source=options.source, target=options.target)
    if options.matching is not None:
        done.matching.save(options.matching)
    print(f"{done.arrays} arrays written to {options.output}")
    print(f"largest difference of {done.outputs} outputs: {done.difference:.1e} of the largest (bound {TOLERANCE:.0e})")
    return 0 if done.agrees else 1


def _check(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    from multibackend.cli.tables import print_accumulation  # noqa: PLC0415
    from multibackend.parity import check_accumulation  # noqa: PLC0415
    from multibackend.protocol.registry import list_backends  # noqa: PLC0415

    _, experiment = _load(options, rest)
    usable = [i.name for i in list_backends() if i.installed and i.name in experiment.model.builders]
    reports = [check_accumulation(experiment, name) for name in ([options.backend] if options.backend else usable)]
    for report in reports:
        print_accumulation(Console(), report)
    return 0 if all(report.matches for report in reports) else 1


def _record(options: argparse.Namespace, rest: list[str]) -> int:
    from multibackend import golden  # noqa: PLC0415
    from multibackend.errors import ConfigurationError  # noqa: PLC0415

    how = {"device": options.device, "execution": options.execution}
    if options.check is None:
        options.updates = 20 if options.updates is None else options.updates
        _, experiment = _load(options, rest)
        if options.output is None:
            raise ConfigurationError("record", ["say where: --output GOLDEN writes a trace, --check GOLDEN checks one"])
        print(golden.update(options.output, experiment, options.backend or "torch", updates=options.updates, **how))
        return 0
    trace = golden.load(options.check)
    options.updates = trace.updates if options.updates is None else options.updates
    options.precision = options.precision or trace.precision
    _, experiment = _load(options, rest)
    backend = options.backend or trace.backend
    report = golden.check(trace, experiment, backend, updates=options.updates, **how)
    print(report)
    return 0 if report.matches else 1


def _backends(options: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console  # noqa: PLC0415

    from multibackend.cli.tables import print_backends  # noqa: PLC0415
    from multibackend.protocol.registry import list_backends  # noqa: PLC0415

    print_backends(Console(), list_backends())
    return 0
