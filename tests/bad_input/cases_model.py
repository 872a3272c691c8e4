"""`Model`, its builders, and what a model does when it is called."""

from __future__ import annotations

from typing import Any

import numpy as np

import multibackend as mb
from bad_input.case import ALL, BOTH, Case, accepted
from bad_input.setting import LABELS, Setting, with_field
from multibackend.errors import ConfigurationError, DataError, UserCodeError
from multibackend.losses import CrossEntropy

__all__ = ["CASES"]


class OwnError(Exception):
    """A user's own class."""


def raising(*_arguments: Any, **_options: Any) -> Any:
    raise OwnError("the model's own trouble")


def arguments(name: str, /, *words: str, **options: Any) -> Case:
    """Make a case of a `Model` that is refused when it is constructed."""
    return Case(f"model: {name}", lambda s: mb.Model(**options), ConfigurationError, words)


def linear(*_arguments: Any) -> None:
    """Stand in for a builder that is never called."""


ARGUMENTS = [
    arguments("no builder", "builder", "torch=", inputs="x"),
    arguments("builder 5", "torch", "5", "function", torch=5, inputs="x"),
    arguments("builder None", "torch", "None", "function", torch=None, inputs="x"),
    arguments("builder a name without a colon", "package.module:function", torch="my_module", inputs="x"),
    arguments("no inputs", "inputs", "call=", torch=linear),
    arguments("inputs empty", "inputs", torch=linear, inputs=""),
    arguments("inputs 5", "inputs", "5", torch=linear, inputs=5),
    arguments("inputs [1]", "inputs", "1", torch=linear, inputs=[1]),
    arguments("inputs None", "inputs", "None", torch=linear, inputs=None),
    arguments("input= for inputs=", "inputs", torch=linear, input="x"),
    arguments("call 5", "call", "5", "(model, batch, train)", torch=linear, call=5),
    arguments("call mapping to text", "call", "'f'", torch=linear, call={"torch": "f"}),
    arguments("rename 5", "rename", "5", torch=linear, inputs="x", rename=5),
    arguments("rename to 5", "rename", "5", torch=linear, inputs="x", rename={"a": 5}),
    arguments("transform 5", "transform", "5", torch=linear, inputs="x", transform=5),
    arguments("transform to text", "transform", "(1, 0)", torch=linear, inputs="x", transform={"a": "T"}),
    arguments("matching 5", "matching", "5", torch=linear, inputs="x", matching=5),
]

BUILDERS = [
    Case("builder in no module", lambda s: s.trainer(model=s.model("no_such_module:build")), ConfigurationError, ("no_such_module",), BOTH),
    Case("builder not in its module", lambda s: s.trainer(model=s.model("math:no_such_name")), ConfigurationError, ("no_such_name",), BOTH),
    Case("builder is no function", lambda s: s.trainer(model=s.model("math:pi")), ConfigurationError, ("math:pi", "function"), BOTH),
    Case("no builder for the backend", lambda s: s.trainer(model=mb.Model(other=linear, inputs="x")), ConfigurationError, ("other", "builder"), ALL),
    Case("builder raises", lambda s: s.trainer(model=s.model(raising)), UserCodeError, ("builder", "own trouble", "OwnError"), ALL),
    Case("builder needs arguments", lambda s: s.trainer(model=s.model(lambda width: None)), UserCodeError, ("builder", "width"), ALL),
    Case("builder returns None", lambda s: s.trainer(model=s.model(lambda: None)), ConfigurationError, ("builder", "None"), ALL),
    Case("builder returns a class", lambda s: s.trainer(model=s.model(lambda: dict)), ConfigurationError, ("builder", "type"), ALL),
    Case("builder returns a function", lambda s: s.trainer(model=s.model(lambda: linear)), ConfigurationError, ("builder", "function"), ALL),
    Case("builder returns a number", lambda s: s.trainer(model=s.model(lambda: 5)), ConfigurationError, ("builder", "int"), ALL),
    Case("builder is a module", lambda s: s.trainer(model=s.model(module(s))), ConfigurationError, ("builder", "module"), BOTH),
    Case("model without parameters", lambda s: s.trainer(model=s.network(lambda net, x, xp: x[:, :2], {})), ConfigurationError, ("parameter",), BOTH),
]  # fmt: skip


