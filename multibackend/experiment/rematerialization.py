"""Which modules recompute their activations instead of keeping them: one rule for every backend.

Rematerialisation (gradient checkpointing; Chen et al., "Training Deep Nets with Sublinear Memory
Cost", 2016) keeps the inputs of a module only, and runs its forward pass a second time when the
backward pass comes to it. It changes memory and time, never values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multibackend.core.names import glob_matches
from multibackend.core.validation import Problems, closest
from multibackend.errors import ConfigurationError

__all__ = ["ModuleInfo", "Rematerialize", "check_rule", "choose_modules"]

Rematerialize = bool | str | Sequence[str] | Callable[[str], bool]

# The last digits of a name are its number: "0" in a list, "Block_0" or "layer2" as an attribute.
_NUMBERED = re.compile(r"(?:^|.*?\D)\d+")


@dataclass(frozen=True)
class ModuleInfo:
    """One module of a model, as a backend describes it to `choose_modules`.

    Attributes:
        path: dotted, "blocks.0.attention"; "" for the model itself.
        kind: its class; siblings of one class are told by it.
        parameters: whether it or a module inside it has parameters.
        container: whether it only holds others (a list, a sequence): its children are its parent's.
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

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def check_rule(rule: Any, problems: Problems) -> None:
    """Add a problem where `rule` is none of the forms of `Experiment.rematerialize`."""
    # A class is callable, but what it would make of a path is no bool: `nn.Linear` is a slip.
    if isinstance(rule, bool) or (callable(rule) and not isinstance(rule, type)):
        return
    patterns = (rule,) if isinstance(rule, str) else rule
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        problems.add(
            "rematerialize must be True, False, a pattern such as 'blocks.*', a sequence of patterns, "
            f"or a function of a module's path, got {rule!r}",
            wrong_type=True,
        )
    elif not patterns or not all(patterns):
        problems.add(f"rematerialize has an empty pattern: {rule!r}; use rematerialize=False for none")


def choose_modules(rule: Rematerialize, modules: Sequence[ModuleInfo]) -> tuple[str, ...]:
    """Return the paths of the modules to rematerialise, outermost only: none lies inside another.

    `True` means every block: the modules that hold parameters and other modules, and have a
    numbered sibling of their own class (`blocks.0`, `blocks.1`; `Block_0`, `Block_1`). A list or a
    sequence is no block, what is in it may be. Where there is no such module: the children of the
    model that hold parameters; where it has none, the model itself.

    A pattern is matched as in a shell (`*`, `?`, `[...]`) against the whole path, `*`
    crossing dots; `block.*` matches `Block_0` too. A function gets the path and is not
    asked about the model itself.

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
        # The model itself is the first module, and the last resort: recomputed as a whole, it holds
        # all its activations at once again in the backward pass.
        whole_model = [module.path for module in eligible[:1]]
        return _outermost(_blocks(modules) or _children(modules) or whole_model)
    paths = [module.path for module in eligible if module.path]
    if callable(rule):
        chosen = [path for path in paths if rule(path)]
        if not chosen:
            problem = f"the function chose none of the model's modules, which are {_listed(paths)}"
            raise ConfigurationError("rematerialize", [problem])
        return _outermost(chosen)
    if isinstance(rule, str):
        rule = (rule,)
    return _outermost(_matching(rule, paths))


def _matching(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    problems = Problems("rematerialize")
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [path for path in paths if glob_matches(path, pattern)]
        if not matched:
            slip = closest(pattern, paths)
            problems.add(f"{pattern!r} matches no module of {_listed(paths)}{slip}")
        chosen.update(matched)
    problems.raise_if_any()
    return [path for path in paths if path in chosen]


def _blocks(modules: Sequence[ModuleInfo]) -> list[str]:
    """Find composite modules with parameters that have a numbered sibling of their class."""
    parents = {module.parent for module in modules if module.path}
    candidates: list[ModuleInfo] = []
    for module in modules:
        composite = module.path in parents and module.callable and not module.container
        if composite and module.parameters and _NUMBERED.fullmatch(module.name):
            candidates.append(module)
    # A single numbered module, such as the `Dense_0` that Flax makes of any layer, repeats nothing.
    counts = Counter((module.parent, module.kind) for module in candidates)
    return [module.path for module in candidates if counts[module.parent, module.kind] > 1]


def _children(modules: Sequence[ModuleInfo]) -> list[str]:
    """Find the model's children that hold parameters; those of a list of modules count as its own."""
    outermost = _outermost([module.path for module in modules if module.callable and module.path])
    with_parameters = {module.path for module in modules if module.parameters}
    return [path for path in outermost if path in with_parameters]


def _outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that lie in none of the others."""
    chosen = set(paths)

    # A module inside a recomputed one is recomputed with it; marked as well, it would run thrice.
    def inside(path: str) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:end]) in chosen for end in range(1, len(parts)))

    return tuple(path for path in paths if not inside(path))


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(map(repr, paths[:8])) or "none: the model has no modules inside"
    if len(paths) > 8:
        shown += f" and {len(paths) - 8} more"
    return shown
