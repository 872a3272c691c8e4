"""Losses and metrics: their arguments, what a user's own function returns, and what the weights may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bad_input.case import BOTH, Case, accepted
from bad_input.setting import DATA, LABELS, with_field
from multibackend import losses, metrics
from multibackend.errors import ConfigurationError, DataError, NonFiniteError, UserCodeError

__all__ = ["CASES"]

BINARY = {"x": DATA["x"], "y": (DATA["y"] > 0).astype(float)}


class OwnError(Exception):
    """A user's own class."""


def raising(*_arguments: Any) -> Any:
    raise OwnError("the loss's own trouble")


def argument(name: str, kind: type, /, *words: str, **options: Any) -> Case:
    """Make a case of an argument of a loss or metric."""
    return Case(f"{kind.__name__}: {name}", lambda s: kind(**options), ConfigurationError, words)


CE, MSE, Custom = losses.CrossEntropy, losses.MeanSquaredError, losses.Custom
ARGUMENTS = [
    *[argument(f"target {bad!r}", MSE, "target", repr(bad), target=bad) for bad in (5, "", None, ["y"])],
    *[argument(f"weights {bad!r}", MSE, "weights", repr(bad), target="y", weights=bad) for bad in (5, "", 0.5)],
    *[argument(f"scale {bad!r}", MSE, "scale", repr(bad), target="y", scale=bad) for bad in ("2", None, math.nan, math.inf, True)],
    argument("scale 10**400", MSE, "scale", target="y", scale=10**400),
    *[argument(f"delta {bad!r}", losses.Huber, "delta", repr(bad), target="y", delta=bad) for bad in (0, -1.0, "1", math.nan)],
    *[argument(f"smoothing {bad!r}", CE, "label_smoothing", repr(bad), target="y", label_smoothing=bad) for bad in (1.0, -0.1, "0.1", math.nan)],
    *[argument(f"ignore_index {bad!r}", CE, "ignore_index", repr(bad), target="y", ignore_index=bad) for bad in (1.5, None, "0")],
    *[argument(f"class_weights {bad!r}", CE, "class_weights", target="y", class_weights=bad) for bad in (5, "ab", [-1.0, 1.0], [math.nan, 1.0], [], {"a": 1.0}, [[1.0], [2.0]])],
    argument("class_weights with smoothing", CE, "class_weights", "label_smoothing", target="y", class_weights=[1.0, 2.0], label_smoothing=0.1),
    *[argument(f"function {bad!r}", Custom, "function", repr(bad), function=bad) for bad in (5, None, "f")],
    argument("function mapping to 5", Custom, "function", "5", function={"torch": 5}),
    argument("function mapping from 1", Custom, "function", "1", function={1: raising}),
    argument("function mapping of none", Custom, "function", function={}),
    argument("per token", Custom, "per", "'token'", "example", function=raising, per="token"),
    argument("per weight without weights", Custom, "per", "weights=", function=raising, per="weight"),
    argument("per micro-batch with weights", Custom, "per", "'w'", function=raising, per="micro_batch", weights="w"),
    *[argument(f"name {bad!r}", metrics.Accuracy, "name", target="label", name=bad) for bad in ("", 5, None)],
    argument("target 5", metrics.Accuracy, "target", "5", target=5),
    *[argument(f"k {bad!r}", metrics.TopKAccuracy, "k", repr(bad), target="label", k=bad) for bad in (0, -1, 1.5, "5", True)],
    *[argument(f"classes {bad!r}", metrics.ConfusionMatrix, "classes", repr(bad), target="label", classes=bad) for bad in (0, -2, 2.5, "3", 10**12)],
    argument("function 5 of a metric", metrics.Custom, "function", "5", name="m", function=5),
    argument("no name and none of its own", metrics.Custom, "name", function=lambda xp, o, b: o),
    argument("mode up", metrics.Custom, "mode", "'up'", "max", name="m", function=raising, mode="up"),
]  # fmt: skip


def loss(name: str, function: Any, *words: str, error: type[Exception] = DataError, **options: Any) -> Case:
    """Make a case of what a custom loss returns or does."""
    data = options.pop("data", DATA)
    return Case(
        f"loss: {name}",
        lambda s: s.fit(loss=Custom(function, **options), train_data=data),
        error,
        words,
        BOTH,
    )


