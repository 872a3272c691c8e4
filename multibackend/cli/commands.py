"""The commands: each takes its parser's options and the flags meant for the experiment file.

Each returns the exit code: 0 fine, 1 a mismatch. Mistakes in the input are raised, for `main`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from multibackend import golden, parity
from multibackend.checkpoint import list_checkpoints
from multibackend.cli import tables
from multibackend.cli.examples import copy_examples
from multibackend.cli.experiment_file import ExperimentFile, load_experiment_file
from multibackend.cli.prediction_files import check_output, read_data, write_predictions
from multibackend.cli.run_file import RunFile
from multibackend.core.paths import arrays_by_path
from multibackend.core.text import print_blocks
from multibackend.core.user_code import user_code
from multibackend.errors import ConfigurationError
from multibackend.experiment import NATIVE, Experiment
from multibackend.loggers.progress import ProgressBar
from multibackend.pages.runs.page import write_report
from multibackend.pages.writing import prepare
from multibackend.protocol.registry import list_backends
from multibackend.training.saving.interrupts import RUN_FILE
from multibackend.training.saving.saver import Checkpointing
from multibackend.training.trainer import Trainer
from multibackend.weights import load_checkpoint, load_weights, save_weights
from multibackend.weights.convert import TOLERANCE, convert_weights

__all__ = ["check", "compare", "convert", "evaluate", "examples", "predict", "record", "report", "resume", "train"]

_WEIGHTS = "weights.safetensors"
_AVERAGE = "ema.safetensors"
_LENGTH = ("updates", "epochs")
_OVERRIDES = ("precision", "ema_decay", "initial")
_SAVING = ("save_every", "save_seconds", "keep_last", "keep_every")
_REMEMBERED = ("backend", *_OVERRIDES, "device", "execution", "evaluate_every", *_LENGTH, *_SAVING)


def train(options: argparse.Namespace, flags: list[str]) -> int:
    """Train an experiment on one backend."""
    file, experiment = _load(options, flags)
    trainer = Trainer(
        experiment,
        options.backend,
        run_dir=options.run_dir,
        # how the run ended is told below, with what it found
        callbacks=[ProgressBar(ending=False)],
        checkpointing=_checkpointing(options),
        resume=options.resume,
        may_differ=options.may_differ or (),
        **_place(options),
    )
    if options.run_dir is not None:
        # before the first update, since a run may be killed, and after the trainer has refused a
        # directory that holds another run
        RunFile(file.path.resolve(), file.digest, tuple(flags), _remembered(options)).write(Path(options.run_dir))
    updates = options.updates
    if updates is None and options.epochs is None:
        updates = file.updates
    result = trainer.fit(updates=updates, epochs=options.epochs, evaluate_every=options.evaluate_every)
    # what may not be expected was told as it began
    print_blocks(replace(result, remarks=()).blocks())
    _print_evaluations(trainer)
    if options.run_dir is not None:
        _write_weights(trainer, Path(options.run_dir))
        print(f"weights and log written to {options.run_dir}")
    if file.after is not None:
        with user_code(f"{file.path}: after(trainer)"):
            file.after(trainer)
    return 0


def resume(options: argparse.Namespace, flags: list[str]) -> int:
    """Train as before, with what is typed now in place of what was typed then."""
    if options.help:
        options.parser.print_help()
        return 0
    run_dir = Path(options.file)
    run = RunFile.read(run_dir, options.moved, trust=options.trust)
    before = dict(run.options)
    now = _remembered(options)
    if any(name in now for name in _LENGTH):
        # they exclude each other: a new length takes the place of the old one, whichever it was
        before = {name: value for name, value in before.items() if name not in _LENGTH}
    for name in _REMEMBERED:
        setattr(options, name, now.get(name, before.get(name)))
    options.file = run.file
    options.run_dir = run_dir
    options.resume = "auto"  # not "must": a run that was killed before its first save begins anew
    return train(options, [*run.flags, *flags])


def compare(options: argparse.Namespace, flags: list[str]) -> int:
    """Train on two backends and compare."""
    file, experiment = _load(options, flags)
    if options.html is not None:
        prepare(options.html, "compare")  # what is wrong with the page is told before the training
    updates = file.updates if options.updates is None else options.updates
    if options.every is not None and options.every < 1:
        problem = f"--every must be >= 1, the updates between two lines, got {options.every}"
        raise ConfigurationError("compare", [problem])
    names = tuple(options.backends.split(","))
    live = None
    if len(names) == 2:  # else `parity.compare` says what is wrong
        live = tables.LiveComparison(names, options.every or max(1, updates // 25))
    report = parity.compare(experiment, names, updates=updates, progress=live)
    print_blocks(report.blocks())
    if options.html is not None:
        path = report.write_html(options.html, command=options.line)
        print(f"The report as a page: {path}")
    return 0 if report.matches else 1


def evaluate(options: argparse.Namespace, flags: list[str]) -> int:
    """Print loss and metrics of trained weights on the evaluation data."""
    trainer = _trained(options, flags)
    print_blocks(tables.metric_blocks(f"{trainer.experiment.name} on {options.backend}", trainer.evaluate()))
    return 0


def predict(options: argparse.Namespace, flags: list[str]) -> int:
    """Write what a trained model returns for data, and print its shapes."""
    if options.output is not None:
        check_output(options.output)
    data = None if options.data is None else read_data(options.data)
    trainer = _trained(options, flags)
    if data is None and trainer.experiment.eval_data is None:
        problem = "the experiment has no eval_data; give the data, --data FILE"
        raise ConfigurationError("predict", [f"{problem} (.npz, .safetensors or .npy)"])
    outputs = trainer.predict(data, options.part, options.batch_size)
    arrays = {path or options.part or "output": array for path, array in arrays_by_path(outputs).items()}
    if options.output is not None:
        write_predictions(options.output, arrays)
    print_blocks(tables.prediction_blocks(f"{trainer.experiment.name} on {options.backend}", arrays))
    print(f"written to {options.output}" if options.output else "nothing written; --output FILE keeps them")
    return 0


def convert(options: argparse.Namespace, flags: list[str]) -> int:
    """Write the weights of one backend as another's."""
    _, experiment = _load(options, flags)
    if options.weights is None or options.output is None:
        problem = "give the weights to read, --weights FILE, and where to write, --output FILE"
        raise ConfigurationError("convert", [problem])
    if options.matching is not None and Path(options.matching).is_file():
        experiment = experiment.replace(model=experiment.model.matched(options.matching))
    conversion = convert_weights(
        experiment, options.weights, options.output, source=options.source, target=options.target
    )
    if options.matching is not None:
        conversion.matching.save(options.matching)
    print(f"{conversion.arrays} arrays written to {options.output}")
    print(
        f"largest difference of {conversion.outputs} outputs: {conversion.difference:.1e} of the largest "
        f"(bound {TOLERANCE:.0e})"
    )
    return 0 if conversion.agrees else 1