def module(setting: Setting) -> Any:
    """Return a module, as a builder would."""
    build = setting.builder()
    if setting.backend == "torch":
        return build()
    from flax import nnx  # noqa: PLC0415

    return build(rngs=nnx.Rngs(0))


def forward(setting: Setting, function: Any, layers: Any = None, **changes: Any) -> mb.FitResult:
    """Train a model with this forward pass."""
    return setting.fit(model=setting.network(function, layers or {"fc1": (3, 2)}), **changes)


def model_case(name: str, function: Any, *words: str, error: type[Exception] = UserCodeError, **options: Any) -> Case:
    """Make a case of a forward pass."""
    layers = options.pop("layers", None)
    return Case(f"forward: {name}", lambda s: forward(s, function, layers, **options), error, words, BOTH)


def raise_own(net: Any, x: Any, xp: Any) -> Any:
    raise OwnError("the model's own trouble")


FORWARDS = [
    model_case("raises", raise_own, "model", "OwnError", "own trouble"),
    model_case(
        "wrong in-features in a named layer",
        lambda net, x, xp: net.fc1(x),
        "'fc1'",
        "Linear",
        "[3, 3]",
        "float32",
        layers={"fc1": (4, 2)},
    ),
    model_case(
        "wrong in-features of the second layer",
        lambda net, x, xp: net.fc2(net.fc1(x)),
        "'fc2'",
        "Linear",
        "[3, 5]",
        layers={"fc1": (3, 5), "fc2": (4, 2)},
    ),
    model_case("an attribute that is not there", lambda net, x, xp: net.fc9(x), "model", "fc9"),
    model_case("a reshape that does not fit", lambda net, x, xp: xp.reshape(net.fc1(x), (-1, 7)), "model", "7"),
    model_case("returns None", lambda net, x, xp: None, "model", "None", error=DataError),
    model_case("returns text", lambda net, x, xp: "text", "model", "str", error=DataError),
    model_case("returns a number", lambda net, x, xp: 5, "model", "int", error=DataError),
    model_case(
        "returns a dict", lambda net, x, xp: {"a": net.fc1(x)}, "MeanSquaredError", "one array", "'a'", error=DataError
    ),
    model_case("returns a tuple", lambda net, x, xp: (net.fc1(x), x), "MeanSquaredError", "one array", error=DataError),
    model_case("returns a list", lambda net, x, xp: [net.fc1(x)], "MeanSquaredError", "one array", error=DataError),
    model_case(
        "returns a scalar", lambda net, x, xp: xp.sum(net.fc1(x)), "[batch, ...]", "a single number", error=DataError
    ),
    model_case(
        "sums the batch away", lambda net, x, xp: xp.sum(net.fc1(x), 0), "outputs", "shape", "'y'", error=DataError
    ),
    model_case("adds an axis", lambda net, x, xp: net.fc1(x)[:, None], "outputs", "(3, 1, 2)", "'y'", error=DataError),
    model_case("numpy inside", lambda net, x, xp: np.asarray(net.fc1(x)), "model"),
    model_case("divides by a Python zero", lambda net, x, xp: net.fc1(x) * (1 / 0), "model", "ZeroDivisionError"),
    Case(
        "forward: `if` on a traced value",
        lambda s: forward(s, lambda net, x, xp: net.fc1(x) if xp.sum(x) > 0 else net.fc1(-x)),
        UserCodeError,
        ("model", "traced", "if"),
        ("jax",),
    ),
    accepted(
        "forward: `if` on a value",
        lambda s: forward(s, lambda net, x, xp: net.fc1(x) if xp.sum(x) > 0 else net.fc1(-x)),
        lambda result: result.updates == 2,
        ("torch",),
    ),
    Case(
        "two inputs for a model of one",
        lambda s: s.fit(model=s.model(inputs=("x", "y"))),
        UserCodeError,
        ("model", "Linear", "'y'", "[3, 2]"),
        BOTH,
    ),
    Case("call raises", lambda s: s.fit(model=s.model(call=raising)), UserCodeError, ("call", "OwnError"), BOTH),
    Case(
        "call of too few arguments",
        lambda s: s.fit(model=s.model(call=lambda model, batch: None)),
        UserCodeError,
        ("call", "(model, batch, train)"),
        BOTH,
    ),
    Case(
        "call reads a field that is not there",
        lambda s: s.fit(model=s.model(call=lambda model, batch, train: model(batch["z"]))),
        UserCodeError,
        ("call", "'z'", "'x'"),
        BOTH,
    ),
    Case(
        "call gives None",
        lambda s: s.fit(model=s.model(call=lambda model, batch, train: None)),
        DataError,
        ("model", "None"),
        BOTH,
    ),
    Case(
        "classes fewer than labels",
        lambda s: s.fit(
            model=s.model(s.builder(3, 2)),
            loss=CrossEntropy(target="label"),
            train_data=with_field("label", np.arange(12), LABELS),
        ),
        DataError,
        ("label", "outside", "2"),
        BOTH,
    ),
    Case(
        "model inputs: a field that nests nothing",
        lambda s: s.experiment(model=s.model(inputs="image")),
        ConfigurationError,
        ("'image'", "'x'"),
        ALL,
    ),
    Case(
        "model inputs: a misspelt field",
        lambda s: s.experiment(model=s.model(inputs="X")),
        ConfigurationError,
        ("'X'", "did you mean 'x'"),
        ALL,
    ),
]

