"""The command line, called in this process; a mistake ends with code 2, a message, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input.case import Case, command
from bad_input.setting import Setting

__all__ = ["CASES"]

EXPERIMENT = '''
import numpy as np
import multibackend as mb

UPDATES = 2

def build_torch():
    import torch
    return torch.nn.Linear(2, 1)

def build_flax(rngs):
    from flax import nnx
    return nnx.Linear(2, 1, rngs=rngs)

def build_stub():
    from multibackend_stub.backend import Linear
    return Linear(2, 1)

def experiment(*, learning_rate: float = 0.1, evaluated: bool = True) -> mb.Experiment:
    """A line."""
    x = np.random.default_rng(0).normal(size=(8, 2))
    data = {"x": x, "y": x @ np.array([[1.0], [2.0]])}
    return mb.Experiment(
        model=mb.Model(torch=build_torch, jax=build_flax, stub=build_stub, inputs="x"),
        loss=mb.losses.MeanSquaredError(target="y"),
        optimizer=mb.optimizers.SGD(learning_rate=learning_rate),
        train_data=data,
        eval_data=data if evaluated else None,
        micro_batch_size=2,
    )
'''


def file(setting: Setting, text: str = EXPERIMENT, name: str = "line.py") -> str:
    """Write an experiment file."""
    path = setting.path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def on_stub(name: str, *arguments: str, words: tuple[str, ...]) -> Case:
    """Make a case of `multibackend train FILE --backend stub ...`."""
    return command(f"train {name}", lambda s: ["train", file(s), "--backend", "stub", *arguments], *words)


def other_file(name: str, text: str, *words: str) -> Case:
    """Make a case of an experiment file with something wrong in it."""
    return command(f"file {name}", lambda s: ["train", file(s, text), "--backend", "stub"], *words)


BODY = EXPERIMENT.partition("def experiment")[0]
FILES = [
    command("file that is not there", lambda s: ["train", str(s.path / "none.py")], "none.py", "no file"),
    command("file that is a directory", lambda s: ["train", str(s.path)], "file"),
    command("file that is no Python", lambda s: ["train", file(s, "text", "a.txt")], "a.txt", "Python"),
    command("file that is binary", lambda s: ["train", binary(s)], "line.py"),
    command("file that is empty", lambda s: ["train", file(s, "")], "line.py", "experiment"),
    other_file("with a syntax error", "def experiment(:\n", "SyntaxError", "line 1"),
    other_file("that raises", "raise RuntimeError('its own trouble')", "RuntimeError", "own trouble", "line.py", "line 1"),
    other_file("that imports what is not installed", "import no_such_package", "no_such_package"),
    other_file("without the function", BODY, "experiment"),
    other_file("whose experiment is a number", BODY + "experiment = 5", "experiment"),
    other_file("whose experiment is a class", BODY + "class experiment: pass", "experiment"),
    other_file("whose experiment returns a number", BODY + "def experiment(): return 5", "Experiment", "int"),
    other_file("whose experiment returns None", BODY + "def experiment(): pass", "Experiment", "NoneType"),
    other_file("whose experiment raises", BODY + "def experiment(): return 1 // 0", "experiment", "ZeroDivisionError"),
    other_file("whose experiment is wrong", EXPERIMENT.replace("micro_batch_size=2", "micro_batch_size=0"), "micro_batch_size"),
    other_file("whose builder raises", EXPERIMENT.replace("return Linear(2, 1)", "return 1 // 0"), "builder", "ZeroDivisionError"),
    other_file("whose UPDATES is text", EXPERIMENT.replace("UPDATES = 2", "UPDATES = 'many'"), "UPDATES", "'many'"),
    other_file("whose UPDATES is negative", EXPERIMENT.replace("UPDATES = 2", "UPDATES = -2"), "UPDATES", "-2"),
    other_file("whose after raises", EXPERIMENT + "\ndef after(trainer): return 1 // 0", "after", "ZeroDivisionError"),
    other_file("whose after is a number", EXPERIMENT + "\nafter = 5", "after", "5"),
    other_file("whose flags have no types", BODY + "def experiment(*, a): return a", "field"),
]  # fmt: skip


def binary(setting: Setting) -> str:
    path = setting.path / "line.py"
    path.write_bytes(b"\x00\xff\xfe")
    return str(path)


TRAIN = [
    command("unknown command", lambda s: ["fly"], "fly", "train"),
    command("misspelt command", lambda s: ["trian"], "trian", "train"),
    command("train without a file", lambda s: ["train", "--updates", "2"]),
    on_stub("unknown flag", "--no-such-flag", "5", words=("no-such-flag",)),
    on_stub("misspelt flag", "--learning-rat", "0.1", words=("--learning-rate",)),
    on_stub("flag of the wrong type", "--learning-rate", "fast", words=("fast",)),
    on_stub("a rate below 0", "--learning-rate", "-1", words=("learning_rate", "-1")),
    on_stub("a rate of nan", "--learning-rate", "nan", words=("learning_rate", "nan")),
    on_stub("flag without a value", "--learning-rate", words=("learning-rate",)),
    on_stub("updates of text", "--updates", "many", words=("--updates", "many")),
    on_stub("updates below 0", "--updates", "-1", words=("updates", "-1")),
    on_stub("updates of 10**30", "--updates", str(10**30), words=("updates", "at most")),
    on_stub("updates and epochs", "--updates", "2", "--epochs", "1", words=("--epochs", "--updates")),
    on_stub("epochs below 0", "--epochs", "-1", words=("epochs", "-1")),
    on_stub("precision", "--precision", "fp3", words=("precision", "fp3", "float32")),
    on_stub("device", "--device", "cuda:99", words=("device", "cuda:99")),
    on_stub("execution", "--execution", "fast", words=("execution", "fast")),
    on_stub("resume", "--resume", "yes", words=("resume", "yes", "auto")),
    on_stub("resume without a directory", "--resume", "must", words=("resume", "run_dir")),
    on_stub("evaluate-every 0", "--evaluate-every", "0", words=("evaluate_every", "0")),
    on_stub("evaluate-every without eval_data", "--no-evaluated", "--evaluate-every", "1", words=("eval_data",)),
    on_stub("ema-decay 2", "--ema-decay", "2", words=("ema_decay", "2")),
    on_stub("save-every 0", "--save-every", "0", words=("every", "0")),
    on_stub("save-seconds nan", "--save-seconds", "nan", words=("every_seconds", "nan")),
    on_stub("keep-last -1", "--keep-last", "-1", words=("keep_last", "-1")),
    command("train on no backend", lambda s: ["train", file(s), "--backend", "pytorch"], "'pytorch'", "did you mean"),
    command("train into a file", lambda s: ["train", file(s), "--backend", "stub", "--run-dir", file(s)], "line.py"),
    command("train into a used directory", lambda s: ["train", file(s), "--backend", "stub", "--run-dir", run(s)], "resume"),
]  # fmt: skip


def run(setting: Setting) -> str:
    """Train once; return the run's directory."""
    from multibackend.cli.main import main  # noqa: PLC0415

    directory = str(setting.path / "run")
    main(["train", file(setting), "--backend", "stub", "--run-dir", directory])
    return directory