def check(options: argparse.Namespace, flags: list[str]) -> int:
    """Check that k micro-batches equal one batch, on one backend or on all that can run them."""
    _, experiment = _load(options, flags)
    names = [options.backend]
    if not options.backend:
        installed = [info.name for info in list_backends() if info.installed]
        names = [name for name in installed if name in experiment.model.builders]
    reports = [parity.check_accumulation(experiment, name) for name in names]
    for report in reports:
        print_blocks(report.blocks())
    return 0 if all(report.matches for report in reports) else 1


def record(options: argparse.Namespace, flags: list[str]) -> int:
    """Write a golden trace of a run, or check one."""
    if options.check is not None:
        return _check_golden(options, flags)
    if options.updates is None:
        options.updates = 20  # before the file is loaded, whose experiment() may ask for them
    _, experiment = _load(options, flags)
    if options.output is None:
        raise ConfigurationError("record", ["say where: --output GOLDEN writes a trace, --check GOLDEN checks one"])
    backend = options.backend or "torch"
    print(golden.update(options.output, experiment, backend, updates=options.updates, **_place(options)))
    return 0


def report(options: argparse.Namespace, flags: list[str]) -> int:
    """Write a page of a run or several."""
    settings = {directory: _typed(Path(directory)) for directory in options.run_dirs}
    path = write_report(options.run_dirs, options.output, settings=settings, command=options.line)
    print(f"The report as a page: {path}")
    return 0