def square(outputs: Any, batch: Any) -> Any:
    return (outputs - batch["y"]) ** 2


FUNCTIONS = [
    loss("raises", raising, "OwnError", "own trouble", error=UserCodeError),
    loss("takes no arguments", lambda: 0.0, "(xp, outputs, batch)", error=ConfigurationError),
    loss("takes (outputs, batch)", lambda o, b: square(o, b), "(xp, outputs, batch)", error=ConfigurationError),
    loss("takes four arguments", lambda xp, o, b, k: square(o, b), "(xp, outputs, batch)", error=ConfigurationError),
    loss("reads a field that is not there", lambda xp, o, b: (o - b["z"]) ** 2, "'z'", "'y'", error=UserCodeError),
    loss("uses numpy", lambda xp, o, b: np.square(np.asarray(o) - np.asarray(b["y"])), "xp", error=UserCodeError),
    loss("uses a name that the standard lacks", lambda xp, o, b: xp.no_such_function(o), "no_such_function", error=UserCodeError),
    loss("shapes do not broadcast", lambda xp, o, b: o - b["x"], "[3, 2]", "[3, 3]", error=UserCodeError),
    loss("returns None", lambda xp, o, b: None, "None", "values"),
    loss("returns text", lambda xp, o, b: "text", "str", "values"),
    loss("returns a Python number", lambda xp, o, b: 1.0, "float", "values"),
    loss("returns a list", lambda xp, o, b: [square(o, b)], "list", "values"),
    loss("returns a dict", lambda xp, o, b: {"loss": square(o, b)}, "dict", "values"),
    loss("returns three values", lambda xp, o, b: (square(o, b), square(o, b), square(o, b)), "3", "(values, weights)"),
    loss("returns an empty tuple", lambda xp, o, b: (), "0", "(values, weights)"),
    loss("returns its mean", lambda xp, o, b: xp.mean(square(o, b)), "()", "one value per element"),
    loss("returns its sum over the batch", lambda xp, o, b: xp.sum(square(o, b), axis=0), "(2,)", "one value per element"),
    loss("returns shape (1,)", lambda xp, o, b: xp.reshape(xp.mean(square(o, b)), (1,)), "(1,)", "one value per element"),
    loss("returns the batch behind", lambda xp, o, b: xp.permute_dims(square(o, b), (1, 0)), "(2, 3)", "one value per element"),
    loss("returns integers", lambda xp, o, b: xp.astype(o, xp.int32), "int32", "float"),
    loss("returns truth values", lambda xp, o, b: o > b["y"], "bool", "float"),
    loss("returns complex numbers", lambda xp, o, b: square(o, b) * 1j, "complex", "float"),
    loss("returns nothing for the batch", lambda xp, o, b: square(o, b)[:0], "(0, 2)", "one value per element"),
    loss("returns part of the batch", lambda xp, o, b: square(o, b)[:2], "(2, 2)", "one value per element"),
    loss("does not depend on the model", lambda xp, o, b: b["y"] ** 2, "parameters"),
    loss("is NaN", lambda xp, o, b: square(o, b) * math.nan, "update 1", error=NonFiniteError),
    loss("is NaN of a finite gradient", lambda xp, o, b: square(o, b) + math.nan, "update 1", error=NonFiniteError),
    loss("is infinite", lambda xp, o, b: square(o, b) + math.inf, "update 1", error=NonFiniteError),
    loss("weights of text", lambda xp, o, b: (square(o, b), "w"), "weights", "str"),
    loss("weights of another length", lambda xp, o, b: (square(o, b), b["y"][:2]), "weights", "(2, 2)", "(3, 2)"),
    loss("weights of more axes", lambda xp, o, b: (square(o, b), b["y"][:, :, None] ** 2), "weights", "(3, 2, 1)"),
    loss("negative weights", lambda xp, o, b: (square(o, b), -xp.ones_like(o)), "weights", "negative", error=NonFiniteError),
    loss("some negative weights", lambda xp, o, b: (square(o, b), b["w"]), "weights", "negative", error=NonFiniteError, data=with_field("w", np.tile([1.0, -0.5], (12, 1)))),
    loss("weights of NaN", lambda xp, o, b: (square(o, b), xp.ones_like(o) * math.nan), "weights", "nan", error=NonFiniteError),
    loss("weights all 0", lambda xp, o, b: (square(o, b), xp.zeros_like(o)), "weights", "0"),
    loss("per example, a scalar", lambda xp, o, b: xp.mean(square(o, b)), "()", "per='example'", per="example"),
    loss("per example, a matrix", lambda xp, o, b: square(o, b), "(3, 2)", "per='example'", per="example"),
    loss("per micro-batch, a vector", lambda xp, o, b: xp.sum(square(o, b), axis=1), "(3,)", "per='micro_batch'", per="micro_batch"),
    loss("per weight, a vector", lambda xp, o, b: xp.sum(square(o, b), axis=1), "(3,)", "per='weight'", per="weight", weights="y", data=BINARY),
    loss("for another backend only", {"other": square}, "other", error=ConfigurationError),
    accepted("loss: per micro-batch, a scalar", lambda s: s.loss(lambda xp, o, b: xp.mean(square(o, b)), per="micro_batch"), lambda r: r.updates == 2),
    accepted("loss: weights None are 1", lambda s: s.loss(lambda xp, o, b: (square(o, b), None)), lambda r: r.updates == 2),
    accepted("loss: weights of the batch only", lambda s: s.loss(lambda xp, o, b: (square(o, b), xp.ones_like(o[:, 0]))), lambda r: r.updates == 2),
]  # fmt: skip


