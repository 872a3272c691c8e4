"""The network of an experiment: one builder per backend, and how their parameters pair up."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multibackend.core.slips import is_module
from multibackend.core.validation import Problems, as_names, closest, is_integer, shown
from multibackend.data.fields import nested
from multibackend.errors import ConfigurationError, ConfigurationTypeError

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
            backend's parameter: permutation of the reference's axes, or a function of its array}.
        matching: a `multibackend.matching.Matching`, or the path of one that was saved: how the
            parameters of two backends pair up, not found anew. Its reference is `compare`'s first.
        builders: one per backend, by its name: a function that returns the framework's own module,
            or "package.module:function", imported when the backend is chosen. The torch builder
            returns an `nn.Module`; the jax builder a `flax.nnx.Module` (called with
            `rngs=nnx.Rngs(seed)` where it takes `rngs`) or a `flax.linen.Module`.

    >>> model = Model(torch="my_models:build_torch", jax="my_models:build_flax", inputs="image")
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
        names = as_names(inputs)
        if names is None:
            what = "inputs must be the name of a field of the data, or a sequence of names"
            raise ConfigurationTypeError("Model", [f"{what}, got {shown(inputs)}"])
        self.inputs: tuple[str, ...] = names
        self.rename = _as_dict("rename", rename)
        self.transform = _as_dict("transform", transform)
        self.matching = matching
        self.builders = builders
        self._call = call
        self._check()

    def _check(self) -> None:
        problems = Problems("Model")
        if not self.builders:
            problems.add("no builder given; pass one per backend, for example torch=build_torch, jax=build_flax")
        for backend, builder in self.builders.items():
            if is_module(builder):
                kind = type(builder).__name__
                problems.add(
                    f"{backend}={kind}(...) is a module, no builder: it has its parameters already, and every run "
                    f"begins with new ones; pass a function that makes it, {backend}=lambda: {kind}(...), or with "
                    f"Flax's random numbers {backend}=lambda rngs: {kind}(..., rngs=rngs)",
                    wrong_type=True,
                )
                continue
            is_name = isinstance(builder, str)
            if callable(builder) or (is_name and _REFERENCE.fullmatch(builder)):
                continue
            # Every unknown keyword is a builder, so a slip such as `input=` arrives here as well.
            slip = closest(backend, ("inputs", "call", "rename", "transform", "matching"))
            what = "no builder: it must be a function or 'package.module:function'"
            problems.add(f"{backend}={builder!r} is {what}{slip}", wrong_type=not is_name)
        for name in self.inputs:
            problems.field_name("inputs", name)
        if not self.inputs and self._call is None:
            problems.add("inputs must name a field of the data; or give call=, a function (model, batch, train)")
        calls = [self._call]
        if isinstance(self._call, Mapping):
            calls = list(self._call.values())
        for call in calls:
            if call is not None and not callable(call):
                what = "call must be a function (model, batch, train) -> outputs"
                problems.add(f"{what}, got {call!r}", wrong_type=True)
        self._check_rename(problems)
        self._check_matching(problems)
        problems.raise_if_any()

    def _check_rename(self, problems: Problems) -> None:
        for name, partner in self.rename.items():
            if not isinstance(name, str) or not isinstance(partner, str):
                problems.add(f"rename must map names to names, got {shown(name)}: {shown(partner)}", wrong_type=True)

    def _check_matching(self, problems: Problems) -> None:
        for name, change in self.transform.items():
            is_list = isinstance(change, Sequence) and not isinstance(change, str)
            is_axes = is_list and all(is_integer(axis) for axis in change)
            if not callable(change) and not is_axes:
                problems.add(f"transform[{name!r}] must be axes such as (1, 0) or a function, got {change!r}")
        # Known by its method: `matching` lies above this room, which must not import it.
        if not isinstance(self.matching, str | Path | None) and not hasattr(self.matching, "to_other"):
            what = "matching must be a Matching or the path of a saved one"
            problems.add(f"{what}, got {self.matching!r}", wrong_type=True)

    def renamed(self, names: Mapping[str, str]) -> Model:
        """Return this model with more names in `rename`."""
        changed = copy.copy(self)
        changed.rename = {**self.rename, **names}
        return changed

    def matched(self, matching: Any) -> Model:
        """Return this model with a `matching`."""
        changed = copy.copy(self)
        changed.matching = matching
        changed._check()
        return changed

    def builder(self, backend: str) -> Callable[..., Any]:
        """Return the builder for a backend, imported if it is a name; raise `ConfigurationError`."""
        if backend not in self.builders:
            listed = ", ".join(map(repr, self.builders))
            problem = f"there is no builder for the backend {backend!r}, only for {listed}"
            raise ConfigurationError("Model", [problem])
        builder = self.builders[backend]
        if callable(builder):
            return builder
        module, _, name = builder.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            problem = f"{backend}={builder!r} cannot be imported: {error}"
            raise ConfigurationError("Model", [problem]) from error
        if not callable(found):
            problem = f"{backend}={builder!r} must be a function that returns the model, got {shown(found)}"
            raise ConfigurationTypeError("Model", [problem])
        return found

    def arguments(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what the model is called with: of each input the field, or the dict or tuple below."""
        # torch.compile traces this: a plain look-up where that will do, a list and no generator.
        return tuple([batch[name] if name in batch else nested(batch, name) for name in self.inputs])

    def call(self, backend: str) -> Call | None:
        """Return the user's way to call the model on a backend; None for `model(*inputs)`."""
        if isinstance(self._call, Mapping):
            return self._call.get(backend)
        return self._call


def _as_dict(name: str, value: Any) -> dict[Any, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationTypeError("Model", [f"{name} must be a mapping by names of parameters, got {shown(value)}"])
    return dict(value or {})