def examples(options: argparse.Namespace, flags: list[str]) -> int:
    """Copy the examples to a folder."""
    for path in copy_examples(options.folder):
        print(path)
    return 0


def _typed(run_dir: Path) -> dict[str, str]:
    """What was typed to start a run; nothing where it was not started by a command, or its file is damaged."""
    try:
        fields = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        words = [Path(fields["file"]).name, *fields["flags"]]
        for name, value in fields["options"].items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return {"command": shlex.join(["multibackend", "train", *words])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _load(options: argparse.Namespace, flags: list[str]) -> tuple[ExperimentFile, Experiment]:
    """Build the file's experiment; a flag that the command and experiment() both have goes to both."""
    if options.help:
        options.parser.print_help()
    file = load_experiment_file(options.file)
    if options.help:
        file.print_flags()
        raise SystemExit(0)
    values = vars(options)
    for name in (*_LENGTH, *_OVERRIDES):
        if name in file.flags and values.get(name) is not None:
            flags = [*flags, f"--{name}", str(values[name])]
    experiment = file.build(flags)
    changes = {name: values[name] for name in _OVERRIDES if values.get(name) is not None}
    if changes:
        experiment = experiment.replace(**changes)
    return file, experiment


def _trained(options: argparse.Namespace, flags: list[str]) -> Trainer:
    """Build a trainer with the weights that the options name."""
    _, experiment = _load(options, flags)
    if options.weights is None and options.run_dir is None:
        problem = "give the weights: --run-dir DIR as passed to train, or --weights FILE"
        raise ConfigurationError(options.command, [problem])
    # the start is the weights', so that no other backend need be there
    trainer = Trainer(experiment.replace(initial=NATIVE), options.backend, **_place(options))
    # rather the newest checkpoint than the file, which `train` writes at its very end only
    if options.weights is None and list_checkpoints(options.run_dir):
        load_checkpoint(trainer, options.run_dir)
    else:
        load_weights(trainer, options.weights or Path(options.run_dir) / _WEIGHTS)
    return trainer


def _place(options: argparse.Namespace) -> dict[str, Any]:
    """Return where and how to execute, as keyword arguments."""
    return {"device": options.device, "execution": options.execution}


def _remembered(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _REMEMBERED if (value := getattr(options, name)) is not None}


def _checkpointing(options: argparse.Namespace) -> Checkpointing:
    arguments = {"every": options.save_every, "every_seconds": options.save_seconds}
    arguments |= {"keep_last": options.keep_last, "keep_every": options.keep_every}
    # what was not typed is left to `Checkpointing`, whose None means something of its own
    return Checkpointing(**{name: value for name, value in arguments.items() if value is not None})


def _print_evaluations(trainer: Trainer) -> None:
    """Print loss and metrics on the evaluation data, if there are any."""
    if trainer.experiment.eval_data is None:
        return
    print_blocks(tables.metric_blocks("held-out", trainer.evaluate()))
    if trainer.experiment.ema_decay is not None:
        print_blocks(tables.metric_blocks("held-out (average)", trainer.evaluate(ema=True)))


def _write_weights(trainer: Trainer, run_dir: Path) -> None:
    snapshot = trainer.snapshot()
    save_weights(snapshot, run_dir / _WEIGHTS)
    if snapshot.ema:
        save_weights(replace(snapshot, parameters=snapshot.ema), run_dir / _AVERAGE)


def _check_golden(options: argparse.Namespace, flags: list[str]) -> int:
    """Run the experiment as it was recorded, but for what is typed, and compare the traces."""
    trace = golden.load(options.check)
    if options.updates is None:
        options.updates = trace.updates
    options.precision = options.precision or trace.precision
    _, experiment = _load(options, flags)
    backend = options.backend or trace.backend
    report = golden.check(trace, experiment, backend, updates=options.updates, **_place(options))
    print(report)
    return 0 if report.matches else 1