def weights(name: str, values: Any, *words: str, error: type[Exception] = DataError, kind: Any = None) -> Case:
    """Make a case of a field of weights."""
    made = kind or MSE(target="y", weights="w")
    return Case(
        f"weights: {name}",
        lambda s: s.fit(loss=made, train_data=with_field("w", values)),
        error,
        ("weights", *words),
        BOTH,
    )


ONES = np.ones(12)
WEIGHTS = [
    weights("negative", -ONES, "'w'", "-1"),
    weights("one negative", np.where(np.arange(12) == 5, -1.0, 1.0), "'w'", "-1"),
    weights("NaN", ONES * np.nan, "'w'", "nan"),
    weights("infinite", ONES * np.inf, "'w'", "inf"),
    weights("all 0", ONES * 0, "weightless", "sum to 0"),
    weights("1e-40", ONES * 1e-40, "'w'", "1e-40"),
    weights("1e-300", ONES * 1e-300, "'w'", "1e-300"),
    weights("1e38", ONES * 1e38, "'w'", "1e+38"),
    weights("1e300", ONES * 1e300, "'w'", "1e+300"),
    weights("of the wrong width", np.ones((12, 3)), "(3, 3)", "(3, 2)"),
    weights("of too many axes", np.ones((12, 2, 1)), "(3, 2, 1)"),
    weights("complex", ONES * 1j, "complex", error=ConfigurationError),
    weights("of a custom loss negative", -ONES, "'w'", kind=Custom(lambda xp, o, b: square(o, b), weights="w")),
    weights("of a custom loss too wide", np.ones((12, 3)), kind=Custom(lambda xp, o, b: square(o, b), weights="w")),
    Case("weights: field missing", lambda s: s.experiment(loss=MSE(target="y", weights="q"), model=s.model()), ConfigurationError, ("'q'", "loss"), BOTH),
    accepted("weights: truth values", lambda s: s.fit(loss=MSE(target="y", weights="w"), train_data=with_field("w", ONES > 0)), lambda r: r.updates == 2),
    accepted("weights: integers", lambda s: s.fit(loss=MSE(target="y", weights="w"), train_data=with_field("w", np.arange(12))), lambda r: r.updates == 2),
]  # fmt: skip


def fits(name: str, kind: Any, *words: str, data: Any = DATA) -> Case:
    """Make a case of a built-in loss on data that are not for it."""
    return Case(f"loss: {name}", lambda s: s.fit(loss=kind, train_data=data), DataError, words, BOTH)


