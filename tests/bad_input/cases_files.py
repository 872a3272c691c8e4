"""Files that are not what they should be: checkpoints, logs, weights, matchings, golden traces."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import multibackend as mb
from bad_input.case import ALL, Case, accepted
from bad_input.setting import DATA, Setting
from multibackend import golden
from multibackend.errors import (
    BackendNotFoundError,
    CheckpointError,
    ConfigurationError,
    DataError,
    FileError,
    GoldenFileError,
    ParameterMatchError,
    ResumeError,
)
from multibackend.loggers.jsonl import read_log
from multibackend.matching import Matching
from multibackend.weights import load_weights, save_weights
from multibackend.weights.convert import convert_weights

__all__ = ["CASES"]

DEEP = b"[" * 200_000 + b"]" * 200_000


def saved(setting: Setting, updates: int = 2, **changes: Any) -> Path:
    """Return the directory of a run that was saved, with one checkpoint."""
    directory = setting.path / "run"
    setting.fit(updates, run_dir=directory, **changes)
    return directory


def checkpoint(run: Path) -> Path:
    """Return the only checkpoint of a run."""
    (path,) = [path for path in (run / "checkpoints").iterdir() if path.name.startswith("update-")]
    return path


Damage = Callable[[Path], Any]


def damaged(name: str, damage: Damage, *words: str) -> Case:
    """Make a case of a checkpoint that is damaged: it must be refused, whoever reads it."""

    def run(setting: Setting) -> Any:
        directory = saved(setting)
        damage(checkpoint(directory))
        return setting.trainer(run_dir=directory, resume="must")

    return Case(f"checkpoint: {name}", run, CheckpointError, words, ("stub",))


def manifest(path: Path) -> Path:
    return path / "manifest.json"


def parameters(path: Path) -> Path:
    return path / "parameters.safetensors"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = [
    damaged("manifest gone", lambda path: manifest(path).unlink(), "manifest"),
    damaged("manifest empty", lambda path: manifest(path).write_bytes(b""), "manifest"),
    damaged("manifest cut", lambda path: cut(manifest(path)), "manifest"),
    damaged("manifest a list", lambda path: manifest(path).write_bytes(b"[]"), "manifest"),
    damaged("manifest not UTF-8", lambda path: manifest(path).write_bytes(b'{"a": "\xff"}'), "manifest"),
    damaged("manifest deep", lambda path: manifest(path).write_bytes(DEEP), "manifest"),
    damaged("parameters gone", lambda path: parameters(path).unlink(), "parameters"),
    damaged("parameters empty", lambda path: parameters(path).write_bytes(b""), "parameters"),
    damaged("parameters cut", lambda path: cut(parameters(path)), "parameters"),
    damaged("parameters with one bit flipped", lambda path: flip(parameters(path)), "parameters"),
    damaged("parameters a directory", lambda path: (parameters(path).unlink(), parameters(path).mkdir()), "parameters"),
    damaged("parameters a link", lambda path: (shutil.move(parameters(path), path.parent / "x"), parameters(path).symlink_to(path.parent / "x")), "parameters"),
]  # fmt: skip


def resumed(name: str, /, *words: str, error: type[Exception] = ResumeError, **changes: Any) -> Case:
    """Make a case of a run that goes on as another experiment."""

    def run(setting: Setting) -> Any:
        directory = saved(setting)
        return setting.trainer(run_dir=directory, resume="must", **changes)

    return Case(f"resume: {name}", run, error, words, ALL)


RESUMES = [
    resumed("another seed", "seed", "0", "1", "may_differ", seed=1),
    resumed("another micro-batch", "micro_batch_size", "3", "4", "may_differ", micro_batch_size=4),
    resumed("another length of the data", "data length", "12", "6", train_data={"x": DATA["x"][:6], "y": DATA["y"][:6]}),
    resumed("another optimizer", "momentum", optimizer=mb.optimizers.SGD(learning_rate=0.01, momentum=0.9)),
    resumed("another rate", "learning_rate", "0.01", "0.5", optimizer=mb.optimizers.SGD(learning_rate=0.5)),
    resumed("another loss", "loss", "'y'", "'z'", loss=mb.losses.MeanSquaredError(target="z"), train_data={**DATA, "z": DATA["y"]}),
    resumed("may_differ of an unknown name", "may_differ", "'colour'", error=ConfigurationError, may_differ=["colour"]),
    Case("resume: another width", lambda s: (saved(s), s.trainer(run_dir=s.path / "run", resume="must", model=s.model(s.builder(5, 2)), train_data={"x": np.ones((12, 5)), "y": DATA["y"]})), ResumeError, ("weight", "(2, 3)", "(2, 5)"), ALL),
    Case("resume: never, and the directory is used", lambda s: s.trainer(run_dir=saved(s)), CheckpointError, ("resume",), ALL),
    Case("run_dir: log.jsonl is a directory", lambda s: ((s.path / "log.jsonl").mkdir(), s.fit(run_dir=s.path)), FileError, ("log.jsonl", "directory"), ("stub",)),
    Case("run_dir: checkpoints is a file", lambda s: ((s.path / "checkpoints").write_text(""), s.fit(run_dir=s.path)), CheckpointError, ("checkpoints",), ("stub",)),
    Case("read_log of nothing", lambda s: read_log(s.path), FileError, ("log.jsonl",)),
    accepted("read_log of half a line", lambda s: half_a_line(s), lambda lines: len(lines) == 1, ("any",)),
]  # fmt: skip


def half_a_line(setting: Setting) -> Any:
    (setting.path / "log.jsonl").write_text('{"event": "a"}\n{"event": ')
    return read_log(setting.path)


def weights(setting: Setting) -> tuple[mb.Trainer, Path]:
    """Return a trainer and a file of its weights."""
    trainer = setting.trainer()
    path = setting.path / "weights.safetensors"
    save_weights(trainer.snapshot(), path)
    return trainer, path


def weights_file(name: str, damage: Damage, *words: str, error: type[Exception] = DataError) -> Case:
    """Make a case of a weights file."""

    def run(setting: Setting) -> None:
        trainer, path = weights(setting)
        damage(path)
        load_weights(trainer, path)

    return Case(f"weights file: {name}", run, error, words, ALL)


def rewritten(change: Callable[[dict[str, np.ndarray]], Any], metadata: str = '["weight", "bias"]') -> Damage:
    def rewrite(path: Path) -> None:
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path, metadata={"parameters": metadata})

    return rewrite


WEIGHTS = [
    weights_file("gone", lambda path: path.unlink(), "no weights", "weights.safetensors"),
    weights_file("empty", lambda path: path.write_bytes(b""), "weights.safetensors"),
    weights_file("garbage", lambda path: path.write_bytes(os.urandom(200)), "weights.safetensors"),
    weights_file("cut", cut, "weights.safetensors"),
    weights_file("a directory", lambda path: (path.unlink(), path.mkdir()), "weights.safetensors"),
    weights_file("a name missing", rewritten(lambda arrays: arrays.pop("bias")), "bias", error=ParameterMatchError),
    weights_file("another shape", rewritten(lambda arrays: arrays.update(bias=np.ones(5, "f4"))), "bias", "(5,)", "(2,)", error=ParameterMatchError),
    weights_file("flattened", rewritten(lambda arrays: arrays.update(weight=arrays["weight"].ravel())), "weight", "(6,)", "(2, 3)", error=ParameterMatchError),
    weights_file("metadata 5", rewritten(lambda arrays: None, "5"), "weights.safetensors", "parameters"),
    weights_file("metadata no JSON", rewritten(lambda arrays: None, "["), "weights.safetensors"),
    weights_file("metadata deep", rewritten(lambda arrays: None, DEEP.decode()), "weights.safetensors"),
    weights_file("metadata of lists", rewritten(lambda arrays: None, "[[]]"), "weights.safetensors", "parameters"),
    Case("load_weights of a number", lambda s: load_weights(s.trainer(), 5), ConfigurationError, ("path", "5"), ("stub",)),  # type: ignore[arg-type]
    Case("save_weights of a number", lambda s: save_weights(s.trainer().snapshot(), 5), ConfigurationError, ("path", "5"), ("stub",)),  # type: ignore[arg-type]
    Case("save_weights below a file", lambda s: save_weights(s.trainer().snapshot(), text(s) / "b"), FileError, ("text.pt",), ("stub",)),
    accepted("save_weights makes its directory", lambda s: (save_weights(s.trainer().snapshot(), s.path / "a" / "b"), (s.path / "a" / "b").is_file()), lambda made: made[1], ("stub",)),
    accepted("weights file: one name differs, the shape tells", lambda s: renamed_bias(s), bool, ALL),
    Case("convert: no file", lambda s: convert_weights(twin(s), s.path / "none", s.path / "out"), DataError, ("none",), ("torch",)),
    Case("convert: a text file", lambda s: convert_weights(twin(s), text(s), s.path / "out"), DataError, ("text.pt", "safe to load"), ("torch",)),
    Case("convert: a backend that is none", lambda s: convert_weights(twin(s), text(s), s.path / "out", target="flaxx"), BackendNotFoundError, ("flaxx", "jax"), ("torch",)),
]  # fmt: skip


def renamed_bias(setting: Setting) -> bool:
    """Load a file in which the bias has another name; return whether it arrived."""
    trainer, path = weights(setting)
    rewritten(lambda arrays: arrays.update(w=arrays.pop("bias") + 1), '["weight", "w"]')(path)
    before = trainer.parameters()["bias"]
    load_weights(trainer, path)
    return bool(np.allclose(trainer.parameters()["bias"], before + 1))


def twin(setting: Setting) -> mb.Experiment:
    """Return an experiment with a builder for torch and for jax."""
    other = Setting("jax", setting.directory)
    return setting.experiment(model=mb.Model(torch=setting.builder(), jax=other.builder(), inputs="x"))


def text(setting: Setting) -> Path:
    path = setting.path / "text.pt"
    path.write_text("text")
    return path


def file_of(setting: Setting, content: bytes) -> Path:
    path = setting.path / "file.json"
    path.write_bytes(content)
    return path


CONTENTS = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": DEEP,
    "of another kind": json.dumps({"format": "else", "version": 1}).encode(),
    "a list": b"[]",
    "a number": b"5",
}
READERS: list[tuple[str, Callable[[Path], Any], type[Exception]]] = [
    ("golden", golden.load, GoldenFileError),
    ("matching", Matching.load, ParameterMatchError),
]

JSON = [
    *[
        Case(f"{what}: {name}", lambda s, load=load, content=content: load(file_of(s, content)), error, ("file.json",))
        for what, load, error in READERS
        for name, content in CONTENTS.items()
    ],
    *[
        Case(f"{what}: no file", lambda s, load=load: load(s.path / "none.json"), error, ("none.json",))
        for what, load, error in READERS
    ],
    *[
        Case(f"{what}: a directory", lambda s, load=load: load(s.path), error, ("directory",))
        for what, load, error in READERS
    ],
    Case("golden: record 0 updates", lambda s: golden.record(s.experiment(), "stub", updates=0), ConfigurationError, ("updates", "0")),
    Case("golden: record 5", lambda s: golden.record(5, "stub"), ConfigurationError, ("experiment", "5")),  # type: ignore[arg-type]
    Case("golden: record on no backend", lambda s: golden.record(s.experiment(), "pytorch"), BackendNotFoundError, ("'pytorch'",)),
    Case("golden: check against 5", lambda s: golden.check(5, s.experiment(), "stub"), ConfigurationError, ("golden", "5")),  # type: ignore[arg-type]
]  # fmt: skip
CASES = [*DAMAGE, *RESUMES, *WEIGHTS, *JSON]
