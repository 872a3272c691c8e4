"""Every wrong value gives one typed error before any training, with the value and the repair in its text.

The sweep runs on the numpy stub, so no framework is needed to be told that a number is wrong.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from multibackend_stub.backend import Linear

import multibackend as mb
from multibackend import metrics, optimizers, schedules
from multibackend.errors import (
    BackendNotFoundError,
    BackendNotInstalledError,
    ConfigurationError,
    DataError,
    MultibackendError,
)
from multibackend.losses import CrossEntropy, Custom, Huber, MeanSquaredError
from multibackend.testing import assert_raises
from multibackend.testing.conformance.problems import regression

DATA = regression(12)
MODEL = mb.Model(stub=lambda: Linear(3, 2), inputs="x")
SGD = optimizers.SGD


def experiment(**changes: Any) -> mb.Experiment:
    arguments: dict[str, Any] = {
        "model": MODEL,
        "loss": MeanSquaredError(target="y"),
        "optimizer": SGD(learning_rate=0.1),
        "train_data": DATA,
        "micro_batch_size": 3,
    }
    return mb.Experiment(**{**arguments, **changes})


def trainer(**changes: Any) -> mb.Trainer:
    return mb.Trainer(experiment(**changes), "stub")


@dataclass
class Wrong:
    """What is done, and what the message must mention: the value and the way out."""

    do: Callable[[], Any]
    mentions: tuple[str, ...]
    kind: type[Exception] = ConfigurationError


def option(*mentions: str, **changes: Any) -> Wrong:
    return Wrong(lambda: experiment(**changes), mentions)


def rate(value: Any, *mentions: str) -> Wrong:
    return Wrong(lambda: SGD(learning_rate=value), ("learning_rate", *mentions))


NOT_COUNTS = {"0": 0, "-1": -1, "2.5": 2.5, "True": True, "'4'": "4", "nan": float("nan"), "np.True_": np.bool_(True)}
K, SIZE = "gradient_accumulation_steps", "micro_batch_size"
WRONG: dict[str, Wrong] = {
    **{f"k {name}": option(K, name, "1", **{K: value}) for name, value in NOT_COUNTS.items()},
    **{f"size {name}": option(SIZE, name, "1", **{SIZE: value}) for name, value in NOT_COUNTS.items()},
    **{
        f"eval size {name}": option("eval_batch_size", name, eval_batch_size=value)
        for name, value in NOT_COUNTS.items()
    },
    "k None": option(K, "None", gradient_accumulation_steps=None),
    "k without key 0": option(K, "{3: 2}", "key 0", gradient_accumulation_steps={3: 2}),
    "k empty": option(K, "{}", "key 0", gradient_accumulation_steps={}),
    "k of a bad key": option(K, "-3", gradient_accumulation_steps={0: 2, -3: 2}),
    "k of a bad value": option(K, "1.5", gradient_accumulation_steps={0: 1.5}),
    "k from a function": option(K, "got 0", gradient_accumulation_steps=lambda update: 0),
    "k from a rubbish function": option(K, "'two'", gradient_accumulation_steps=lambda update: "two"),
    "effective batch": option("EffectiveBatch(10)", "micro_batch_size=3", "9", **{K: mb.EffectiveBatch(10)}),
    "effective batch 0": Wrong(lambda: mb.EffectiveBatch(0), ("examples", "0")),
    "unequal lengths": option("x: 12", "y: 11", train_data={"x": DATA["x"], "y": DATA["y"][:11]}),
    "empty data": option("empty", train_data={"x": np.zeros((0, 3)), "y": np.zeros((0, 2))}),
    "no field": option("no field", train_data={}),
    "no data": option("train_data", "None", train_data=None),
    "data of strings": option("'y'", "numbers", train_data={"x": DATA["x"], "y": ["a"] * 12}),
    "missing input": option("'x'", "model's inputs", train_data={"X": DATA["x"], "y": DATA["y"]}),
    "missing target": option("'y'", "the loss", "did you mean 'yy'", train_data={"x": DATA["x"], "yy": DATA["y"]}),
    "missing in eval_data": option("eval_data", "'y'", eval_data={"x": DATA["x"]}),
    "precision": option("precision", "'float23'", "did you mean 'float32'", precision="float23"),
    "precision of a dtype": option("precision", "float32", precision=np.float32),
    "on_nonfinite": option("on_nonfinite", "'ignore'", "'skip'", on_nonfinite="ignore"),
    "normalize": option("normalize", "'windows'", "did you mean 'window'", normalize="windows"),
    "shuffle": option("shuffle", "'yes'", "True or False", shuffle="yes"),
    "drop_last": option("drop_last", "1", "True or False", drop_last=1),
    "drop_last of everything": option("15", "12", "drop_last=False", drop_last=True, gradient_accumulation_steps=5),
    "seed": option("seed", "-1", seed=-1),
    "name": option("name", "''", name=""),
    "max_grad_norm 0": option("max_grad_norm", "> 0", "got 0", max_grad_norm=0),
    "max_grad_norm nan": option("max_grad_norm", "nan", max_grad_norm=float("nan")),
    "max_grad_norm text": option("max_grad_norm", "'1'", max_grad_norm="1"),
    "model": option("model", "multibackend.Model", model=Linear(3, 2)),
    "loss": option("loss", "'mse'", loss="mse"),
    "loss class": option("loss", "MeanSquaredError", loss=MeanSquaredError),
    "optimizer": option("optimizer", "'sgd'", optimizer="sgd"),
    "metrics": option("metrics", "'accuracy'", metrics=["accuracy"]),
    "metrics of one name": option("distinct names", metrics=[metrics.MeanAbsoluteError(target="y")] * 2),
    "rate nan": rate(float("nan"), "nan"),
    "rate inf": rate(float("inf"), "inf"),
    "rate negative": rate(-0.1, "-0.1", ">= 0"),
    "rate text": rate("0.1", "'0.1'", "function of the update index"),
    "rate bool": rate(True, "True"),
    "rate from a function": rate(lambda update: -1.0, "-1.0", "update index 0"),
    "rate nan from a function": rate(lambda update: float("nan"), "nan", "update index 0"),
    "rate text from a function": rate(lambda update: "fast", "'fast'", "update index 0"),
    "rate of a class": rate(schedules.Cosine, "Cosine"),
    "rate of a failing function": rate(lambda update, total: 0.1, "total"),
    "momentum": Wrong(lambda: SGD(learning_rate=0.1, momentum=1.5), ("momentum", "1.5", "< 1")),
    "nesterov": Wrong(lambda: SGD(learning_rate=0.1, nesterov=True), ("nesterov=True", "momentum=0.9")),
    "decay": Wrong(lambda: SGD(learning_rate=0.1, weight_decay=-1), ("weight_decay", "-1")),
    "beta": Wrong(lambda: optimizers.Adam(learning_rate=0.1, beta2=1.0), ("beta2", "1.0")),
    "eps": Wrong(lambda: optimizers.AdamW(learning_rate=0.1, eps=0), ("eps", "> 0")),
    "eps of RMSprop": Wrong(lambda: optimizers.RMSprop(learning_rate=0.1, eps=0.0), ("eps", "> 0")),
    "momentum of RMSprop": Wrong(lambda: optimizers.RMSprop(learning_rate=0.1, momentum=1), ("momentum", "< 1")),
    "centered": Wrong(lambda: optimizers.RMSprop(learning_rate=0.1, centered=1), ("centered", "True or False")),
    "accumulator": Wrong(lambda: optimizers.Adagrad(learning_rate=1, initial_accumulator=-1), ("initial_acc", "-1")),
    "rho": Wrong(lambda: optimizers.Adadelta(learning_rate=1, rho=1.0), ("rho", "1.0", "< 1")),
    "momentum decay": Wrong(lambda: optimizers.NAdam(learning_rate=1, momentum_decay="x"), ("momentum_decay", "'x'")),
    "beta of Lion": Wrong(lambda: optimizers.Lion(learning_rate=1, beta2=-0.1), ("beta2", "-0.1")),
    "amsgrad": Wrong(lambda: optimizers.AdamW(learning_rate=1, amsgrad="yes"), ("amsgrad", "'yes'")),
    "lr_scaling": option("lr_scaling", "'squared'", "'sqrt'", lr_scaling="squared", base_batch_size=32),
    "lr_scaling alone": option("lr_scaling='linear'", "base_batch_size=None", "go together", lr_scaling="linear"),
    "base alone": option("lr_scaling=None", "base_batch_size=32", "go together", base_batch_size=32),
    "base": option("base_batch_size", "0", lr_scaling="sqrt", base_batch_size=0),
    "warm-up": Wrong(lambda: schedules.WarmupCosine(peak=1, warmup=9, total=9), ("warmup=9", "total=9")),
    "trapezoid": Wrong(lambda: schedules.WarmupStableDecay(peak=1, warmup=5, decay=6, total=9), ("5 + 6 > 9",)),
    "step": Wrong(lambda: schedules.Step(initial=1, boundaries=[1, 2]), ("boundaries", "[1, 2]")),
    "smoothing": Wrong(lambda: CrossEntropy(target="t", label_smoothing=1.0), ("label_smoothing", "1.0")),
    "classes and smoothing": Wrong(
        lambda: CrossEntropy(target="t", label_smoothing=0.1, class_weights=[1.0]), ("cannot be combined", "drop one")
    ),
    "class weight": Wrong(lambda: CrossEntropy(target="t", class_weights=[1, -1]), ("class_weights[1]", "-1")),
    "target": Wrong(lambda: MeanSquaredError(target=3), ("target", "3")),
    "delta": Wrong(lambda: Huber(target="y", delta=0), ("delta", "> 0")),
    "custom": Wrong(lambda: Custom("mse"), ("function", "'mse'")),
    "top k": Wrong(lambda: metrics.TopKAccuracy(target="y", k=0), ("k", "0")),
    "metric without name": Wrong(lambda: metrics.Custom(lambda xp, outputs, batch: outputs), ("name",)),
    "model without builder": Wrong(lambda: mb.Model(inputs="x"), ("no builder", "torch=build_torch")),
    "model of no function": Wrong(lambda: mb.Model(torch=3, inputs="x"), ("torch=3", "function")),
    "model of a bad reference": Wrong(
        lambda: mb.Model(torch="my model", inputs="x"), ("'my model'", "module:function")
    ),
    "model without inputs": Wrong(lambda: mb.Model(torch=abs), ("inputs", "call=")),
    "model with a bad call": Wrong(lambda: mb.Model(torch=abs, call=3), ("call", "3")),
    "builder missing": Wrong(lambda: mb.Trainer(experiment(), "torch"), ("'torch'", "'stub'")),
    "builder not found": Wrong(
        lambda: mb.Trainer(experiment(model=mb.Model(stub="nowhere:build", inputs="x")), "stub"), ("nowhere:build",)
    ),
    "backend": Wrong(
        lambda: mb.Trainer(experiment(), "torhc"), ("'torhc'", "did you mean 'torch'"), BackendNotFoundError
    ),
    "backend of no name": Wrong(lambda: mb.Trainer(experiment(), None), ("None", "'torch'"), BackendNotFoundError),
    "execution": Wrong(lambda: mb.Trainer(experiment(), "stub", execution="fast"), ("'fast'",)),
    "device": Wrong(lambda: mb.Trainer(experiment(), "stub", device="tpu"), ("'tpu'",)),
    "device of no name": Wrong(lambda: mb.Trainer(experiment(), "stub", device=3), ("device", "3")),
    "windows per dispatch": Wrong(
        lambda: mb.Trainer(experiment(), "stub", windows_per_dispatch=0), ("windows_per_dispatch", "0")
    ),
    "callbacks": Wrong(lambda: mb.Trainer(experiment(), "stub", callbacks=["x"]), ("callbacks", "'x'")),
    "no experiment": Wrong(lambda: mb.Trainer(DATA, "stub"), ("experiment",)),
    "fit without end": Wrong(lambda: trainer().fit(updates=None), ("updates=None", "epochs=None")),
    "fit with two ends": Wrong(lambda: trainer().fit(updates=3, epochs=2), ("updates=3", "epochs=2")),
    "fit to a float": Wrong(lambda: trainer().fit(updates=2.0), ("updates", "2.0")),
    "fit to a bool": Wrong(lambda: trainer().fit(epochs=True), ("epochs", "True")),
    "fit to -1": Wrong(lambda: trainer().fit(updates=-1), ("updates", "-1")),
    "evaluate nothing": Wrong(lambda: trainer().evaluate(), ("eval_data=",)),
    "evaluate in batches of 0": Wrong(lambda: trainer().evaluate(DATA, batch_size=0), ("batch_size", "0")),
    "evaluate in batches of -2": Wrong(lambda: trainer().evaluate(DATA, batch_size=-2), ("batch_size", "-2")),
    "evaluate without target": Wrong(lambda: trainer().evaluate({"x": DATA["x"]}), ("'y'", "the loss"), DataError),
    "evaluate rubbish": Wrong(lambda: trainer().evaluate(3), ("3", "dict of arrays"), DataError),
    "shape": Wrong(lambda: trainer(train_data={**DATA, "y": DATA["y"][:, 0]}), ("(3, 2)", "(3,)"), DataError),
    "column": Wrong(lambda: trainer(train_data={**DATA, "y": DATA["y"][:, :1]}), ("(3, 2)", "(3, 1)"), DataError),
    "negative weights": Wrong(
        lambda: trainer(
            loss=MeanSquaredError(target="y", weights="w"), train_data={**DATA, "w": np.linspace(-1, 1, 12)}
        ).fit(epochs=1),
        ("'w'", "-1.0", ">= 0"),
        DataError,
    ),
    "nan weights": Wrong(
        lambda: trainer(
            loss=MeanSquaredError(target="y", weights="w"), train_data={**DATA, "w": np.full(12, np.nan)}
        ).fit(epochs=1),
        ("'w'", "nan", ">= 0"),
        DataError,
    ),
    "shape of weights": Wrong(
        lambda: trainer(loss=MeanSquaredError(target="y", weights="w"), train_data={**DATA, "w": np.ones((12, 3))}).fit(
            epochs=1
        ),
        ("(3, 2)", "weights"),
        DataError,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value(name: str) -> None:
    """One typed error, also a ValueError or a TypeError, whose text has the value and the repair."""
    wrong = WRONG[name]
    error = assert_raises(wrong.kind, wrong.do, *wrong.mentions)
    assert isinstance(error, MultibackendError)
    assert isinstance(error, ValueError | TypeError)


def test_wrong_types_are_type_errors() -> None:
    """Where every problem is a wrong type, the error is a TypeError as well."""
    for value in (2.5, "4", True, None):
        assert_raises(TypeError, lambda value=value: experiment(gradient_accumulation_steps=value))
    assert_raises(TypeError, lambda: SGD(learning_rate="0.1"))


def test_all_problems_at_once() -> None:
    """Five wrong arguments are five lines of one error."""
    error = assert_raises(
        ConfigurationError,
        lambda: experiment(
            micro_batch_size=0, gradient_accumulation_steps=-2, precision="half", seed=1.5, train_data={"x": DATA["x"]}
        ),
        "5 problems",
    )
    assert len(error.problems) == 5


@pytest.mark.parametrize("integer", [np.int32, np.int64, np.uint8])
def test_numpy_numbers_are_numbers(integer: Callable[[int], Any]) -> None:
    """Sizes, seeds and rates may come from numpy."""
    made = experiment(
        micro_batch_size=integer(3),
        gradient_accumulation_steps=integer(2),
        seed=integer(1),
        eval_batch_size=integer(5),
        max_grad_norm=np.float32(1.5),
        optimizer=SGD(learning_rate=np.float64(0.1)),
    )
    result = mb.Trainer(made, "stub").fit(updates=integer(3))
    assert len(result.history) == 3


def test_labels() -> None:
    """Float labels, labels out of range and class weights of another number are data errors with both values."""
    logits = (3, 4)
    for labels, options, mentions in (
        (np.array([0.0, 1.0, 2.0]), {}, ("integer", "float64")),
        (np.array([0, 4, 1]), {}, ("label 4", "[0, 4)")),
        (np.array([0, -1, 1]), {}, ("label -1", "ignore_index=-100")),
        (np.array([[0, 1, 1]]), {}, ("(3, 4)", "(1, 3)")),
        (np.array([0, 1, 1]), {"class_weights": [1.0, 2.0]}, ("2 class_weights", "4 classes")),
    ):
        loss = CrossEntropy(target="t", **options)
        assert_raises(DataError, lambda loss=loss, labels=labels: loss.validate({"t": labels}, logits), *mentions)


def test_backend_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered backend without its framework says what to install."""
    from multibackend.protocol import registry  # noqa: PLC0415

    plugin = registry.plugins()["stub"]
    lacking = type(plugin)(**{**plugin.__dict__, "requires": ("no_such_framework",), "install": "pip install it"})
    monkeypatch.setattr(registry, "plugins", lambda: {"lacking": lacking})
    assert_raises(
        BackendNotInstalledError, lambda: mb.Trainer(experiment(), "lacking"), "no_such_framework", "pip install it"
    )
    assert not registry.list_backends()[0].installed


def test_validation_needs_no_framework() -> None:
    """Building and refusing an experiment for two frameworks imports neither."""
    code = """
import sys
import numpy as np
import multibackend as mb
data = {"x": np.zeros((4, 3)), "y": np.zeros((4, 2))}
def make(**changes):
    return mb.Experiment(model=mb.Model(torch="a:b", jax="c:d", inputs="x"), train_data=data, micro_batch_size=2,
        loss=mb.losses.MeanSquaredError(target="y"), optimizer=mb.optimizers.AdamW(learning_rate=0.1), **changes)
make()
try:
    make(precision="half")
except ValueError:
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "jax", "flax", "optax"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr
