"""The network of an experiment: one builder per backend, and how their parameters pair up."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multibackend.core.validation import Problems, closest, is_integer
from multibackend.data.fields import nested
from multibackend.errors import ConfigurationError

__all__ = ["Model"]

Builder = Callable[..., Any] | str
Call = Callable[[Any, Mapping[str, Any], bool], Any]

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Model:
    """A network, with one builder per backend.

    Args:
        inputs: the field of the data that the model is called with, or a sequence of names for
            several arguments. Parts of nested examples have dotted names, "image.left"; the name of
            a whole part, "image", gives the dict or tuple below it.
        call: how to call the model where `model(batch[inputs])` does not do: a function
            `(model, batch, train) -> outputs`, or a mapping from backend names to such functions.
        rename: pairs parameters whose canonical names differ between backends: {name of one
            backend's parameter or module: name of the reference's}.
        transform: the change of layout of parameters where it cannot be found: {name of one
            backend's parameter: permutation of the axes of the reference's array, or a function of
            it that reshapes and permutes}.
        matching: a `multibackend.matching.Matching`, or the path of one that was saved: how the
            parameters of two backends pair up, reused instead of found anew. The first backend of
            `compare` is its reference.
        builders: one per backend, by its name: a function that returns the framework's own module,
            or "package.module:function", imported when the backend is chosen. The torch builder
            returns an `nn.Module`; the jax builder a `flax.nnx.Module` (called with
            `rngs=nnx.Rngs(seed)` where it takes `rngs`) or a `flax.linen.Module`.

    >>> model = Model(torch="my_models.vision:build_torch", jax="my_models.vision:build_flax", inputs="image")
    >>> sorted(model.builders), model.inputs
    (['jax', 'torch'], ('image',))
    """

    def __init__(
        self,
        *,
        inputs: str | Sequence[str] = (),
        call: Call | Mapping[str, Call] | None = None,
        rename: Mapping[str, str] | None = None,
        transform: Mapping[str, Any] | None = None,
        matching: Any = None,
        **builders: Builder,
    ) -> None:
        self.inputs: tuple[str, ...] = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        self.rename = dict(rename or {})
        self.transform = dict(transform or {})
        self.matching = matching
        self.builders = builders
        self._call = call
        self._check()

    def _check(self) -> None:
        problems = Problems("Model")
        if not self.builders:
            problems.add("no builder given; pass one per backend, for example torch=build_torch, jax=build_flax")
        for backend, builder in self.builders.items():
            if callable(builder) or (isinstance(builder, str) and _REFERENCE.fullmatch(builder)):
                continue
            problems.add(
                f"{backend}={builder!r} is no builder: it must be a function or 'package.module:function'"
                + closest(backend, ("inputs", "call", "rename", "transform", "matching")),
                wrong_type=not isinstance(builder, str),
            )
        for name in self.inputs:
            problems.field_name("inputs", name)
        if not self.inputs and self._call is None:
            problems.add("inputs must name a field of the data; or give call=, a function (model, batch, train)")
        for call in self._call.values() if isinstance(self._call, Mapping) else (self._call,):
            if call is not None and not callable(call):
                problems.add(f"call must be a function (model, batch, train) -> outputs, got {call!r}", wrong_type=True)
        self._check_matching(problems)
        problems.raise_if_any()

    def _check_matching(self, problems: Problems) -> None:
        for name, change in self.transform.items():
            axes = isinstance(change, Sequence) and not isinstance(change, str) and all(map(is_integer, change))
            if not callable(change) and not axes:
                problems.add(f"transform[{name!r}] must be axes such as (1, 0) or a function, got {change!r}")
        if not isinstance(self.matching, str | Path | None) and not hasattr(self.matching, "to_other"):
            problems.add(
                f"matching must be a Matching or the path of a saved one, got {self.matching!r}", wrong_type=True
            )

    def renamed(self, names: Mapping[str, str]) -> Model:
        """This model with more names in `rename`."""
        changed = copy.copy(self)
        changed.rename = {**self.rename, **names}
        return changed

    def matched(self, matching: Any) -> Model:
        """This model with a `matching`."""
        changed = copy.copy(self)
        changed.matching = matching
        changed._check()
        return changed

    def builder(self, backend: str) -> Callable[..., Any]:
        """The builder for a backend, imported where it was given by name; raises `ConfigurationError`."""
        if backend not in self.builders:
            listed = ", ".join(map(repr, self.builders))
            raise ConfigurationError("Model", [f"there is no builder for the backend {backend!r}, only for {listed}"])
        builder = self.builders[backend]
        if callable(builder):
            return builder
        module, _, name = builder.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError("Model", [f"{backend}={builder!r} cannot be imported: {error}"]) from error

    def arguments(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """What the model is called with: of each input the field, or the dict or tuple of the fields below it."""
        return tuple([batch[name] if name in batch else nested(batch, name) for name in self.inputs])

    def call(self, backend: str) -> Call | None:
        """The user's way to call the model on a backend; None for `model(*inputs)`."""
        return self._call.get(backend) if isinstance(self._call, Mapping) else self._call
