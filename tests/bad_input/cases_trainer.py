"""`Trainer`, its methods, and what compares two of them."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np

import multibackend as mb
from bad_input.case import ALL, BOTH, Case, accepted
from bad_input.setting import DATA, Setting
from multibackend.errors import (
    BackendNotFoundError,
    CapabilityError,
    CheckpointError,
    ConfigurationError,
    DataError,
    FileError,
    NonFiniteError,
    ParameterMatchError,
    TrainerInUseError,
)
from multibackend.metrics import ConfusionMatrix

__all__ = ["CASES"]


class OwnError(Exception):
    """A user's own class."""


def raising(*_arguments: Any) -> Any:
    raise OwnError("the listener's own trouble")


def argument(name: str, /, *words: str, error: type[BaseException] = ConfigurationError, **options: Any) -> Case:
    """Make a case of an argument of `Trainer`."""
    return Case(f"trainer: {name}", lambda s: s.trainer(**options), error, words, ALL)


def backend(name: Any, *words: str, error: type[Exception] = BackendNotFoundError) -> Case:
    """Make a case of a backend that is none."""
    return Case(f"backend {name!r}", lambda s: mb.Trainer(s.experiment(), name), error, (*words, "torch"), ("stub",))


ARGUMENTS = [
    backend("pytorch", "'pytorch'", "did you mean"),
    backend("TORCH", "'TORCH'", "did you mean"),
    backend("flax", "'flax'", "jax"),
    backend("", "''"),
    backend(None, "None"),
    backend(5, "5"),
    backend(["torch"], "['torch']"),
    Case("trainer: experiment 5", lambda s: mb.Trainer(5, "stub"), ConfigurationError, ("experiment", "5")),  # type: ignore[arg-type]
    Case("trainer: arguments swapped", lambda s: mb.Trainer(s.backend, s.experiment()), ConfigurationError, ("experiment",), ("stub",)),  # type: ignore[arg-type]
    *[argument(f"device {bad!r}", "device", repr(bad), device=bad) for bad in ("cuda:99", "npu", 5, "")],
    *[argument(f"execution {bad!r}", "execution", repr(bad), "auto", execution=bad) for bad in ("fast", 5, None)],
    *[argument(f"windows_per_dispatch {bad!r}", "windows_per_dispatch", repr(bad), windows_per_dispatch=bad) for bad in (0, -1, 2.5, True, "2")],
    *[argument(f"read_ahead {bad!r}", "read_ahead", repr(bad), read_ahead=bad) for bad in ("yes", 1)],
    argument("callbacks 5", "callbacks", "5", callbacks=5),
    argument("callbacks [5]", "callbacks", "5", callbacks=[5]),
    argument("callbacks: one function", "callbacks", "sequence", callbacks=raising),
    argument("callbacks: a name", "callbacks", "progress", callbacks="progress"),
    argument("record_gradient_norms 'x'", "record_gradient_norms", "'x'", record_gradient_norms="x"),
    argument("run_dir 5", "run_dir", "5", run_dir=5),
    argument("run_dir True", "run_dir", "True", run_dir=True),
    argument("run_dir empty", "run_dir", "''", run_dir=""),
    argument("checkpointing 5", "checkpointing", "5", "Checkpointing(", checkpointing=5),
    argument("checkpointing True", "checkpointing", "True", "Checkpointing(", checkpointing=True),
    argument("resume 'yes'", "resume", "'yes'", "auto", resume="yes"),
    argument("resume True", "resume", "True", "auto", resume=True),
    argument("resume without run_dir", "resume", "run_dir", resume="must"),
    argument("may_differ 5", "may_differ", "5", may_differ=5),
    argument("may_differ of a number", "may_differ", "5", "sequence", may_differ=[5]),
    argument("unknown", "batch", error=TypeError, batch=5),
    *[
        Case(f"run_dir: {name}", lambda s, make=make: s.fit(run_dir=make(s)), error, words, ALL)
        for name, make, error, words in [
            ("NUL in it", lambda s: "a\0b", ConfigurationError, ("run_dir", "NUL")),
            ("a file", lambda s: a_file(s), CheckpointError, ("file",)),
            ("below a file", lambda s: a_file(s) / "run", CheckpointError, ("file",)),
            ("over-long", lambda s: s.path / ("a" * 4085), CheckpointError, ("long",)),
            ("a dangling link", lambda s: dangling(s), FileError, ("link",)),
        ]
    ],
]  # fmt: skip
ARGUMENTS = [replace(case, own=True) if case.error is TypeError else case for case in ARGUMENTS]


