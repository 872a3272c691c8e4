"""Arguments of `Experiment`, one wrong at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import multibackend as mb
from bad_input.case import ALL, Case, accepted
from bad_input.setting import DATA, LABELS
from multibackend.errors import ConfigurationError, UserCodeError
from multibackend.losses import CrossEntropy, Custom, MeanSquaredError
from multibackend.metrics import Accuracy
from multibackend.metrics import MeanSquaredError as SquaredError
from multibackend.optimizers import SGD

__all__ = ["CASES"]


def wrong(name: str, /, *words: str, **changes: Any) -> Case:
    """Make a case of an experiment that is refused when it is constructed."""
    return Case(f"experiment: {name}", lambda s: s.experiment(**changes), ConfigurationError, words)


NO_COUNTS: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "2.5": 2.5,
    "True": True,
    "text": "4",
    "nan": math.nan,
    "inf": math.inf,
    "a list": [4],
    "an array": np.array([1, 2]),
    "complex": 2j,
}


def counts(argument: str, **others: Any) -> list[Case]:
    """Make the cases of an argument that must be a count."""
    return [wrong(f"{argument} {name}", argument, "1", **{argument: bad, **others}) for name, bad in NO_COUNTS.items()]


def user_code(name: str, function: Any, *words: str) -> Case:
    """Make a case of an accumulation function that raises."""
    return Case(
        f"experiment: accumulation function {name}",
        lambda s: s.experiment(gradient_accumulation_steps=function),
        UserCodeError,
        ("gradient_accumulation_steps", "update index 0", *words),
    )


NO_NUMBERS: dict[str, Any] = {
    "-1": -1.0,
    "text": "1",
    "nan": math.nan,
    "inf": math.inf,
    "10**400": 10**400,
    "complex": 1j,
    "True": True,
    "a list": [0.5],
}


def numbers(argument: str) -> list[Case]:
    """Make the cases of an argument that must be a finite number >= 0."""
    return [wrong(f"{argument} {name}", argument, **{argument: bad}) for name, bad in NO_NUMBERS.items()]


def choices(argument: str, allowed: str, *bad_values: Any) -> list[Case]:
    """Make the cases of an argument that is one of a few words; one of these must be listed."""
    return [wrong(f"{argument} {bad!r}", argument, repr(bad), allowed, **{argument: bad}) for bad in bad_values]


SIZES = [
    *counts("micro_batch_size"),
    *counts("gradient_accumulation_steps"),
    *counts("eval_batch_size"),
    *counts("base_batch_size", lr_scaling="linear"),
    wrong("micro_batch_size None", "micro_batch_size", "None", micro_batch_size=None),
    wrong("micro_batch_size 2**70", "micro_batch_size", "at most", micro_batch_size=2**70),
    wrong("micro_batch_size 'automatic'", "micro_batch_size", "auto", micro_batch_size="automatic"),
    wrong("micro_batch_size 'auto' alone", "EffectiveBatch", micro_batch_size="auto"),
    wrong("accumulation None", "gradient_accumulation_steps", "None", gradient_accumulation_steps=None),
    wrong("accumulation 2**70", "gradient_accumulation_steps", "at most", gradient_accumulation_steps=2**70),
    wrong("accumulation {}", "key 0", gradient_accumulation_steps={}),
    wrong("accumulation without key 0", "key 0", gradient_accumulation_steps={3: 2}),
    wrong("accumulation of a negative key", "-3", gradient_accumulation_steps={0: 1, -3: 2}),
    wrong("accumulation of a key of text", "'3'", gradient_accumulation_steps={0: 1, "3": 2}),
    wrong("accumulation of half a step", "1.5", gradient_accumulation_steps={0: 1.5}),
    wrong("accumulation function gives 0", "got 0", gradient_accumulation_steps=lambda update: 0),
    wrong("accumulation function gives text", "'2'", gradient_accumulation_steps=lambda update: "2"),
    wrong("accumulation function gives None", "None", gradient_accumulation_steps=lambda update: None),
    user_code("takes nothing", lambda: 2, "TypeError"),
    user_code("raises", lambda update: 1 // 0, "ZeroDivisionError"),
    Case("EffectiveBatch 0", lambda s: mb.EffectiveBatch(0), ConfigurationError, ("EffectiveBatch", "1", "0")),
    Case("EffectiveBatch 2.5", lambda s: mb.EffectiveBatch(2.5), ConfigurationError, ("EffectiveBatch", "2.5")),  # type: ignore[arg-type]
    wrong("EffectiveBatch not a multiple", "7", "3", gradient_accumulation_steps=mb.EffectiveBatch(7)),
    wrong("memory_budget with a number", "memory_budget", "auto", memory_budget="1GiB"),
    *[
        wrong(
            f"memory_budget {budget!r}",
            "memory_budget",
            repr(budget),
            memory_budget=budget,
            micro_batch_size="auto",
            gradient_accumulation_steps=mb.EffectiveBatch(6),
        )
        for budget in ("5 parsecs", -1, 2.5, "", [1])
    ],
    wrong("lr_scaling without a base", "base_batch_size", lr_scaling="linear"),
    wrong("a base without lr_scaling", "lr_scaling", base_batch_size=8),
    wrong(
        "drop_last leaves nothing", "drop_last", "12", micro_batch_size=3, gradient_accumulation_steps=5, drop_last=True
    ),
    accepted(
        "micro_batch_size 10**9 of 12 examples",
        lambda s: (s.fit(micro_batch_size=10**9, shuffle=False), s.fit(micro_batch_size=12, shuffle=False)),
        lambda pair: bool(np.allclose(pair[0].history["loss"], pair[1].history["loss"])),
        ALL,
    ),
    accepted(
        "accumulation 10**18 of 4 micro-batches",
        lambda s: s.fit(gradient_accumulation_steps=10**18),
        lambda result: result.history[0].examples == 12,
        ALL,
    ),
    accepted(
        "EffectiveBatch larger than the data",
        lambda s: s.fit(gradient_accumulation_steps=mb.EffectiveBatch(3 * 10**12)),
        lambda result: result.history[0].examples == 12,
        ALL,
    ),
]

OPTIONS = [
    *numbers("max_grad_norm"),
    wrong("max_grad_norm 0", "max_grad_norm", max_grad_norm=0.0),
    *numbers("ema_decay"),
    wrong("ema_decay 1", "ema_decay", "1", ema_decay=1.0),
    wrong("ema_warmup alone", "ema_decay", ema_warmup=True),
    wrong("ema_warmup text", "ema_warmup", ema_warmup="yes", ema_decay=0.9),
    *choices("precision", "float32", "fp32", "float16", 32, None, ["float32"]),
    *choices("on_nonfinite", "skip", "ignore", True, None),
    *choices("normalize", "window", "mean", None, True),
    *choices("dropout", "portable", "off", 0.5, None),
    *choices("batch_statistics", "frozen", "eval", None),
    *choices("lr_scaling", "sqrt", "log", 2.0),
    wrong("rematerialize 5", "rematerialize", "5", rematerialize=5),
    wrong("rematerialize [1]", "rematerialize", "1", rematerialize=[1]),
    wrong("shuffle 'no'", "shuffle", "'no'", shuffle="no"),
    wrong("shuffle None", "shuffle", "None", shuffle=None),
    wrong("drop_last 1", "drop_last", "1", drop_last=1),
    wrong("seed -1", "seed", "-1", seed=-1),
    wrong("seed 1.5", "seed", "1.5", seed=1.5),
    wrong("seed None", "seed", "None", seed=None),
    wrong("seed text", "seed", "'0'", seed="0"),
    wrong("seed 2**63", "seed", "at most", seed=2**63),
    wrong("seed 2**70", "seed", "at most", seed=2**70),
    wrong("name empty", "name", name=""),
    wrong("name 5", "name", "5", name=5),
    wrong("metrics 5", "metrics", "5", metrics=5),
    wrong("metrics of names", "metrics", "accuracy", "Accuracy(", metrics=["accuracy"]),
    wrong("metrics: classes", "metrics", metrics=[Accuracy]),
    wrong("metrics twice", "distinct", "name=", metrics=[SquaredError(target="y"), SquaredError(target="y")]),
    wrong("metrics named loss", "loss", "name=", metrics=[SquaredError(target="y", name="loss")]),
]

PARTS = [
    wrong("loss None", "loss", "None", loss=None),
    wrong("loss 5", "loss", "5", loss=5),
    wrong("loss a name", "loss", "mse", "MeanSquaredError(", loss="mse"),
    wrong("loss a class", "loss", "MeanSquaredError", loss=MeanSquaredError),
    wrong("loss without terms", "no term", loss={}),
    wrong("loss of an empty name", "name", loss={"": MeanSquaredError(target="y")}),
    wrong("loss of a name 1", "name", "1", loss={1: MeanSquaredError(target="y")}),
    wrong("loss term of text", "'a'", "'x'", loss={"a": "x"}),
    wrong(
        "loss terms without per",
        "'a'",
        'per="example"',
        loss={"a": Custom(lambda xp, o, b: o), "b": CrossEntropy(target="y")},
    ),
    wrong("loss list", "loss", "mapping", loss=[MeanSquaredError(target="y")]),
    wrong("optimizer None", "optimizer", "None", optimizer=None),
    wrong("optimizer a name", "optimizer", "adam", "Adam(", optimizer="adam"),
    wrong("optimizer a class", "optimizer", "SGD", "learning_rate", optimizer=SGD),
    wrong("optimizer a number", "optimizer", "0.1", optimizer=0.1),
    wrong("model None", "model", "None", model=None),
    wrong("model a function", "model", "Model(", model=lambda: None),
    wrong("model a class", "model", "Model(", model=mb.Model),
    wrong("model a name", "model", "resnet", model="resnet"),
    wrong("eval_data 5", "eval_data", "5", eval_data=5),
    wrong("eval_data lacks a field", "eval_data", "'y'", eval_data={"x": DATA["x"]}),
    wrong("eval_data lacks a metric's field", "'k'", eval_data=DATA, metrics=[Accuracy(target="k")]),
    Case("experiment: unknown argument", lambda s: s.experiment(batch_size=4), TypeError, ("batch_size",), own=True),
    Case(
        "experiment: replace with a wrong value",
        lambda s: s.experiment().replace(seed=-1),
        ConfigurationError,
        ("seed",),
    ),
    Case(
        "experiment: replace an unknown argument",
        lambda s: s.experiment().replace(batch=1),
        TypeError,
        ("batch",),
        own=True,
    ),
    Case(
        "experiment: three problems at once",
        lambda s: s.experiment(seed=-1, precision="fp32", micro_batch_size=0),
        ConfigurationError,
        ("3 problems", "seed", "precision", "micro_batch_size"),
    ),
    Case(
        "experiment: a list as model inputs is one field each",
        lambda s: s.experiment(model=s.model(inputs=["x", "z"])) if s.backend != "any" else None,
        ConfigurationError,
        ("'z'",),
        ALL,
    ),
    accepted(
        "experiment: labels as int8",
        lambda s: s.fit(
            loss=CrossEntropy(target="label"), train_data={**LABELS, "label": LABELS["label"].astype(np.int8)}
        ),
        lambda r: r.updates == 2,
    ),
]

CASES = [*SIZES, *OPTIONS, *PARTS]
