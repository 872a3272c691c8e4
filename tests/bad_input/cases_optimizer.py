"""Optimizers, parameter groups, learning rates and schedules."""

from __future__ import annotations

import math
from typing import Any

from bad_input.case import ALL, BOTH, Case, accepted
from bad_input.setting import Setting
from multibackend import optimizers, schedules
from multibackend.errors import ConfigurationError, UserCodeError
from multibackend.optimizers import SGD, Group, Native

__all__ = ["CASES"]


class OwnError(Exception):
    """A user's own class."""


def raising(*_arguments: Any, **_options: Any) -> Any:
    raise OwnError("its own trouble")


def rate(name: str, value: Any, *words: str) -> Case:
    """Make a case of a learning rate that is refused when the optimizer is constructed."""
    return Case(
        f"learning_rate {name}", lambda s: SGD(learning_rate=value), ConfigurationError, ("learning_rate", *words)
    )


def rate_later(name: str, function: Any, error: type[Exception], *words: str) -> Case:
    """Make a case of a learning rate that shows what it is at the third update."""
    return Case(
        f"learning_rate later {name}", lambda s: s.fit(4, optimizer=SGD(learning_rate=function)), error, words, ALL
    )


def later(value: Any) -> Any:
    return lambda update: 0.01 if update < 2 else value


def raises_later(update: int) -> float:
    return 0.01 if update < 2 else raising()


RATES = [
    *[rate(repr(bad), bad, repr(bad)) for bad in ("1e-3", None, -0.1, math.nan, math.inf, True, [0.1], 1j)],
    rate("10**400", 10**400),
    rate("a class", schedules.Cosine, "Cosine"),
    *[rate(f"function gives {bad!r}", lambda update, bad=bad: bad, repr(bad)) for bad in (None, "x", -1.0, math.nan, math.inf, 1j, [0.1])],
    rate("function gives 10**400", lambda update: 10**400),
    rate("function takes nothing", lambda: 0.1, "update"),
    rate("function takes two", lambda a, b: 0.1, "update"),
    *[rate_later(f"gives {bad!r}", later(bad), ConfigurationError, "learning_rate", repr(bad), "update") for bad in (None, "x", -1.0, math.nan)],
    Case("learning_rate function raises", lambda s: s.fit(optimizer=SGD(learning_rate=raising)), UserCodeError, ("learning_rate", "OwnError"), ALL),
    rate_later("raises", raises_later, UserCodeError, "learning_rate", "update 3", "OwnError"),
    accepted("learning_rate 0", lambda s: s.fit(optimizer=SGD(learning_rate=0.0)), lambda r: r.updates == 2, ALL),
]  # fmt: skip


def optimizer(kind: str, name: str, /, *words: str, **options: Any) -> Case:
    """Make a case of an argument of an optimizer."""
    make = getattr(optimizers, kind)
    arguments = {"learning_rate": 0.1, **options}
    return Case(f"{kind}: {name}", lambda s: make(**arguments), ConfigurationError, words)


def shares(kind: str, *arguments: str) -> list[Case]:
    """Make the cases of arguments in [0, 1)."""
    return [
        optimizer(kind, f"{argument} {bad!r}", argument, repr(bad), **{argument: bad})
        for argument in arguments
        for bad in (-0.1, 1.0, math.nan, "0.9")
    ]


OPTIMIZERS = [
    *shares("SGD", "momentum"),
    *shares("Adam", "beta1", "beta2"),
    *shares("Lion", "beta1", "beta2"),
    *shares("RMSprop", "beta2", "momentum"),
    *shares("Adadelta", "rho"),
    *[
        optimizer(kind, f"weight_decay {bad!r}", "weight_decay", repr(bad), weight_decay=bad)
        for kind in ("SGD", "AdamW")
        for bad in (-1.0, math.nan, "0")
    ],
    *[
        optimizer(kind, f"eps {bad!r}", "eps", repr(bad), eps=bad)
        for kind in ("Adam", "Adagrad")
        for bad in (-1e-8, math.nan, None)
    ],
    optimizer("SGD", "nesterov without momentum", "nesterov", "momentum", nesterov=True),
    optimizer("SGD", "nesterov 'yes'", "nesterov", "'yes'", nesterov="yes", momentum=0.9),
    optimizer("Adam", "amsgrad 1", "amsgrad", "1", amsgrad=1),
    optimizer("RMSprop", "centered None", "centered", "None", centered=None),
    optimizer("Adagrad", "initial_accumulator -1", "initial_accumulator", "-1", initial_accumulator=-1.0),
    optimizer("Muon", "matrices 5", "matrices", "5", matrices=5),
    optimizer("NAdam", "momentum_decay -1", "momentum_decay", "-1", momentum_decay=-1.0),
    Case("SGD: no learning rate", lambda s: SGD(), TypeError, ("learning_rate",), own=True),  # type: ignore[call-arg]
    Case("SGD: lr=", lambda s: SGD(lr=0.1), TypeError, ("lr",), own=True),  # type: ignore[call-arg]
]


def every(name: str, shape: tuple[int, ...]) -> bool:
    """Match every parameter."""
    return True


def groups(name: str, value: Any, *words: str, error: type[Exception] = ConfigurationError) -> Case:
    """Make a case of parameter groups, found at the latest when the model is there."""
    return Case(
        f"groups: {name}",
        lambda s: s.trainer(optimizer=SGD(learning_rate=0.1, groups=value() if callable(value) else value)),
        error,
        words,
        ALL,
    )