def a_file(setting: Setting) -> Any:
    path = setting.path / "file"
    path.write_text("text")
    return path


def dangling(setting: Setting) -> Any:
    path = setting.path / "link"
    path.symlink_to(setting.path / "nowhere")
    return path


def rules(name: str, /, *words: str, **options: Any) -> Case:
    """Make a case of an argument of `Checkpointing`."""
    return Case(f"Checkpointing: {name}", lambda s: mb.Checkpointing(**options), ConfigurationError, words)


RULES = [
    *[rules(f"every {bad!r}", "every", repr(bad), every=bad) for bad in (0, -1, 2.5, "5", True)],
    *[rules(f"every_seconds {bad!r}", "every_seconds", repr(bad), every_seconds=bad) for bad in (-1.0, math.nan, "60", True)],
    *[rules(f"keep_last {bad!r}", "keep_last", repr(bad), keep_last=bad) for bad in (0, -1, 2.5)],
    *[rules(f"keep_best {bad!r}", "keep_best", repr(bad), keep_best=bad, best_metric="loss") for bad in (-1, 1.5)],
    rules("best_metric 5", "best_metric", "5", keep_best=1, best_metric=5),
    rules("best_mode up", "best_mode", "'up'", "max", keep_best=1, best_metric="loss", best_mode="up"),
    rules("keep_every 0", "keep_every", "0", keep_every=0),
    rules("every_micro_batches -1", "every_micro_batches", "-1", every_micro_batches=-1),
    rules("background 'no'", "background", "'no'", background="no"),
    *[
        Case(f"EarlyStopping: {name}", lambda s, options=options: mb.EarlyStopping(**options), ConfigurationError, words)
        for name, options, words in [
            ("patience 0", {"patience": 0}, ("patience", "0")),
            ("patience 1.5", {"patience": 1.5}, ("patience", "1.5")),
            ("metric 5", {"metric": 5}, ("metric", "5")),
            ("metric empty", {"metric": ""}, ("metric",)),
            ("mode up", {"mode": "up"}, ("mode", "'up'", "max")),
            ("minimum_change nan", {"minimum_change": math.nan}, ("minimum_change", "nan")),
            ("minimum_change -1", {"minimum_change": -1.0}, ("minimum_change", "-1")),
        ]
    ],
]  # fmt: skip


def fit(
    name: str, /, *words: str, error: type[BaseException] = ConfigurationError, own: bool = False, **options: Any
) -> Case:
    """Make a case of an argument of `fit`."""
    return Case(
        f"fit: {name}",
        lambda s: s.trainer(eval_data=options.pop("eval_data", None)).fit(**options),
        error,
        words,
        ("stub",),
        own=own,
    )


def fit_inside(setting: Setting) -> Any:
    trainers: list[mb.Trainer] = []

    def listen(event: Any) -> None:
        if isinstance(event, mb.events.UpdateFinished):
            trainers[0].fit(updates=5)

    trainers.append(setting.trainer(callbacks=[listen]))
    return trainers[0].fit(updates=3)