WIDTHS: list[Case] = [
    *[
        Case(f"x {name}", lambda s, x=x: s.fit(train_data=with_field("x", x)), UserCodeError, ("model", *words), BOTH)
        for name, x, words in [
            ("too wide", np.ones((12, 5)), ("Linear", "[3, 5]", "float32")),
            ("too narrow", np.ones((12, 1)), ("Linear", "[3, 1]", "float32")),
            ("without columns", np.ones((12, 0)), ("Linear", "[3, 0]")),
            ("of integers", np.ones((12, 3), np.int64), ("Linear", "int", "[3, 3]")),
            ("of bytes", np.ones((12, 3), np.uint8), ("Linear", "uint8", "[3, 3]")),
            ("of truth values", np.ones((12, 3), bool), ("Linear", "bool", "[3, 3]")),
            ("of uint64", np.ones((12, 3), np.uint64), ("Linear", "[3, 3]")),
        ]
    ],
    Case(
        "x of rank 1",
        # three examples at a time: what a linear layer takes for one example of three features
        lambda s: s.fit(train_data=with_field("x", np.ones(12))),
        DataError,
        ("outputs", "shape", "'y'"),
        BOTH,
    ),
    Case(
        "x of rank 4 does not fit the target",
        lambda s: s.fit(train_data=with_field("x", np.ones((12, 2, 2, 3)))),
        DataError,
        ("outputs", "(3, 2, 2, 2)", "'y'"),
        BOTH,
    ),
    Case(
        "eval_data of another width",
        lambda s: s.evaluate(eval_data=with_field("x", np.ones((12, 5)))),
        UserCodeError,
        ("model", "Linear", "5]"),
        BOTH,
    ),
    *[
        Case(
            f"embedding id {index}",
            lambda s, index=index: s.fit(
                model=s.embedding(5, 2), train_data=with_field("x", np.array([0, 1, 2, 3, 4, index] * 2))
            ),
            DataError,
            (str(index), "5"),
            BOTH,
        )
        for index in (99, 5, -1)
    ],
    Case(
        "embedding ids that are floats",
        lambda s: s.fit(model=s.embedding(5, 2), train_data=with_field("x", np.ones(12))),
        UserCodeError,
        ("Embed", "float32", "[3]"),
        BOTH,
    ),
]


CASES = [*ARGUMENTS, *BUILDERS, *FORWARDS, *WIDTHS]