BCE = losses.BinaryCrossEntropy(target="y")
BUILT_IN = [
    fits("BCE targets of 7", BCE, "'y'", "[0, 1]", "7", data=with_field("y", np.full((12, 2), 7.0))),
    fits("BCE targets of -1", BCE, "'y'", "[0, 1]", "-1", data=with_field("y", -BINARY["y"])),
    fits("BCE targets of NaN", BCE, "'y'", "[0, 1]", "nan", data=with_field("y", BINARY["y"] * np.nan)),
    fits("BCE targets of the wrong width", BCE, "'y'", "(3, 2)", data=with_field("y", np.ones((12, 1)))),
    fits("CrossEntropy on a float matrix", CE(target="y"), "'y'", "integer"),
    fits("three class_weights of two", CE(target="label", class_weights=[1.0, 2.0, 3.0]), "3 class_weights", "2 classes", data=LABELS),
    fits("class_weights all 0", CE(target="label", class_weights=[0.0, 0.0]), "weight", data=LABELS),
]  # fmt: skip


def metric(name: str, kind: Any, *words: str, error: type[Exception] = DataError, data: Any = DATA) -> Case:
    """Make a case of a metric on data that are not for it."""
    return Case(f"metric: {name}", lambda s: s.evaluate(kind, train_data=data), error, words, BOTH)


def own_metric(name: str, function: Any, *words: str, error: type[Exception] = DataError) -> Case:
    """Make a case of a user's own metric."""
    # made as it is run, for what it takes is checked when it is made
    return Case(
        f"metric: {name}",
        lambda s: s.evaluate(metrics.Custom(name="mine", function=function)),
        error,
        words,
        BOTH,
    )


FLOATS = with_field("label", LABELS["label"] * 0.5, DATA)
METRICS = [
    metric("accuracy on floats", metrics.Accuracy(target="label"), "accuracy", "'label'", "integer", data=FLOATS),
    metric("accuracy on one float column", metrics.Accuracy(target="y"), "accuracy", "'y'", data=with_field("y", DATA["y"])),
    metric("accuracy of labels outside", metrics.Accuracy(target="label"), "'label'", "outside", data=with_field("label", np.arange(12))),
    metric("top-50 of 2 classes", metrics.TopKAccuracy(target="label", k=50), "50", "2", data=with_field("label", LABELS["label"])),
    metric("confusion matrix of too few classes", metrics.ConfusionMatrix(target="label", classes=3), "3", "2", data=with_field("label", LABELS["label"])),
    metric("mean squared error of the wrong shape", metrics.MeanSquaredError(target="x"), "'x'", "(3, 2)", "(3, 3)"),
    metric("mean absolute error of one column", metrics.MeanAbsoluteError(target="z"), "'z'", data=with_field("z", np.ones(12))),
    metric("negative weights", metrics.MeanSquaredError(target="y", weights="w"), "'w'", "-1", data=with_field("w", -ONES)),
    metric("perplexity on floats", metrics.Perplexity(target="y"), "'y'", "integer"),
    metric("for another backend only", metrics.Custom(name="mine", function={"other": square}), "other", "mine", error=ConfigurationError),
    own_metric("raises", raising, "OwnError", error=UserCodeError),
    own_metric("takes no arguments", lambda: 0, "(xp, outputs, batch)", error=ConfigurationError),
    own_metric("reads a field that is not there", lambda xp, o, b: o - b["z"], "'z'", "'y'", error=UserCodeError),
    own_metric("returns None", lambda xp, o, b: None, "None", "values"),
    own_metric("returns text", lambda xp, o, b: "text", "str", "values"),
    own_metric("returns a scalar", lambda xp, o, b: xp.mean(o), "()", "one value per"),
    own_metric("sums over the batch", lambda xp, o, b: xp.sum(o, axis=0), "(2,)", "one value per"),
    own_metric("returns three values", lambda xp, o, b: (o, o, o), "3", "(values, weights)"),
    own_metric("weights of another length", lambda xp, o, b: (o, o[:2]), "weights", "(2, 2)"),
    own_metric("complex", lambda xp, o, b: o * 1j, "complex"),
    accepted("metric: NaN is told as it is", lambda s: s.evaluate(metrics.Custom(name="mine", function=lambda xp, o, b: o * math.nan)), lambda values: math.isnan(values["mine"])),
    accepted("metric: truth values are a share", lambda s: s.evaluate(metrics.Custom(name="mine", function=lambda xp, o, b: o < xp.inf)), lambda values: values["mine"] == 1.0),
]  # fmt: skip

CASES = [*ARGUMENTS, *FUNCTIONS, *WEIGHTS, *BUILT_IN, *METRICS]