def fit_in_two_threads(setting: Setting) -> None:
    """Fit in a thread while a listener of the first `fit` waits for it."""
    trainers: list[mb.Trainer] = []
    errors: list[BaseException] = []

    def train() -> None:
        try:
            trainers[0].fit(updates=5)
        except BaseException as error:
            errors.append(error)

    def listen(event: Any) -> None:
        if isinstance(event, mb.events.UpdateFinished) and event.record.update == 1:
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()

    trainers.append(setting.trainer(callbacks=[listen]))
    trainers[0].fit(updates=3)
    if errors:
        raise errors[0]


FIT = [
    fit("nothing", "updates", "epochs"),
    fit("updates and epochs", "updates", "epochs", updates=2, epochs=1),
    *[fit(f"updates {bad!r}", "updates", repr(bad), updates=bad) for bad in (-1, 2.5, "5", True, math.nan)],
    *[fit(f"epochs {bad!r}", "epochs", repr(bad), epochs=bad) for bad in (-1, 0.5, "1")],
    *[fit(f"micro_batches {bad!r}", "micro_batches", repr(bad), micro_batches=bad) for bad in (-1, 2.5)],
    fit("updates 2**70", "updates", "at most", updates=2**70),
    *[fit(f"evaluate_every {bad!r}", "evaluate_every", repr(bad), updates=2, evaluate_every=bad, eval_data=DATA) for bad in (0, -1, 1.5, "2")],
    fit("evaluate_every without eval_data", "eval_data", updates=2, evaluate_every=1),
    fit("evaluate_ema without an average", "ema_decay", updates=2, evaluate_every=1, evaluate_ema=True, eval_data=DATA),
    fit("evaluate_ema 'yes'", "evaluate_ema", "'yes'", updates=2, evaluate_ema="yes"),
    fit("keep_best 1", "keep_best", "1", updates=2, keep_best=1),
    fit("keep_best without evaluations", "keep_best", "evaluate_every", updates=2, keep_best=True),
    fit("best of no metric", "best", "'f1'", "loss", updates=2, evaluate_every=1, best="f1", eval_data=DATA),
    fit("best 5", "best", "5", updates=2, evaluate_every=1, best=5, eval_data=DATA),
    fit("early_stopping 5", "early_stopping", "5", "EarlyStopping(", updates=2, early_stopping=5),
    fit("early_stopping without evaluations", "evaluate_every", updates=2, early_stopping=mb.EarlyStopping()),
    fit("early_stopping of no metric", "'f1'", "loss", updates=2, evaluate_every=1, early_stopping=mb.EarlyStopping(metric="f1"), eval_data=DATA),
    fit("unknown argument", "steps", error=TypeError, own=True, steps=2),
    Case("fit: a number", lambda s: s.trainer().fit(5), TypeError, ("fit",), ("stub",), own=True),  # type: ignore[misc]
    Case("fit inside fit", fit_inside, TrainerInUseError, ("fit", "same trainer"), ALL),
    Case("fit in two threads", fit_in_two_threads, TrainerInUseError, ("fit", "thread"), ALL),
    Case("listener raises", lambda s: s.fit(callbacks=[raising]), OwnError, ("own trouble", "callbacks"), ALL, own=True),
    Case("listener takes no argument", lambda s: s.fit(callbacks=[lambda: None]), TypeError, ("argument", "callbacks"), ALL, own=True),
    Case("learning rate far too high", lambda s: s.fit(400, optimizer=mb.optimizers.SGD(learning_rate=1e6)), NonFiniteError, ("learning rate", "update"), ALL),
    accepted("fit: updates 0", lambda s: s.trainer().fit(updates=0), lambda r: r.updates == 0, ALL),
    accepted("fit: fewer updates than were made", lambda s: fit_twice(s), lambda r: r.updates == 3, ALL),
    accepted("listener returns a number", lambda s: s.fit(callbacks=[lambda event: 5]), lambda r: r.updates == 2, ALL),
]  # fmt: skip


def fit_twice(setting: Setting) -> Any:
    trainer = setting.trainer()
    trainer.fit(updates=3)
    return trainer.fit(updates=2)