def run_json(setting: Setting, content: bytes) -> str:
    """Return the directory of a run whose run.json is this."""
    directory = Path(run(setting))
    (directory / "run.json").write_bytes(content)
    return str(directory)


def changed(setting: Setting, **fields: object) -> str:
    """Return the directory of a run with other fields in its run.json."""
    directory = Path(run(setting))
    path = directory / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return str(directory)


def resume(name: str, content: bytes) -> Case:
    """Make a case of a damaged run.json."""
    return command(f"resume: run.json {name}", lambda s: ["resume", run_json(s, content)], "run.json")


RESUME = [
    command("resume without a directory", lambda s: ["resume", "--updates", "2"]),
    command("resume of nothing", lambda s: ["resume", str(s.path / "none")], "no directory", "--run-dir"),
    command("resume of a file", lambda s: ["resume", file(s)], "no directory", "--run-dir"),
    resume("empty", b""),
    resume("cut", b'{"format": '),
    resume("a list", b"[]"),
    resume("deep", b"[" * 200_000),
    resume("not UTF-8", b'{"a": "\xff"}'),
    resume("of another kind", b'{"format": "else"}'),
    command("resume: options a list", lambda s: ["resume", changed(s, options=[1])], "run.json"),
    command("resume: updates of text", lambda s: ["resume", changed(s, options={"backend": "stub", "execution": "auto", "updates": "many"})], "updates", "many"),
    command("resume: version of tomorrow", lambda s: ["resume", changed(s, version=99)], "run.json", "99"),
    command("resume: file gone", lambda s: ["resume", changed(s, file="/none.py", file_from_here="none.py")], "--file"),
    command("resume: file given that is not there", lambda s: ["resume", run(s), "--file", "/none.py"], "none.py"),
    command("resume on no backend", lambda s: ["resume", run(s), "--backend", "pytorch"], "'pytorch'"),
]  # fmt: skip


