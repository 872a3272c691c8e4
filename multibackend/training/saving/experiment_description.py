"""What an experiment is, in plain JSON: held against a checkpoint before a run goes on from it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend.core.arrays import without
from multibackend.core.validation import Problems, closest
from multibackend.errors import ConfigurationError
from multibackend.experiment import Experiment
from multibackend.schedules import learning_rate_at

__all__ = ["check_allowed", "describe", "differences"]

_PLAIN = (
    "name",
    "precision",
    "micro_batch_size",
    "normalize",
    "max_grad_norm",
    "on_nonfinite",
    "seed",
    "shuffle",
    "drop_last",
    "dropout",
    "batch_statistics",
    "ema_decay",
    "ema_warmup",
    "lr_scaling",
    "base_batch_size",
    "initial",
)
# update indices at which functions are held against each other
_PROBES = (0, *(2**power for power in range(21)))
_SAME_MEAN = 1e-6  # of data that were made anew on another machine

Json = Any


def describe(experiment: Experiment, example: Mapping[str, np.ndarray]) -> dict[str, Json]:
    """Whatever decides about the numbers of a run, by the name under which a difference is told.

    Args:
        experiment: with a micro-batch size that is a number.
        example: the first examples of the data in their own order.
    """
    optimizer = experiment.optimizer
    accumulation = experiment.accumulation
    description: dict[str, Json] = {name: getattr(experiment, name) for name in _PLAIN}
    description["inputs"] = list(experiment.model.inputs)
    description["loss"] = {name: _plain(loss) for name, loss in experiment.loss_terms.items()}
    description["optimizer"] = type(optimizer).__name__
    for name, value in _fields(optimizer).items():
        if name not in ("learning_rate", "groups"):
            description[f"optimizer.{name}"] = value
    description["optimizer.groups"] = [_plain(group) for group in optimizer.groups]
    description["learning_rate"] = {
        "law": _plain(optimizer.learning_rate),
        "probes": _probes(lambda update: learning_rate_at(optimizer.learning_rate, update)),
    }
    description["gradient_accumulation_steps"] = {
        "law": accumulation.breakpoints or _plain(accumulation.function),
        "probes": _probes(accumulation.steps),
    }
    if experiment.examples is not None:
        description["data length"] = experiment.examples
    shapes = {}
    means = {}
    for name, array in sorted(example.items()):
        shapes[name] = f"{array.dtype.kind} {list(array.shape[1:])}"
        means[name] = _mean(array)
    description["data fields"] = shapes
    if getattr(experiment.train_data, "in_memory", False):
        description["data"] = means
    # as it will be read back from a checkpoint
    return json.loads(json.dumps(description, default=repr))


def differences(saved: Mapping[str, Json], here: Mapping[str, Json], allowed: Sequence[str] = ()) -> dict[str, str]:
    """Say both values of each name whose values differ, those that are `allowed` to aside.

    >>> differences({"seed": 0, "name": "a"}, {"seed": 1, "name": "a"})
    {'seed': 'seed: 0 in the checkpoint, 1 here'}
    """
    sentences = {}
    for name in dict.fromkeys((*saved, *here)):
        before = saved.get(name)
        now = here.get(name)
        if _same(name, before, now) or _is_allowed(name, allowed):
            continue
        values = f"{_text(before)} in the checkpoint, {_text(now)} here"
        sentences[name] = f"{name}: {values}{_first_probe(before, now)}"
    return sentences


def check_allowed(allowed: Any, here: Mapping[str, Json]) -> tuple[str, ...]:
    """The names that a user lets differ; raises `ConfigurationError` for one that means nothing."""
    names = tuple(allowed)
    if isinstance(allowed, str):
        names = (allowed,)
    problems = Problems("resume")
    known = (*here, *("data length", "data"))
    for name in names:
        if not any(_is_allowed(key, (name,)) for key in known):
            listed = ", ".join(dict.fromkeys(known)) + closest(str(name), known)
            problems.add(f"may_differ has {name!r}, which is none of: {listed}")
    problems.raise_if_any()
    return names


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """Whether a name is among the allowed ones; "optimizer" allows "optimizer.eps" too."""
    return name in allowed or name.partition(".")[0] in allowed


def _same(name: str, before: Json, now: Json) -> bool:
    if name == "initial":
        return True  # told, but of no effect any more: the checkpoint has the parameters
    if name == "data":
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            return True  # of data that are not in memory nothing is known
        if before.keys() != now.keys():
            return False
        return all(_close(mean, now[field]) for field, mean in before.items())
    if _is_probed(before) and _is_probed(now):
        return before["probes"] == now["probes"]  # however the law is written
    return before == now


def _close(before: Json, now: Json) -> bool:
    if not isinstance(before, float) or not isinstance(now, float):
        return before == now
    return math.isclose(before, now, rel_tol=_SAME_MEAN, abs_tol=_SAME_MEAN)


def _first_probe(before: Json, now: Json) -> str:
    """Tell the first probed index at which two functions differ; "" of anything else."""
    if not (_is_probed(before) and _is_probed(now)):
        return ""
    for update, value, other in zip(_PROBES, before["probes"], now["probes"], strict=False):
        if value != other:
            return f" (update index {update}: {value} and {other})"
    return ""


def _is_probed(value: Json) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("probes"), list)


def _text(value: Json) -> str:
    if isinstance(value, Mapping) and "law" in value:
        value = value["law"]
    if isinstance(value, Mapping):
        if "class" in value:
            return f"{value['class']}({_pairs(without(value, ('class',)), '=')})"
        return "{" + _pairs(value, ": ") + "}"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str):
        return repr(value)
    return str(value)


def _pairs(values: Mapping[str, Json], sign: str) -> str:
    return ", ".join(f"{key}{sign}{_text(value)}" for key, value in values.items())


def _fields(spec: Any) -> dict[str, Json]:
    fields = {}
    for field in dataclasses.fields(spec):
        if field.init:
            fields[field.name] = _plain(getattr(spec, field.name))
    return fields


def _plain(value: Any) -> Json:
    """A spec as JSON: classes and functions by name, which does not depend on where a file lies."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return _number(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **_fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return getattr(value, "__qualname__", type(value).__name__)


def _probes(function: Callable[[int], Any]) -> list[float | None]:
    """Values of a function at the probed indices; None where it has none, for a table may end."""
    values: list[float | None] = []
    for update in _PROBES:
        try:
            values.append(float(function(update)))
        except (ConfigurationError, ArithmeticError, LookupError, ValueError):
            values.append(None)
    return values


def _mean(array: np.ndarray) -> Json:
    if array.dtype.kind not in "fiub" or not array.size:
        return None
    return _number(float(array.mean(dtype=np.float64)))


def _number(value: float) -> Json:
    """Spell out NaN and infinities, which JSON has no numbers for."""
    if math.isfinite(value):
        return value
    return repr(value)