def method(name: str, run: Any, *words: str, error: type[Exception] = ConfigurationError, own: bool = False) -> Case:
    """Make a case of a method of a trainer."""
    return Case(f"trainer.{name}", lambda s: run(s.trainer()), error, words, ALL, own=own)


METHODS = [
    method("evaluate without data", lambda t: t.evaluate(), "eval_data"),
    method("evaluate by batches of 0", lambda t: t.evaluate(DATA, batch_size=0), "batch_size", "0"),
    method("evaluate by batches of 2**70", lambda t: t.evaluate(DATA, batch_size=2**70), "batch_size", "at most"),
    method("evaluate without an average", lambda t: t.evaluate(DATA, ema=True), "ema_decay"),
    method("evaluate ema=1", lambda t: t.evaluate(DATA, ema=1), "ema", "1"),
    method("ema_parameters without an average", lambda t: t.ema_parameters(), "ema_decay"),
    method("gradient_norms that were not recorded", lambda t: t.gradient_norms(), "record_gradient_norms"),
    Case("trainer.recompute_statistics without such layers", lambda s: s.trainer().recompute_statistics(), ConfigurationError, ("no layers with running statistics",), BOTH),
    method("load_parameters(5)", lambda t: t.load_parameters(5), "5", "mapping"),
    method("load_parameters(None)", lambda t: t.load_parameters(None), "None", "mapping"),
    method("load_parameters({})", lambda t: t.load_parameters({}), "weight", "bias", error=ParameterMatchError),
    method("load_parameters of another name", lambda t: t.load_parameters({**t.parameters(), "w": np.ones(2)}), "w (2,)", "left over", error=ParameterMatchError),
    method("load_parameters lacking one", lambda t: t.load_parameters({"weight": t.parameters()["weight"]}), "bias", error=ParameterMatchError),
    method("load_parameters of another shape", lambda t: t.load_parameters({**t.parameters(), "bias": np.ones(5)}), "bias", "(5,)", "(2,)", error=ParameterMatchError),
    method("load_parameters flattened", lambda t: t.load_parameters({**t.parameters(), "weight": np.ones(6)}), "weight", "(6,)", "(2, 3)", error=ParameterMatchError),
    method("load_parameters of text", lambda t: t.load_parameters({**t.parameters(), "bias": "text"}), "bias", "text", error=ParameterMatchError),
    method("load_parameters of None", lambda t: t.load_parameters({**t.parameters(), "bias": None}), "bias", "None", error=ParameterMatchError),
    method("load_parameters of complex numbers", lambda t: t.load_parameters({**t.parameters(), "bias": np.ones(2) * 1j}), "bias", "complex", error=ParameterMatchError),
    method("restore(5)", lambda t: t.restore(5), "5", "snapshot"),
    method("restore(None)", lambda t: t.restore(None), "None", "snapshot"),
    method("restore of a dict", lambda t: t.restore(t.parameters()), "weight", "snapshot"),
    method("restore of another model", lambda t: t.restore(replace(t.snapshot(), parameters={"a": np.ones(2)})), "unknown: a", "missing: weight", error=ParameterMatchError),
    method("restore of another shape", lambda t: t.restore(replace(t.snapshot(), parameters={**t.parameters(), "bias": np.ones(5)})), "bias", "(5,)", "(2,)", error=ParameterMatchError),
    method("restore of update -1", lambda t: t.restore(replace(t.snapshot(), update=-1)), "update", "-1"),
    method("save(5)", lambda t: t.save(5), "5", "path"),
    method("save('')", lambda t: t.save(""), "path"),
    accepted("trainer.load_parameters of integers", lambda s: load_integers(s), lambda values: bool(np.all(values["bias"] == 1)), ALL),
]  # fmt: skip


def load_integers(setting: Setting) -> Any:
    trainer = setting.trainer()
    trainer.load_parameters({**trainer.parameters(), "bias": np.ones(2, int)})
    return trainer.parameters()