def on_file(name: str, before: str, *arguments: str, words: tuple[str, ...]) -> Case:
    """Make a case of another command on the experiment file."""
    return command(f"{before} {name}", lambda s: [before, file(s), *arguments], *words)


COMMANDS = [
    on_file("without weights", "evaluate", "--backend", "stub", words=("--run-dir", "--weights")),
    on_file("of no directory", "evaluate", "--backend", "stub", "--run-dir", "/none", words=("/none",)),
    on_file("of no file", "evaluate", "--backend", "stub", "--weights", "/none", words=("/none",)),
    command("evaluate of no weights file", lambda s: ["evaluate", file(s), "--backend", "stub", "--weights", file(s)], "line.py", "weights"),
    command("evaluate without eval_data", lambda s: ["evaluate", file(s), "--backend", "stub", "--run-dir", run(s), "--no-evaluated"], "eval_data"),
    on_file("without files", "convert", words=("--weights", "--output")),
    on_file("of no file", "convert", "--weights", "/none", "--output", "/tmp/none", words=("/none",)),
    command("convert to no backend", lambda s: ["convert", file(s), "--weights", file(s), "--output", "/none", "--to", "flaxx"], "flaxx", "jax"),
    on_file("one backend", "compare", "--backends", "torch", words=("two",)),
    on_file("three backends", "compare", "--backends", "torch,jax,stub", words=("two",)),
    on_file("no backend", "compare", "--backends", "", words=("two",)),
    on_file("a backend that is none", "compare", "--backends", "stub,pytorch", words=("'pytorch'",)),
    on_file("updates 0", "compare", "--backends", "stub,stub", "--updates", "0", words=("updates", "0")),
    on_file("every 0", "compare", "--backends", "stub,torch", "--every", "0", words=("every",)),
    on_file("every -1", "compare", "--backends", "stub,torch", "--every", "-1", words=("every",)),
    command("compare: the page below a file", lambda s: ["compare", file(s), "--html", file(s) + "/page.html"], "line.py"),
    command("compare: the page is a directory", lambda s: ["compare", file(s), "--html", str(s.path)], "directory"),
    on_file("a precision that is none", "compare", "--precision", "fp3", words=("precision", "fp3")),
    on_file("a backend that is none", "check", "--backend", "pytorch", words=("'pytorch'",)),
    on_file("nowhere", "record", "--backend", "stub", words=("--output", "--check")),
    on_file("both", "record", "--output", "a", "--check", "b", words=("--output", "--check")),
    command("record below a file", lambda s: ["record", file(s), "--backend", "stub", "--output", file(s) + "/golden.json"], "line.py"),
    on_file("0 updates", "record", "--backend", "stub", "--updates", "0", "--output", "/tmp/g.json", words=("updates", "0")),
    on_file("against no file", "record", "--check", "/none/golden.json", words=("/none",)),
    command("record against another file", lambda s: ["record", file(s), "--check", file(s)], "line.py"),
    command("backends with an argument", lambda s: ["backends", "--verbose"], "--verbose"),
]  # fmt: skip

CASES = [*FILES, *TRAIN, *RESUME, *COMMANDS]