GROUPS = [
    groups("5", 5, "groups", "5"),
    groups("a list of 5", [5], "groups", "5"),
    groups("where 5", lambda: [Group(5)], "where", "5"),  # type: ignore[arg-type]
    groups("where None", lambda: [Group(None)], "where", "None"),  # type: ignore[arg-type]
    groups("where raises", lambda: [Group(raising)], "where", "OwnError"),
    groups("where takes only a name", lambda: [Group(lambda name: True)], "where", "(name, shape)"),  # type: ignore[arg-type]
    groups("where gives text", lambda: [Group(lambda name, shape: "yes")], "where", "'yes'"),  # type: ignore[arg-type]
    groups("where gives None", lambda: [Group(lambda name, shape: None)], "where", "None"),  # type: ignore[arg-type]
    groups("a pattern that fits nothing", lambda: [Group("encoder.*")], "encoder.*", "weight"),
    groups("frozen 'yes'", lambda: [Group(every, frozen="yes")], "frozen", "'yes'"),  # type: ignore[arg-type]
    groups("factor -1", lambda: [Group(every, learning_rate_factor=-1.0)], "learning_rate_factor", "-1"),
    groups("factor nan", lambda: [Group(every, learning_rate_factor=math.nan)], "learning_rate_factor", "nan"),
    groups("weight_decay -1", lambda: [Group(every, weight_decay=-1.0)], "weight_decay", "-1"),
    groups("weight_decay text", lambda: [Group(every, weight_decay="0")], "weight_decay", "'0'"),  # type: ignore[arg-type]
    accepted("groups: one, not in a sequence", lambda s: s.fit(optimizer=SGD(learning_rate=0.1, groups=Group(every, learning_rate_factor=0.5))), lambda r: r.updates == 2, ALL),
    groups("all frozen", lambda: [Group(every, frozen=True)], "frozen", "train"),
]  # fmt: skip


def native(name: str, error: type[Exception], *words: str, **options: Any) -> Case:
    """Make a case of an optimizer of a framework's own."""

    def run(setting: Setting) -> Any:
        builders = {setting.backend: options["builder"]} if "builder" in options else {}
        return setting.fit(optimizer=Native(learning_rate=0.1, **builders))

    return Case(f"native: {name}", run, error, words, BOTH)


NATIVE = [
    native("no builder", ConfigurationError, "builder"),
    native("builder 5", ConfigurationError, "5", "function", builder=5),
    native("builder None", ConfigurationError, "None", "function", builder=None),
    native("builder returns None", ConfigurationError, "Native", "None", builder=lambda *arguments: None),
    native("builder returns 5", ConfigurationError, "Native", "int", builder=lambda *arguments: 5),
    native("builder returns a class", ConfigurationError, "Native", "type", builder=lambda *arguments: dict),
    native("builder raises", UserCodeError, "OwnError", "Native", builder=raising),
    Case("native: builder takes nothing", lambda s: s.fit(optimizer=Native(learning_rate=0.1, torch=lambda: None)), UserCodeError, ("Native", "1 argument"), ("torch",)),
    Case("native: for another backend only", lambda s: s.fit(optimizer=Native(learning_rate=0.1, other=raising)), ConfigurationError, ("other",), BOTH),
    Case("native: a class of torch", lambda s: s.experiment(optimizer=torch_sgd()), ConfigurationError, ("optimizer", "SGD(")),
    Case("native: a function of optax", lambda s: s.experiment(optimizer=optax_sgd()), ConfigurationError, ("optimizer", "mb.optimizers has SGD")),
]  # fmt: skip


def torch_sgd() -> Any:
    import torch  # noqa: PLC0415

    return torch.optim.SGD


def optax_sgd() -> Any:
    import optax  # noqa: PLC0415

    return optax.sgd(0.1)


def schedule(kind: str, name: str, /, *words: str, **options: Any) -> Case:
    """Make a case of an argument of a schedule."""
    make = getattr(schedules, kind)
    return Case(f"{kind}: {name}", lambda s: make(**options), ConfigurationError, words)


COSINE = {"peak": 0.1, "total": 10}
SCHEDULES = [
    *[schedule("Constant", f"value {bad!r}", "value", repr(bad), value=bad) for bad in (-1.0, math.nan, "0.1", None)],
    schedule("Constant", "value 10**400", "value", value=10**400),
    *[schedule("Cosine", f"total {bad!r}", "total", repr(bad), peak=0.1, total=bad) for bad in (0, -1, 2.5, "10", None)],
    *[schedule("Cosine", f"peak {bad!r}", "peak", repr(bad), peak=bad, total=10) for bad in (-0.1, math.inf, "1", None)],
    schedule("Cosine", "final -1", "final", "-1", **COSINE, final=-1.0),
    schedule("LinearWarmup", "warmup -1", "warmup", "-1", peak=0.1, warmup=-1),
    schedule("LinearWarmup", "warmup 2.5", "warmup", "2.5", peak=0.1, warmup=2.5),
    schedule("Polynomial", "power -1", "power", "-1", **COSINE, power=-1.0),
    schedule("Polynomial", "power 0", "power", "0", **COSINE, power=0.0),
    schedule("Step", "boundaries 5", "boundaries", "5", initial=0.1, boundaries=5),
    schedule("Step", "boundaries of text", "boundaries", "'a'", initial=0.1, boundaries={"a": 0.1}),
    schedule("Step", "boundaries of -1", "boundaries", "-1", initial=0.1, boundaries={-1: 0.1}),
    schedule("Step", "boundaries to -0.5", "boundaries", "-0.5", initial=0.1, boundaries={5: -0.5}),
    schedule("WarmupCosine", "warmup longer than total", "warmup", "total", **COSINE, warmup=20),
    schedule("WarmupStableDecay", "parts longer than total", "warmup", "decay", "total", **COSINE, warmup=6, decay=6),
]  # fmt: skip

CASES = [*RATES, *OPTIMIZERS, *GROUPS, *NATIVE, *SCHEDULES]