def saved_over(setting: Setting) -> None:
    trainer = setting.trainer()
    trainer.fit(updates=1)
    trainer.save(setting.path / "once")
    trainer.fit(updates=2)
    trainer.save(setting.path / "once")


def comparison(name: str, /, *words: str, error: type[Exception] = ConfigurationError, **options: Any) -> Case:
    """Make a case of an argument of `compare`; all are refused before anything runs."""
    return Case(f"compare: {name}", lambda s: mb.compare(s.experiment(), **options), error, words)


COMPARISONS = [
    Case("compare: experiment 5", lambda s: mb.compare(5), ConfigurationError, ("experiment", "5")),  # type: ignore[arg-type]
    Case("compare: no experiments", lambda s: mb.compare({}), ConfigurationError, ("two",)),
    comparison("one backend", "two", backends=("stub",)),
    comparison("three backends", "two", backends=("stub", "torch", "jax")),
    comparison("backends a name", "two", backends="torch"),
    comparison("backends 5", "5", backends=5),
    comparison("a backend that is none", "'pytorch'", "did you mean", error=BackendNotFoundError, backends=("stub", "pytorch")),
    comparison("a backend without a builder", "'jax'", "builder", backends=("stub", "jax")),
    *[comparison(f"updates {bad!r}", "updates", repr(bad), updates=bad) for bad in (0, -1, 2.5, "5", None)],
    comparison("updates 2**70", "updates", "at most", updates=2**70),
    comparison("precision 'fp32'", "precision", "'fp32'", "float32", backends=("stub", "stub"), precision="fp32"),
    comparison("executions of another backend", "executions", "'else'", backends=("stub", "stub"), executions={"else": "scan"}),
    comparison("executions 5", "executions", "5", backends=("stub", "stub"), executions=5),
    comparison("devices of another backend", "devices", "'else'", backends=("stub", "stub"), devices={"else": "cpu"}),
    comparison("progress 5", "progress", "5", backends=("stub", "stub"), progress=5),
    comparison("trace 'yes'", "trace", "'yes'", backends=("stub", "stub"), trace="yes"),
    Case("check_accumulation(5)", lambda s: mb.check_accumulation(5, "stub"), ConfigurationError, ("experiment", "5")),  # type: ignore[arg-type]
    Case("check_accumulation: a backend that is none", lambda s: mb.check_accumulation(s.experiment(), "pytorch"), BackendNotFoundError, ("'pytorch'",)),
    Case("check_accumulation: no builder", lambda s: mb.check_accumulation(s.experiment(), "jax"), ConfigurationError, ("builder", "'jax'")),
    Case("save over a checkpoint", saved_over, CheckpointError, ("once", "already"), ALL),
    Case("Trainer.resume of nothing", lambda s: mb.Trainer.resume(s.path / "nothing", s.experiment(), backend=s.backend), CheckpointError, ("nothing",), ALL),
    Case("Trainer.resume(5)", lambda s: mb.Trainer.resume(5, s.experiment(), backend=s.backend), ConfigurationError, ("path", "5"), ALL),  # type: ignore[arg-type]
    Case("resume 'must' of an empty directory", lambda s: s.trainer(run_dir=s.path, resume="must"), CheckpointError, ("no valid checkpoint", "auto"), ALL),
    Case("stub: a capability that it lacks", lambda s: s.trainer(precision="bf16"), CapabilityError, ("bf16",), ("stub",)),
    Case("a confusion matrix cannot be the best", lambda s: s.trainer(eval_data=DATA, metrics=[ConfusionMatrix(target="y", classes=2)]).fit(updates=1, evaluate_every=1, best="confusion_matrix"), ConfigurationError, ("confusion_matrix",), BOTH),
    Case("every window is skipped", lambda s: s.fit(train_data={"x": DATA["x"] * math.nan, "y": DATA["y"]}, on_nonfinite="skip"), DataError, ("skipped",), ALL),
]  # fmt: skip

CASES = [*ARGUMENTS, *RULES, *FIT, *METHODS, *COMPARISONS]
