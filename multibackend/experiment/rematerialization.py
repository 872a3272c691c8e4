"""Which modules recompute their activations in the backward pass instead of keeping them: one rule for every backend.

Rematerialisation (gradient checkpointing; Chen et al., "Training Deep Nets with Sublinear Memory
Cost", 2016) keeps the inputs of a module only, and runs its forward pass a second time when the
backward pass comes to it. It changes memory and time, never values.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multibackend.core.names import normalised
from multibackend.core.validation import Problems, closest
from multibackend.errors import ConfigurationError

__all__ = ["ModuleInfo", "Rematerialize", "check_rule", "choose_modules"]

Rematerialize = bool | str | Sequence[str] | Callable[[str], bool]

_NUMBERED = re.compile(r"(?:^|.*?\D)\d+")


@dataclass(frozen=True)
class ModuleInfo:
    """One module of a model, as a backend describes it to `choose_modules`.

    Attributes:
        path: dotted, "blocks.0.attention"; "" for the model itself.
        kind: its class; siblings of one class are told by it.
        parameters: whether it or a module inside it has parameters.
        container: whether it only holds others (a list, a sequence), so that its children count as
            its parent's.
        callable: whether it has a forward pass of its own to be recomputed; a list has none.
    """

    path: str
    kind: object
    parameters: bool
    container: bool = False
    callable: bool = True

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


def check_rule(rule: Any, problems: Problems) -> None:
    """Add a problem where `rule` is none of the forms of `Experiment.rematerialize`."""
    patterns = (rule,) if isinstance(rule, str) else rule
    if isinstance(rule, bool) or (callable(rule) and not isinstance(rule, type)):
        return
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        problems.add(
            "rematerialize must be True, False, a pattern such as 'blocks.*', a sequence of patterns, or a function "
            f"of a module's path, got {rule!r}",
            wrong_type=True,
        )
    elif not patterns or not all(patterns):
        problems.add(f"rematerialize has an empty pattern: {rule!r}; use rematerialize=False for none")


def choose_modules(rule: Rematerialize, modules: Sequence[ModuleInfo]) -> tuple[str, ...]:
    """The paths of the modules to rematerialise, outermost only: none of them lies inside another.

    `True` means every block: the modules that hold parameters and other modules, and have a
    numbered sibling of their own class (`blocks.0`, `blocks.1`; `Block_0`, `Block_1`). A list or a
    sequence is no block, what is in it may be. Where there is no such module: the children of the
    model that hold parameters; where it has none, the model itself.

    A pattern is matched as in a shell (`*`, `?`, `[...]`) against the whole path, `*` crossing
    dots; `block.*` matches `Block_0` as well. A function gets the path, and is not asked about the
    model itself.

    Raises:
        ConfigurationError: a pattern matches no module, or a function none at all.

    >>> block, layer = type("Block", (), {}), type("Layer", (), {})
    >>> model = [ModuleInfo("", object, True), ModuleInfo("head", layer, True)]
    >>> for path in ("Block_0", "Block_1"):
    ...     model += [ModuleInfo(path, block, True), ModuleInfo(path + ".up", layer, True)]
    >>> choose_modules(True, model), choose_modules("*.up", model)
    (('Block_0', 'Block_1'), ('Block_0.up', 'Block_1.up'))
    """
    if rule is False:
        return ()
    eligible = [module for module in modules if module.callable]
    if rule is True:
        return _outermost(_blocks(modules) or _children(modules) or [module.path for module in eligible[:1]])
    paths = [module.path for module in eligible if module.path]
    if callable(rule):
        chosen = [path for path in paths if rule(path)]
        if not chosen:
            raise ConfigurationError(
                "rematerialize", [f"the function chose none of the model's modules, which are {_listed(paths)}"]
            )
        return _outermost(chosen)
    return _outermost(_matching((rule,) if isinstance(rule, str) else rule, paths))


def _matching(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    problems, chosen = Problems("rematerialize"), []
    for pattern in patterns:
        found = [path for path in paths if _matches(path, pattern)]
        if not found:
            problems.add(f"{pattern!r} matches no module of {_listed(paths)}{closest(pattern, paths)}")
        chosen += found
    problems.raise_if_any()
    return [path for path in paths if path in chosen]


def _matches(path: str, pattern: str) -> bool:
    as_written = fnmatch.fnmatchcase(path, pattern)
    return as_written or fnmatch.fnmatchcase(normalised(path), normalised(pattern))


def _blocks(modules: Sequence[ModuleInfo]) -> list[str]:
    """Composite modules with parameters that have a numbered sibling of their class."""
    parents = {module.parent for module in modules if module.path}
    candidates = [
        module
        for module in modules
        if module.path in parents
        and module.parameters
        and module.callable
        and not module.container
        and _NUMBERED.fullmatch(module.path.rpartition(".")[2])
    ]
    counts = Counter((module.parent, module.kind) for module in candidates)
    return [module.path for module in candidates if counts[module.parent, module.kind] > 1]


def _children(modules: Sequence[ModuleInfo]) -> list[str]:
    """The model's children that hold parameters; a list of modules is looked through, a sequence is one child."""
    whole = _outermost([module.path for module in modules if module.callable and module.path])
    with_parameters = {module.path for module in modules if module.parameters}
    return [path for path in whole if path in with_parameters]


def _outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths that lie in none of the others."""
    chosen = set(paths)

    def inside(path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:end]) in chosen for end in range(1, len(parts)))

    return tuple(path for path in paths if not inside(path))


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(map(repr, paths[:8])) or "none: the model has no modules inside"
    return shown + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
